"""Section: steps of threads that feed a GPU, prefill and decode where the process is an inference server, KV cache.

Steps and kinds: ``analyze/steps.py``; slow ones: ``analyze/effects/slow_steps.py``, explained by the same detectors as
every other effect. Life of the KV cache and what moves through it: ``analyze/kv_lineage.py``. Units: ns, bytes.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from gpuaudit.analyze import family, intervals, kv_lineage
from gpuaudit.analyze.allocations import ALIVE
from gpuaudit.analyze.call_meanings import ALLOCATE, FIRST
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.drafts import derived
from gpuaudit.analyze.effects.slow_steps import KIND, name
from gpuaudit.analyze.finding import Quantity, Section, SectionTable, Statement
from gpuaudit.analyze.kv_lineage import FROM_HOST, TO_HOST, WAYS, Generation, Lineage, Move
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
LIVES = (
    ("process", "process"), ("generation", "generation"), ("made", "made after"), ("loaded", "after the load"),
    ("life", "existed for"), ("ended", "and then"), ("bytes", "bytes"), ("pieces", "allocations"), ("op", "by call"),
    ("place", "made at"), ("thread", "by thread"),
)  # fmt: skip
MOVES = (
    ("process", "process"), ("generation", "generation"), ("way", "way"), ("phase", "in steps"), ("bytes", "bytes"),
    ("copies", "copies"), ("steps", "steps"),
)  # fmt: skip
DEFINITIONS = (
    ("step", "From the first launch after a wait to the end of the next wait (a synchronisation, or a blocking copy "
     "to the host), on one thread."),
    ("kind", "How many graphs and kernels a step launches. The repeating kind is the one that most steps have."),
    ("decode, prefill", "In a process that an inference server was found to be, or that it started: steps of the "
     "repeating kind are decode steps, the others prefill or mixed ones; only where the repeating kind has at least "
     "half of the steps and other kinds exist. Kernels that a graph holds are not counted."),
    ("KV cache", "Allocations of 32 MiB and more made after the load of the weights, of which the host had filled less "
     "than half when the next step began, and that stayed: to the end of the capture, or, with others of the same size "
     "or at the same mapped addresses, for half of the time of the steps. What they are for is taken from that."),
    ("generation", "A life of the cache: while at least half of the most bytes that it ever had exist."),
    ("in steps", "The step that a copy begins in, of its thread, or of the busiest thread of the process where its own "
     "has none; before a step: made by the thread itself, after the step before."),
    ("not told by calls", "Whose request a block belongs to, and what kernels, graphs and NCCL move: buffers of NCCL "
     "calls are not recorded."),
)  # fmt: skip
LEAST_FOR_P99 = 100
"""Of fewer steps the value at rank ceil(0.99·n) is the longest one."""

DECODE = "decode"
MAX_NOTES = 8
MAX_STATED = 6
NO_STACK = "no stack was taken of these calls"
SWAPPED = {
    FROM_HOST: "{process}: {bytes} came back into the KV cache from the host in {copies} copies, in or before {steps} "
    "{phase} steps.",
    TO_HOST: "{process}: {bytes} left the KV cache for the host in {copies} copies, in or before {steps} {phase} "
    "steps.",
}


def evaluate(context: Context) -> Section:
    """A row per thread and kind, per generation of a cache, and per way and phase of what was copied through it."""
    title, question = "Steps", "What steps did threads repeat, which took far longer than usual, and why?"
    found = context.steps
    if not found:
        why = context.quality.source_reason("cuda") or "no thread gave a GPU work and waited for it again and again"
        return Section(ID, title, question, "not evaluated", why, definitions=DEFINITIONS)
    servers = _servers(context)
    phased = [(s, phases(s, s.pid in servers)) for s in found]
    rows = [r for s, names in phased for r in _rows(context, s, names)]
    lineages = [
        kv_lineage.read_lineage(context, pid, [(s, names) for s, names in phased if s.pid == pid])
        for pid in sorted({s.pid for s in found})
    ]
    lives = [_life(context, x, i, g) for x in lineages for i, g in enumerate(x.generations)]
    moves = [r for x in lineages for r in _moves(context, x)]
    tables = (
        SectionTable("steps", "Steps by kind", COLUMNS, tuple(rows[:MAX_ROWS]), (), max(0, len(rows) - MAX_ROWS)),
        SectionTable("kv_cache", "Lineage of the KV cache, from calls", LIVES, tuple(lives[:MAX_ROWS]), (),
                     max(0, len(lives) - MAX_ROWS)),
        SectionTable("kv_moves", "What was copied through the KV cache", MOVES, tuple(moves[:MAX_ROWS]), (),
                     max(0, len(moves) - MAX_ROWS)),
    )  # fmt: skip
    reason = f"threads that repeat steps: {len(found)}; of them in inference servers: "
    reason += str(sum(1 for s in found if s.pid in servers))
    notes = [
        f"KV cache of {context.process_name(x.pid)} ({x.pid}): not told: {x.reason}."
        for x in lineages
        if x.reason and x.pid in servers
    ]
    return Section(ID, title, question, "evaluated", reason, tuple(_swapped(context, lineages)),
                   tuple(t for t in tables if t.rows), (), DEFINITIONS, tuple(notes[:MAX_NOTES]))  # fmt: skip


def _servers(context: Context) -> frozenset[int]:
    """Processes that an engine listens in, and what they started."""
    rows = context.store.sql("SELECT DISTINCT pid FROM engines WHERE pid IS NOT NULL AND state = 'scraped' ORDER BY 1")
    return frozenset(p for (pid,) in rows for p in (int(pid), *family.descendants(context, int(pid))))


def phases(s: Steps, server: bool) -> tuple[str, ...]:
    """What the steps of each kind are, as far as calls can tell."""
    repeating = 2 * int((s.kinds == 0).sum()) >= len(s) and len(s.names) > 1
    if server:
        first, others = (DECODE, "prefill or mixed") if repeating else ("not told apart", "not told apart")
    else:
        first, others = ("repeating" if repeating else "step"), "step"
    return (first, *(others for _ in s.names[1:]))


def _rows(context: Context, s: Steps, phase: tuple[str, ...]) -> list[tuple[Quantity | str | None, ...]]:
    evidence = (context.book.where("cuda_calls", s.where),)
    out = []
    for k, kind in enumerate(s.names[:SHOWN_KINDS]):
        d = np.sort(s.durations[s.kinds == k])

        def q(value: int, unit: str, how: str) -> Quantity:
            return Quantity(value, unit, "derived", evidence, how)

        p99 = int(d[-(-len(d) * 99 // 100) - 1])
        tail = q(p99, "ns", "value at rank ceil(0.99·n)") if len(d) >= LEAST_FOR_P99 else None
        out.append((
            f"{s.tid} of {context.process_name(s.pid)} ({s.pid})", phase[k], name(kind),
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


def _life(context: Context, x: Lineage, index: int, g: Generation) -> tuple[Quantity | str | None, ...]:
    """A generation of a cache."""
    calls = f"pid = {x.pid} AND {context.means(ALLOCATE)} AND {FIRST} AND end_ns >= {g.begin}"
    made = (context.book.listed("cuda_calls", g.keys, calls),)
    last = min(g.end, context.window.end_ns)
    return (
        *_whose(context, x, index),
        derived(g.begin - context.window.start_ns, "ns", made, "return of its first allocation − start of the capture"),
        derived(g.begin - x.load_end, "ns", made, "return of its first allocation − end of the load"),
        derived(last - g.begin, "ns", made, "its end, or the end of the capture − return of its first allocation"),
        "alive at the end" if g.end == ALIVE else "freed",
        derived(g.bytes, "bytes", made, "most bytes at once, as they were asked for"),
        derived(len(g.keys), "count", made, "allocations"), g.op, g.place or NO_STACK, ", ".join(map(str, g.tids[:8])),
    )  # fmt: skip


def _whose(context: Context, x: Lineage, index: int) -> tuple[str, str]:
    return f"{context.process_name(x.pid)} ({x.pid})", f"{index + 1} of {len(x.generations)}"


def _copied(context: Context, x: Lineage, m: Move) -> tuple[str, ...]:
    if m.copies > kv_lineage.MAX_KEYS:
        return (context.book.where("cuda_calls", x.where),)
    return (context.book.listed("cuda_calls", np.concatenate(m.keys), x.where),)


def _moves(context: Context, x: Lineage) -> list[tuple[Quantity | str | None, ...]]:
    """Copies of a cache by way and phase, and those that may be of it and tell too little."""
    out: list[tuple[Quantity | str | None, ...]] = []
    for m in x.moves:
        rows = _copied(context, x, m)
        steps = derived(len(m.steps), "count", rows, "steps that they fall into") if len(m.steps) else None
        out.append((
            *_whose(context, x, m.generation), WAYS[m.way], m.phase,
            derived(m.bytes, "bytes", rows, "sum of their sizes"), derived(m.copies, "count", rows, "copies"), steps,
        ))  # fmt: skip
    untold = (context.book.where("cuda_calls", x.untold),) if x.generations else ()
    ((copies,),) = context.store.sql(f"SELECT count(*) FROM cuda_calls WHERE {x.untold}")
    if copies:
        size = derived(None, "bytes", untold, "", "these calls are recorded without addresses, or without sizes")
        count = derived(int(copies), "count", untold, "copies after the cache was made")
        out.append((f"{context.process_name(x.pid)} ({x.pid})", "", "not told, or other memory", "", size, count, None))
    return out


def _swapped(context: Context, lineages: list[Lineage]) -> list[Statement]:
    """What went to the host and came back in steps of each phase."""
    out = []
    for x in lineages:
        parts: dict[tuple[int, str], list[Move]] = {}
        for m in x.moves:
            if m.way in SWAPPED and len(m.steps):
                parts.setdefault((m.way, m.phase.removeprefix("before ")), []).append(m)
        for (way, phase), moves in parts.items():
            rows = tuple(dict.fromkeys(e for m in moves for e in _copied(context, x, m)))
            steps = np.unique(np.concatenate([m.steps for m in moves]))
            out.append(Statement(SWAPPED[way], {
                "process": f"{context.process_name(x.pid)} ({x.pid})", "phase": phase,
                "bytes": derived(sum(m.bytes for m in moves), "bytes", rows, "sum of the sizes of the copies"),
                "copies": derived(sum(m.copies for m in moves), "count", rows, "copies"),
                "steps": derived(len(steps), "count", rows, "steps that the copies fall into"),
            }))  # fmt: skip
    return out[:MAX_STATED]
