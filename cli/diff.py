"""``audit diff``: two captures before and after a change, or several regimes beside the first."""

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
    from collections.abc import Iterator, Mapping, Sequence

_FILE = click.Path(path_type=Path)

SHOWN_OPERATIONS = 20
"""Rows of a table in the terminal; --json has them all."""


@click.command()
@click.argument("captures", type=_FILE, nargs=-1, required=True, metavar="BEFORE AFTER...")
@click.option("--name", "names", multiple=True, help="Name of a regime, once per capture in their order.")
@click.option("--rate", type=Rate(), help="Price of one GPU-hour; without it no money is compared.")
@click.option("--currency", type=Currency(), default="USD", show_default=True, help="Currency of --rate.")
@click.option("--overlay", "overlays", type=_FILE, multiple=True, help="CSV of GPUs or models before the catalogue's.")
@key_option
@json_option
def command(
    *, captures: tuple[Path, ...], names: tuple[str, ...], rate: Decimal | None, currency: str,
    overlays: tuple[Path, ...], keys: tuple[Path, ...], as_json: bool,
) -> int:  # fmt: skip
    """Verify bundles, and put operations, chains, rules, waste and settings side by side; several beside the first.

    An operation is called slower or faster only where an exact rank test on medians of blocks of time (adjusted for
    the number of operations) and the effect size both say so. What is not comparable is said to be so, with the reason:
    evidence of grade D, another load or mix of work, a rule that one side could not evaluate.

    Of every inference engine it says whether it got better: Better, Worse, Mixed or NoChange. Three arms decide:
    efficiency of the batch, p99 of the time to first token, generated tokens per second. With fewer than three windows
    with traffic on one side, or another load, there is no verdict. Where dtype, length or memory settings were changed
    the efficiency is not compared. Any verdict ends with status 0: it is an answer.

    \b
    Examples:
      audit diff monday.db tuesday.db
      audit diff before.db after.db --rate 2.10 --currency EUR --json
      audit diff alone.db one.db three.db --name isolated --name "+1 sibling" --name "+3 siblings"
    """
    from gpuaudit.analyze.diff import diff, document_bytes

    with waiting("verifying and comparing"):
        found = diff(captures, trust=trust_with(keys), overlays=overlays, rate=rate, currency=currency, names=names)
    if as_json:
        print_raw(document_bytes(found))
        return 0
    if "regimes" not in found:
        _print_pair(found, ("before", "after"), captures)
        return 0
    for i, regime in enumerate(found["regimes"], start=1):
        if i > 1:
            print_line("")
        called = found["captures"][0], regime["name"]
        print_line(f"regime    {called[1]}, beside {called[0]}")
        _print_pair(regime["diff"], called, (captures[0], captures[i]))
    return 0


def _print_pair(found: Mapping[str, Any], called: Sequence[str], paths: Sequence[Path]) -> None:
    for key, name, path in zip(("before", "after"), called, paths, strict=True):
        side = found[key]
        marks = [m for m, told in (("SYNTHETIC", side["synthetic"]), ("IMPORTED", side["imported"])) if told]
        engines = f" ({side['grade']} for its engines)" if side["engines"] else ""
        print_line(f"{name:<9} {path}: {', '.join([side['status'], *marks])}, grade {side['grade_overall']}{engines}")
    for engine in found["engines"]:
        for line in _head(engine):
            print_line(line)
        print_table(("figure", "before", "after", "change", ""), [_row(f) for f in engine["figures"]])
    for one in found["unpaired"]:
        print_line(f"{'unpaired':<9} {one['side']}: engine {one['engine']}")
    for line in _settings(found["configuration"]):
        print_line(line)
    _print_operations(found["operations"])
    _print_conclusions(found)


def _settings(configuration: Mapping[str, Any]) -> Iterator[str]:
    for row in configuration["rows"]:
        yield f"setting   {row['key']}: {row['before']} → {row['after']}"
    for text in configuration["notes"]:
        yield f"note      {text}"


