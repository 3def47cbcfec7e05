"""``audit diff``: the inference engines of two captures, before and after a change."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpuaudit.cli.output import json_option, print_line, print_raw, print_table
from gpuaudit.cli.trust import key_option, trust_with
from gpuaudit.cli.values import Currency, Rate
from gpuaudit.cli.waiting import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.option("--rate", type=Rate(), help="Price of one GPU-hour; without it no money is compared.")
@click.option("--currency", type=Currency(), default="USD", show_default=True, help="Currency of --rate.")
@click.option("--overlay", "overlays", type=_FILE, multiple=True, help="CSV of GPUs or models before the catalogue's.")
@key_option
@json_option
def command(
    *, before: Path, after: Path, rate: Decimal | None, currency: str, overlays: tuple[Path, ...],
    keys: tuple[Path, ...], as_json: bool,
) -> int:  # fmt: skip
    """Verify two bundles, and say of every inference engine whether it got better: Better, Worse, Mixed or NoChange.

    Three arms decide: efficiency of the batch, p99 of the time to first token, generated tokens per second. With fewer
    than three windows with traffic on one side, or another load, there is no verdict. Where dtype, length or memory
    settings were changed the efficiency is not compared. Any verdict ends with status 0: it is an answer.

    \b
    Examples:
      audit diff monday.db tuesday.db
      audit diff before.db after.db --rate 2.10 --currency EUR --json
    """
    from gpuaudit.analyze.diff import diff, document_bytes

    with waiting("verifying and comparing"):
        found = diff(before, after, trust=trust_with(keys), overlays=overlays, rate=rate, currency=currency)
    if as_json:
        print_raw(document_bytes(found))
        return 0
    for name, path in (("before", before), ("after", after)):
        side = found[name]
        marks = [m for m, told in (("SYNTHETIC", side["synthetic"]), ("IMPORTED", side["imported"])) if told]
        print_line(f"{name:<9} {path}: {', '.join([side['status'], *marks])}, grade {side['grade']} for its engines")
    for engine in found["engines"]:
        for line in _head(engine):
            print_line(line)
        print_table(("figure", "before", "after", "change", ""), [_row(f) for f in engine["figures"]])
    for one in found["unpaired"]:
        print_line(f"{'unpaired':<9} {one['side']}: engine {one['engine']}")
    return 0


def _head(engine: Mapping[str, Any]) -> Iterator[str]:
    """The verdict with its reason, and what was changed."""
    reason = f": {engine['reason']}" if engine["reason"] else ""
    yield f"engine    {engine['engine']['before']} → {engine['engine']['after']}"
    yield f"verdict   {engine['verdict']}{reason}"
    if engine["baseline"]:
        yield f"baseline  {engine['baseline']}"
    for d in engine["drift"]:
        yield f"setting   {d['key']}: {d['before']} → {d['after']}"
    for text in engine["notes"]:
        yield f"note      {text}"


def _row(figure: Mapping[str, Any]) -> tuple[str | None, ...]:
    from gpuaudit.analyze.load import quantity
    from gpuaudit.analyze.words import amount

    told = [amount(quantity(figure[key])) for key in ("before", "after")]
    change = quantity(figure["change"])
    mark = "worse" if figure["worse"] else ""
    return (figure["name"], *told, None if change.value is None else amount(change), mark)
