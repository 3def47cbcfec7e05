"""Settings of host, GPUs, programs and capture side by side: what was changed besides what one meant to change."""

from __future__ import annotations

from typing import Any

from gpuaudit.analyze.comparison.conclusions import Analysed
from gpuaudit.analyze.finding import Json

NOT_RECORDED = "not recorded"
MAX_ROWS = 500
"""Differences that are listed; a host has a few dozen settings."""

MAX_TEXT = 300
"""Characters of a value that are shown."""


def compare(before: Analysed, after: Analysed) -> Json:
    """Settings told differently (or by one side only), how many are alike, and whether it is another host."""
    a, b = _facts(before), _facts(after)
    keys = sorted(a.keys() | b.keys())
    rows = [
        {"key": k, "before": a.get(k, NOT_RECORDED), "after": b.get(k, NOT_RECORDED)}
        for k in keys
        if a.get(k, NOT_RECORDED) != b.get(k, NOT_RECORDED)
    ]
    notes = []
    if any(r["key"] in ("host: hostname", "host: machine", "host: cpus") for r in rows):
        notes.append("another host, or the same with other hardware: every difference may come from that")
    if any(r["key"].startswith("GPU ") for r in rows):
        notes.append("other GPUs or another driver: every difference may come from that")
    marks = [x.document.bundle for x in (before, after)]
    if marks[0]["synthetic"] != marks[1]["synthetic"] or marks[0]["imported"] != marks[1]["imported"]:
        notes.append("one side is synthetic or imported and the other is not: they may not see the same things")
    return {"rows": rows[:MAX_ROWS], "omitted": max(0, len(rows) - MAX_ROWS), "alike": len(keys) - len(rows),
            "notes": notes}  # fmt: skip


def _facts(side: Analysed) -> dict[str, str]:
    d = side.document
    out = {f"host: {k}": str(d.host[k]) for k in ("hostname", "kernel", "machine", "cpus") if d.host[k]}
    for g in d.host["gpus"]:
        out[f"GPU {g['index']}: name"] = g["name"]
        out[f"GPU {g['index']}: driver"] = g["driver"]
    out.update({f"tool: {k}": str(v) for k, v in d.tool.items()})
    options = side.context.store.open_body.get("options")
    if isinstance(options, dict):
        out.update({f"capture: {str(k)[:MAX_TEXT]}": _text(v) for k, v in options.items()})
    out.update(_programs(side))
    return out


def _programs(side: Analysed) -> dict[str, str]:
    """By name of a program: how many processes, and their command lines where all have the same."""
    rows = side.context.store.sql(
        "SELECT comm, count(DISTINCT pid), min(command_line), max(command_line) FROM processes "
        "WHERE role IN ('workload', 'traced') GROUP BY comm ORDER BY comm"
    )
    out = {}
    for name, n, low, high in rows:
        shown = _text(name)
        out[f"program {shown}: processes"] = str(n)
        if low is not None and low == high:
            out[f"program {shown}: command line"] = _text(low)
    return out


def _text(value: Any) -> str:
    return str(value)[:MAX_TEXT]