def _print_operations(operations: Sequence[Mapping[str, Any]]) -> None:
    if not operations:
        return
    rows = []
    for o in operations[:SHOWN_OPERATIONS]:
        by_name = {f["name"]: f for f in o["figures"]}
        p50, p99 = (_arrow(by_name[name]) for name in ("p50", "p99"))
        effects = _effect(o["test"]), _effect(o["tail_test"])
        rows.append((f"{o['program']}: {o['op']}", p50, p99, *effects, o["verdict"]))
    print_table(("operation", "p50", "p99", "effect", "effect on the tail", "verdict"), rows)
    reasons: dict[tuple[str, str], list[str]] = {}
    for o in operations[:SHOWN_OPERATIONS]:
        if o["reason"]:
            reasons.setdefault((o["program"], o["reason"]), []).append(o["op"])
    for (program, reason), ops in reasons.items():
        print_line(f"why not   {program}: {', '.join(ops)}: {reason}")
    if len(operations) > SHOWN_OPERATIONS:
        print_line(f"and {len(operations) - SHOWN_OPERATIONS} more operations (--json)")


def _print_conclusions(found: Mapping[str, Any]) -> None:
    """Chains, rules that do not say the same on both sides, and waste."""
    rows = [
        (" ".join(filter(None, (c["detector"], c["program"], c["about"]))), _if_looked(c["before"]["time"]),
         _if_looked(c["after"]["time"]), c["change"])
        for c in found["chains"]
    ]  # fmt: skip
    if rows:
        print_table(("chain", "before", "after", "change"), rows)
    one_sided: dict[str, list[str]] = {}
    for r in found["rules"]:
        states = r["before"]["state"], r["after"]["state"]
        if r["change"] not in ("same", "not comparable"):
            print_line(f"rule      {r['id']}: {states[0]} → {states[1]}, {r['change']}")
        elif r["reason"] and states[0] != states[1]:
            one_sided.setdefault(r["reason"], []).append(r["id"])
    for reason, ids in one_sided.items():
        print_line(f"rules     {reason}: {', '.join(ids)}")
    unknown = [r["id"] for r in found["rules"] if r["change"] == "not comparable"]
    if unknown:
        print_line(f"rules     {len(unknown)} not comparable, because one side did not evaluate them (--json says why)")
    waste = found["waste"]
    if waste["reason"]:
        print_line(f"waste     not comparable: {waste['reason']}")
    if waste["rows"]:
        told = [(w["key"], _told(w["before"]), _told(w["after"]), _told(w["change"])) for w in waste["rows"]]
        print_table(("GPU time", "before", "after", "change"), told)


def _if_looked(quantity_json: Mapping[str, Any]) -> str:
    """A time, or that nobody could look: the reason stands with the rules."""
    return "not evaluated" if quantity_json["value"] is None else _told(quantity_json)


def _effect(test: Mapping[str, Any] | None) -> str:
    """Size of an effect, Cliff's delta and the adjusted p-value, as plain numbers."""
    from fractions import Fraction

    from gpuaudit.analyze.load import quantity
    from gpuaudit.bundle.rounding import significant

    if test is None:
        return ""
    delta, p = (significant(Fraction(quantity(test[k]).value or 0), 2) for k in ("delta", "p_adjusted"))
    return f"{test['size']} (δ {delta}, p {p})"


def _arrow(figure: Mapping[str, Any]) -> str:
    from gpuaudit.analyze.load import quantity

    sides = [quantity(figure[key]) for key in ("before", "after")]
    return " → ".join("–" if q.value is None else _amount(q) for q in sides)


def _told(quantity_json: Mapping[str, Any]) -> str:
    from gpuaudit.analyze.load import quantity

    return _amount(quantity(quantity_json))


def _amount(q: Any) -> str:
    from gpuaudit.analyze.words import amount

    return str(amount(q))


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

    told = [_amount(quantity(figure[key])) for key in ("before", "after")]
    change = quantity(figure["change"])
    mark = "worse" if figure["worse"] else ""
    return (figure["name"], *told, None if change.value is None else _amount(change), mark)
