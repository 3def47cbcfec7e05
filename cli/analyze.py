"""``audit analyze``: from a bundle to findings."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import click

from gpuaudit.cli.output import force_option, json_option, print_line, print_raw
from gpuaudit.cli.report import print_packet, render
from gpuaudit.cli.trust import key_option, trust_with
from gpuaudit.cli.values import Currency, Rate, Share
from gpuaudit.cli.waiting import waiting
from gpuaudit.cli.write import write_output


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Findings to write; beside the bundle unless given.")
@click.option(
    "--report", "packet", type=click.Path(path_type=Path), help="Also render and sign the report, into this folder."
)
@click.option("--rate", type=Rate(), help="Price of one GPU-hour of every GPU.")
@click.option(
    "--prices", type=click.Path(path_type=Path), help="CSV of prices by GPU: gpu,price_per_hour,currency,date,source."
)
@click.option("--currency", type=Currency(), default="USD", show_default=True, help="Currency of --rate or --prices.")
@click.option(
    "--overlay",
    "overlays",
    type=click.Path(path_type=Path),
    multiple=True,
    help="CSV of GPUs or models before the catalogue's.",
)
@click.option(
    "--duty-cycle",
    type=Share(),
    help="Share of all time in which the host works as in the capture; waste is projected only with it.",
)
@click.option(
    "--policy", "policy_file", type=click.Path(path_type=Path), help="JSON file that overrides thresholds of rules."
)
@click.option("--strict", is_flag=True, help="End with status 5 if the evidence is not complete (grade below A).")
@key_option
@force_option
@json_option
def command(
    *, bundle: Path, out: Path | None, packet: Path | None, rate: Decimal | None, currency: str,
    prices: Path | None, overlays: tuple[Path, ...], duty_cycle: Fraction | None, policy_file: Path | None,
    keys: tuple[Path, ...], strict: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Verify a bundle, grade its completeness, and write findings: statistics, rules, chains, waste.

    The same bundle and options give the same bytes anywhere. The bundle is never changed.

    \b
    Examples:
      audit analyze train.db
      audit analyze train.db --rate 2.10 --currency EUR --report packet/
      audit analyze train.db --policy ours.json
      audit analyze train.db --rate 2.10 --duty-cycle 60%
      audit analyze serve.db --prices contract.csv --overlay our-models.csv
    """
    from gpuaudit.analyze.catalogue import Catalogue
    from gpuaudit.analyze.policy import Policy
    from gpuaudit.analyze.prices import PriceFile
    from gpuaudit.analyze.run import AnalyzeOptions, analyze, document_bytes
    from gpuaudit.bundle.errors import Incomplete
    from gpuaudit.cli.summary import summary_lines

    with waiting("verifying and analyzing"):
        policy = Policy.load(policy_file) if policy_file is not None else None
        options = AnalyzeOptions(
            rate=rate,
            currency=currency,
            trust=trust_with(keys),
            policy=policy,
            prices=PriceFile.load(prices, currency) if prices is not None else None,
            catalogue=Catalogue.load(overlays),
            duty_cycle=duty_cycle,
        )
        document = analyze(bundle, options)
        data = document_bytes(document)
    target = out or bundle.with_name(bundle.name.removesuffix(".db") + ".findings.json")
    write_output(target, data, force=force)
    if as_json:
        print_raw(data)
    else:
        for line in summary_lines(document):
            print_line(line)
        print_line(f"findings  {target}")
    if packet is not None:
        result = render(target, packet, force=force)
        if not as_json:
            print_packet(result)
    if strict and document.quality["grade"] != "A":
        reasons = "; ".join(document.quality["reasons"])
        raise Incomplete(f"{bundle}: the evidence has grade {document.quality['grade']}: {reasons}")
