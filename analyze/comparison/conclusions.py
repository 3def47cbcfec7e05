"""Chains, rules and waste side by side: what appeared, what is gone, what grew, and what cannot be told.

A detector or rule that one side could not evaluate is not comparable there: "not evaluated" is not "clear". Chains
are paired by detector and by what they are about with process ids taken out (ids differ between captures), and
measured by their time per second of capture. Units: ns and shares of the capture's window.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Chain, Document, Grade, Json, Quantity, number_from_json
from gpuaudit.analyze.inference.compare import same_band
from gpuaudit.analyze.registry import plugins

APPEARED, GONE, GREW, SHRANK, SAME, NOT_COMPARABLE = "appeared", "gone", "grew", "shrank", "same", "not comparable"

_IDS = re.compile(r"\s*\(\d+\)")
"""A process or thread id behind a name."""

_ABOUT = ("op", "comm", "rank", "gpu", "cgroup", "device", "engine")
"""Members of a chain's subject that mean the same in another capture."""

POINTS = 100


@dataclass(frozen=True)
class Analysed:
    """One capture: what analysis read, and the document it made."""

    context: Context
    document: Document


def grade_refusal(grades: Mapping[str, Grade]) -> str:
    """Why evidence of these grades, by side, supports no comparison; empty where it does."""
    bad = [name for name, grade in grades.items() if grade == "D"]
    return f"the evidence {' and '.join(bad)} is of grade D" if bad else ""


def chains(before: Analysed, after: Analysed) -> list[Json]:
    """A row per kind of chain on either side, those with most time first."""
    sides = [_by_kind(x) for x in (before, after)]
    keys = sorted({k for s in sides for k in s})
    rows = [_chain_row(k, sides[0].get(k, []), sides[1].get(k, []), before, after) for k in keys]
    rows.sort(key=lambda r: -max(Fraction(number_from_json(r[n]["time"]["value"]) or 0) for n in ("before", "after")))
    return rows


Kind = tuple[str, str, str]
"""Detector, program, what about."""


def _by_kind(side: Analysed) -> dict[Kind, list[Chain]]:
    out: dict[Kind, list[Chain]] = {}
    for c in side.document.chains:
        pid = c.subject.get("pid", "")
        program = side.context.process_name(int(pid)) if pid.isdecimal() else ""
        culprit = c.values.get("culprit", "")
        about = [f"{k} {c.subject[k]}" for k in _ABOUT if k in c.subject and not (k == "comm" and "rank" in c.subject)]
        if isinstance(culprit, str) and culprit:
            about.append(f"by {_IDS.sub('', culprit)}")
        out.setdefault((c.detector, program, ", ".join(about)), []).append(c)
    return out


def _chain_row(key: Kind, a: list[Chain], b: list[Chain], before: Analysed, after: Analysed) -> dict[str, Any]:
    detector, program, about = key
    told = [_chain_side(x, side, _not_evaluated(detector, side)) for x, side in ((a, before), (b, after))]
    reason = _unlike(detector, before, after) or grade_refusal(
        {name: max((c.grade for c in x), default="A") for name, x in (("before", a), ("after", b))}
    )
    shares = [Fraction(number_from_json(t["share"]["value"]) or 0) for t in told]
    return {
        "detector": detector, "program": program, "about": about, "before": told[0], "after": told[1],
        "change": NOT_COMPARABLE if reason else _changed(shares[0], shares[1], bool(a), bool(b)), "reason": reason,
    }  # fmt: skip


def _chain_side(chains: list[Chain], side: Analysed, unseen: str) -> dict[str, Any]:
    """``unseen``: why the detector did not look at this side, where no chain is then not the same as no time."""
    if unseen and not chains:
        no_time, no_share = (Quantity(None, unit, "derived", reason=unseen).to_json() for unit in ("ns", "share"))
        return {"chains": 0, "time": no_time, "share": no_share}
    ns = sum((Fraction(c.impact.value or 0) for c in chains), Fraction(0))
    evidence = tuple(dict.fromkeys(e for c in chains for e in c.evidence))
    window = side.context.window.length_ns
    share = ns / window if window else None
    return {
        "chains": len(chains),
        "time": Quantity(ns, "ns", "derived", evidence, "sum of the chains' impact").to_json(),
        "share": Quantity(
            share, "share", "derived", evidence, "time / window", "" if window else "the window is empty"
        ).to_json(),
    }


def _changed(before: Fraction, after: Fraction, was: bool, is_now: bool) -> str:
    if was != is_now:
        return APPEARED if is_now else GONE
    if before == after or same_band(before, after):
        return SAME
    return GREW if after > before else SHRANK


def _unlike(name: str, before: Analysed, after: Analysed) -> str:
    """Why a rule or detector cannot be compared: one side did not evaluate it."""
    for side, x in (("before", before), ("after", after)):
        reason = _not_evaluated(name, x)
        if reason:
            return f"not evaluated {side}: {reason}"
    return ""


def _not_evaluated(name: str, side: Analysed) -> str:
    """Why a rule or detector could not look at one side; empty where it did."""
    outcome = next((o for o in side.document.outcomes if o.id == name), None)
    if outcome is None:
        return "there was no such rule"
    return (outcome.reason or "no reason is told") if outcome.state == "not evaluated" else ""


def rules(before: Analysed, after: Analysed) -> list[Json]:
    """A row per rule and detector, in the order of the registry."""
    out = []
    for d in (p.declaration for p in plugins()):
        states = [
            next((o.state for o in x.document.outcomes if o.id == d.id), "not evaluated") for x in (before, after)
        ]
        counts = [
            sum(f.rule == d.id for f in x.document.findings) + sum(c.detector == d.id for c in x.document.chains)
            for x in (before, after)
        ]
        reason = _unlike(d.id, before, after)
        change = NOT_COMPARABLE if reason else _rule_change(counts[0], counts[1])
        out.append({
            "id": d.id, "title": d.title, "before": {"state": states[0], "findings": counts[0]},
            "after": {"state": states[1], "findings": counts[1]}, "change": change, "reason": reason,
        })  # fmt: skip
    return out


def _rule_change(before: int, after: int) -> str:
    if not before or not after:
        return SAME if before == after else APPEARED if after else GONE
    return SAME if before == after else GREW if after > before else SHRANK


def waste(before: Analysed, after: Analysed) -> Json:
    """Parts of the GPUs' observed time as shares of it, and by how many points they changed."""
    reason = ""
    for name, x in (("before", before), ("after", after)):
        if number_from_json(x.document.waste["observed"]["value"]) is None:
            reason = reason or f"{name}: {x.document.waste['observed']['reason']}"
    reason = reason or grade_refusal(
        {name: x.context.quality.grade_of(("nvml_samples",)) for name, x in (("before", before), ("after", after))}
    )
    sides = [{r["key"]: r["share"] for r in x.document.waste["by_key"]} for x in (before, after)]
    keys = [*sides[0], *(k for k in sides[1] if k not in sides[0])]
    return {"reason": reason, "rows": [] if reason else [_waste_row(k, sides[0].get(k), sides[1].get(k)) for k in keys]}


def _waste_row(key: str, before: Json | None, after: Json | None) -> Json:
    none = Quantity(0, "share", "derived", (), "no GPU time has this key").to_json()
    a, b = before or none, after or none
    change = (Fraction(number_from_json(b["value"]) or 0) - Fraction(number_from_json(a["value"]) or 0)) * POINTS
    return {
        "key": key, "before": a, "after": b,
        "change": Quantity(change, "points", "derived", (), "(after − before) × 100").to_json(),
    }  # fmt: skip
