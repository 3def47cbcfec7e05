"""Section: steps of threads that feed a GPU, prefill and decode where the process is an inference server, KV cache.

Steps and kinds: ``analyze/steps.py``; slow ones: ``analyze/effects/slow_steps.py``, explained by the same detectors as
every other effect. Lineage of the KV cache: large allocations after the load (``residency.py``) that stayed and
that the host did not fill, and copies whose GPU address lies in one of them. Units: ns, bytes.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from gpuaudit.analyze import family, intervals, residency
from gpuaudit.analyze.allocations import ALIVE, MAX_ADDRESS
from gpuaudit.analyze.call_meanings import COPY, FIRST
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.effects.slow_steps import KIND, name
from gpuaudit.analyze.finding import Quantity, Section, SectionTable
from gpuaudit.analyze.steps import Steps

ORDER = 34

ID = "steps"
MAX_ROWS = 256
SHOWN_KINDS = 8
"""Kinds of one thread that are listed, the most frequent first."""

COLUMNS = (
    ("thread", "thread"), ("phase", "phase"), ("kind", "launches"), ("steps", "steps"), ("p50", "median"),
    ("p99", "p99"), ("max", "longest"), ("time", "time in all"), ("slow", "slow steps"),
    ("explained", "of their time explained"), ("by", "by"),
)  # fmt: skip
LINEAGE = (
    ("process", "process"), ("made", "made after"), ("bytes", "bytes"), ("pieces", "allocations"),
    ("in", "copied into it from the host"), ("out", "copied out of it to the host"),
)  # fmt: skip
DEFINITIONS = (
    ("step", "From the first launch after a wait to the end of the next wait (a synchronisation, or a blocking copy "
     "to the host), on one thread."),
    ("kind", "How many graphs and kernels a step launches. The repeating kind is the one that most steps have."),
    ("decode, prefill", "In a process that an inference server was found to be, or that it started: steps of the "
     "repeating kind are decode steps, the others prefill or mixed ones; only where the repeating kind has at least "
     "half of the steps and other kinds exist. Kernels that a graph holds are not counted."),
    ("KV cache", "Allocations of 32 MiB and more made after the load of the weights, alive at the end of the capture, "
     "of which the host filled less than half: what they are for is taken from that."),
)  # fmt: skip
LEAST_FOR_P99 = 100
"""Of fewer steps the value at rank ceil(0.99·n) is the longest one."""

MAX_BYTES = 1 << 40
"""Of one copy: more is not evidence."""


def evaluate(context: Context) -> Section:
    """A row per thread and kind, and a row per process with a reservation."""
    title, question = "Steps", "What steps did threads repeat, which took far longer than usual, and why?"
    found = context.steps
    if not found:
        why = context.quality.source_reason("cuda") or "no thread gave a GPU work and waited for it again and again"
        return Section(ID, title, question, "not evaluated", why, definitions=DEFINITIONS)
    servers = _servers(context)
    rows = [r for s in found for r in _rows(context, s, s.pid in servers)]
    lineage = [r for pid in sorted({s.pid for s in found}) if (r := _lineage(context, pid)) is not None]
    tables = (
        SectionTable("steps", "Steps by kind", COLUMNS, tuple(rows[:MAX_ROWS]), (), max(0, len(rows) - MAX_ROWS)),
        SectionTable("kv_cache", "Lineage of the KV cache, from calls", LINEAGE, tuple(lineage[:MAX_ROWS])),
    )
    reason = f"threads that repeat steps: {len(found)}; of them in inference servers: "
    reason += str(sum(1 for s in found if s.pid in servers))
    return Section(ID, title, question, "evaluated", reason, tables=tuple(t for t in tables if t.rows),
                   definitions=DEFINITIONS)  # fmt: skip


def _servers(context: Context) -> frozenset[int]:
    """Processes that an engine listens in, and what they started."""
    rows = context.store.sql("SELECT DISTINCT pid FROM engines WHERE pid IS NOT NULL AND state = 'scraped' ORDER BY 1")
    return frozenset(p for (pid,) in rows for p in (int(pid), *family.descendants(context, int(pid))))


def phase(s: Steps, k: int, server: bool) -> str:
    """What the steps of a kind are, as far as calls can tell."""
    repeating = 2 * int((s.kinds == 0).sum()) >= len(s) and len(s.names) > 1
    if not server:
        return "repeating" if k == 0 and repeating else "step"
    if not repeating:
        return "not told apart"
    return "decode" if k == 0 else "prefill or mixed"


def _rows(context: Context, s: Steps, server: bool) -> list[tuple[Quantity | str | None, ...]]:
    evidence = (context.book.where("cuda_calls", s.where),)
    out = []
    for k, kind in enumerate(s.names[:SHOWN_KINDS]):
        d = np.sort(s.durations[s.kinds == k])

        def q(value: int, unit: str, how: str) -> Quantity:
            return Quantity(value, unit, "derived", evidence, how)

        p99 = int(d[-(-len(d) * 99 // 100) - 1])
        tail = q(p99, "ns", "value at rank ceil(0.99·n)") if len(d) >= LEAST_FOR_P99 else None
        out.append((
            f"{s.tid} of {context.process_name(s.pid)} ({s.pid})", phase(s, k, server), name(kind),
            q(len(d), "count", "steps of the kind"), q(int(d[(len(d) + 1) // 2 - 1]), "ns", "rank ceil(n/2)"), tail,
            q(int(d[-1]), "ns", "longest"), q(int(d.sum()), "ns", "sum"), *_slow(context, s, kind),
        ))  # fmt: skip
    return out


def _slow(context: Context, s: Steps, kind: tuple[int, int]) -> tuple[Quantity | str | None, ...]:
    """Slow steps of a kind, and what explains them."""
    key = f"{KIND}:{s.pid}:{s.tid}:{kind[0]}:{kind[1]}"
    effect = next((e for e in context.causal.effects if e.key == key), None)
    if effect is None:
        return None, None, ""
    rows = effect.evidence()
    allotment = context.causal.allotments[key]
    explained = effect.length_ns - intervals.measure(allotment.unexplained)
    titles = dict.fromkeys(p.who[0].declaration.title for p in allotment.parts if p.allotted_ns)
    return (
        Quantity(effect.count, "count", "derived", rows, "steps that are slow by the thresholds of slow_calls"),
        Quantity(Fraction(explained, effect.length_ns), "share", "derived", rows, "allotted to causes / their time"),
        ", ".join(titles) or "nothing",
    )


def _lineage(context: Context, pid: int) -> tuple[Quantity | str | None, ...] | None:
    """The reservation of a process, and what was copied in and out of it."""
    r = residency.read_residency(context, pid)
    a = r.allocations
    if r.load is None:
        return None
    large = (a.begin > r.load.end_ns) & (a.end == ALIVE) & (a.size >= int(residency.LARGE.value))
    chosen = large & (2 * (a.once + a.again) < a.size)
    if not chosen.any():
        return None
    order = np.argsort(a.address[chosen])
    low, size = a.address[chosen][order], a.size[chosen][order]
    moved = {}
    for way, column, direction in (("in", "device_pointer", 1), ("out", "source_pointer", 2)):
        where = f"pid = {int(pid)} AND {COPY.condition} AND {FIRST} AND direction = {direction} AND size_bytes > 0"
        rows = context.store.arrays(
            f"SELECT {column}::BIGINT AS address, least(size_bytes, {MAX_BYTES})::BIGINT AS n FROM cuda_calls "
            f"WHERE {where} AND {column} < {MAX_ADDRESS} ORDER BY 1, 2"
        )
        at = np.searchsorted(low, rows["address"], side="right") - 1
        inside = (at >= 0) & (rows["address"] - low[np.maximum(at, 0)] < size[np.maximum(at, 0)])
        moved[way] = Quantity(
            sum(rows["n"][inside].tolist()), "bytes", "derived", (context.book.where("cuda_calls", where),),
            f"bytes of copies whose GPU address lies in one of the allocations (direction {direction})",
        )  # fmt: skip
    made = (context.book.where("cuda_calls", f"pid = {int(pid)} AND size_bytes IS NOT NULL AND {FIRST}"),)
    begin = int(a.begin[chosen].min()) - context.window.start_ns
    return (
        f"{context.process_name(pid)} ({pid})",
        Quantity(begin, "ns", "derived", made, "return of the first of its allocations − start of the capture"),
        Quantity(sum(size.tolist()), "bytes", "derived", made, "sizes asked for"),
        Quantity(len(size), "count", "derived", made, "allocations"), moved["in"], moved["out"],
    )  # fmt: skip
