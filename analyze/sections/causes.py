"""Section: where the time of every effect went: a table of shares that adds up, "unexplained" in it.

An effect is time that somebody lost (slow calls, late arrivals …), with the detectors that looked at it. Each moment of
it is allotted once, in the order printed here; what no detector claimed is unexplained, and what its thread did in that
time is told as far as it was recorded, as no cause. Units: ns, shares 0–1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction

import numpy as np

from gpuaudit.analyze import intervals, system_calls
from gpuaudit.analyze.aggregates import Cell, text
from gpuaudit.analyze.causal import states, unended
from gpuaudit.analyze.causal.detect import UNEXPLAINED, detectors, shares
from gpuaudit.analyze.causal.leading import leading
from gpuaudit.analyze.causal.model import LEAST_NS, WAITED_FOR, Effect
from gpuaudit.analyze.context import Context, NotEvaluated
from gpuaudit.analyze.drafts import derived
from gpuaudit.analyze.effects import slow_calls
from gpuaudit.analyze.finding import Quantity, Section, SectionTable, Statement
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.words import duration

ORDER = 25

ID = "causes"
TITLE = "Where lost time went"
QUESTION = "How much of the time of slow calls, late arrivals and other losses is explained, by what, and how much not?"

MAX_EFFECTS = 60
"""Effects with rows of their own, those with most time and none too short to be told; the statement is of all."""

MAX_CALLS = 3
"""System calls that are named, those with most time first."""

SHARES = (
    ("effect", "of"), ("cause", "cause"), ("time", "time"), ("share", "share"), ("touched", "calls touched"),
    ("calls", "of calls"),
)  # fmt: skip
REST = (
    ("effect", "of"), ("time", "unexplained"), ("running", "on a CPU"), ("runnable", "waiting for one"),
    ("asleep", "asleep"), ("calls", "asleep in"), ("unknown", "off, state not recorded"),
)  # fmt: skip
DETECTORS = (("order", "order"), ("detector", "detector"), ("joins", "joins on"), ("state", "outcome"))

FIXED = (
    ("effect", "Time that a thread, a rank or a GPU lost, or whose pace a thread set. Each moment counts once."),
    ("share", "Time allotted to a cause over the time of the effect. The rows of one effect add up to 1."),
    ("unexplained", "What no detector claimed. It is no cause: what the thread did then is told where recorded."),
    ("calls touched", "Calls (arrivals, pauses) of the effect that share a moment with what was allotted."),
    ("on a CPU", "Time outside every recorded interval off a CPU of the thread, between its first and its last one, "
     "less what follows a wake-up whose switch back the kernel did not tell."),
)  # fmt: skip


NOTES = (f"Effects shorter than {duration(int(LEAST_NS.value))} are in the sums above and have no row.",)


def evaluate(context: Context) -> Section:
    """Every effect with its shares; what is known of the rest; what became of each detector."""
    found = context.causal
    effects = sorted(found.effects, key=lambda e: (e.kind == WAITED_FOR, -e.length_ns, e.key))
    table = _detectors(context)
    if not effects:
        reason = "no slow call, late arrival or other loss that a detector of causes looks at"
        return Section(ID, TITLE, QUESTION, "evaluated", reason, (), (table,), (), _terms(context))
    shown = [e for e in effects if e.length_ns >= LEAST_NS.value][:MAX_EFFECTS]
    rows = tuple(row for e in shown for row in _shares(context, e))
    tables = [SectionTable("shares", "Shares of each effect", SHARES, rows, NOTES, len(effects) - len(shown))]
    rest = tuple(_rest(context, shown))
    if rest:
        tables.append(SectionTable("unexplained", "What the threads did in the time left unexplained", REST, rest))
    kinds = sorted({e.kind for e in effects} - {WAITED_FOR})
    statements = tuple(_statement(context, kind, [e for e in effects if e.kind == kind]) for kind in kinds)
    reason = f"{len(effects)} effects"
    return Section(ID, TITLE, QUESTION, "evaluated", reason, statements, (*tables, table), (), _terms(context))


def _terms(context: Context) -> tuple[tuple[str, str], ...]:
    """Words of the section, with what makes a call slow by the policy of this analysis."""
    times, slowest, least = slow_calls.limits_of(context)
    slow = (
        f"Longer than {times} times the median of their operation in their process, and in its slowest {slowest}, of "
        f"{least} calls or more."
    )
    return (*FIXED, ("slow calls", slow))


def _statement(context: Context, kind: str, effects: Sequence[Effect]) -> Statement:
    """Of all effects of one kind, each moment of a thread once."""
    lost = explained = 0
    for thread in dict.fromkeys(e.thread for e in effects):
        mine = [e for e in effects if e.thread == thread]
        lost += intervals.measure(intervals.union(*(e.time for e in mine)))
        parts = [p.allotted for e in mine for p in context.causal.allotments[e.key].parts]
        explained += intervals.measure(intervals.union(*parts))
    evidence = tuple(dict.fromkeys(i for e in effects for i in e.evidence()))
    formula = "sum over threads of the time of their effects, each moment once"
    return Statement(
        "Time of effects of the kind {kind} (number: {effects}): {lost}, of which {explained} ({share}) is allotted to "
        "causes; the rest is unexplained.",
        {
            "kind": f"“{kind.replace('_', ' ')}”", "explained": derived(explained, "ns", evidence, "allotted"),
            "lost": derived(lost, "ns", evidence, formula),
            "share": derived(Fraction(explained, lost), "share", evidence, "explained / lost"),
            "effects": derived(len(effects), "count", evidence, "effects"),
        },
    )  # fmt: skip


def _shares(context: Context, effect: Effect) -> Iterator[tuple[Cell, ...]]:
    allotment = context.causal.allotments[effect.key]
    evidence = effect.evidence()
    told = [*(p.allotted for p in allotment.parts), allotment.unexplained]
    for share, time in zip(shares(effect, allotment), told, strict=True):
        touched = int(np.count_nonzero(intervals.coverage(effect.parts, time)))
        yield (
            text(effect.name), text(share.label), share.time, share.share,
            derived(touched, "count", evidence, "calls that share a moment with it"),
            derived(effect.count, "count", evidence, "calls, arrivals or pauses"),
        )  # fmt: skip


def _rest(context: Context, effects: Sequence[Effect]) -> Iterator[tuple[Cell, ...]]:
    """What the thread of each effect did in the time that nobody claimed."""
    if states.unrecorded(context) is not None:
        return
    machine = system_calls.machine(context.store.open_body)
    left = [e for e in effects if len(context.causal.allotments[e.key].unexplained)]
    found, seen = states.of_effects(context, left), _seen(context, {e.pid for e in left})
    for effect in left:
        if effect.key in found and (effect.pid, effect.tid) in seen:
            yield _doing(context, effect, found[effect.key], seen[effect.pid, effect.tid], machine)


def _seen(context: Context, pids: Collection[int]) -> dict[tuple[int, int | None], Intervals]:
    """Per thread: from its first interval off a CPU to the end of its last one, less what nobody knows of it."""
    unknown = unended.after_wakes(context, pids)
    rows = context.store.sql(
        f"SELECT pid, tid, min(start_ns), max(coalesce(end_ns, {context.window.end_ns})) FROM off_cpu GROUP BY pid, tid"
    )
    whole = {(int(pid), int(tid)): intervals.single(int(a), int(b)) for pid, tid, a, b in rows}
    return {t: intervals.subtract(span, unknown.get(t, intervals.EMPTY)) for t, span in whole.items()}


def _doing(context: Context, effect: Effect, s: states.States, seen: Intervals, machine: str) -> tuple[Cell, ...]:
    left = context.causal.allotments[effect.key].unexplained
    every, known = np.ones(len(s), dtype=bool), ~s.unknown
    evidence = (*effect.evidence(), *s.evidence(context, every)(left))

    def ns(time: Intervals, formula: str) -> Quantity:
        return derived(intervals.measure(intervals.intersect(left, time)), "ns", evidence, formula)

    return (
        text(effect.name), derived(intervals.measure(left), "ns", evidence, UNEXPLAINED),
        ns(intervals.subtract(seen, s.time(every)), "between its intervals off a CPU"),
        ns(s.runnable(known), "ready to run and off a CPU"), ns(s.asleep(known & (s.a["op"] != "preempted")), "asleep"),
        _asleep_in(s, known, left, machine), ns(s.time(s.unknown), "off a CPU, in a state not recorded"),
    )  # fmt: skip


def _asleep_in(s: states.States, known: states.Chosen, left: Intervals, machine: str) -> str | None:
    numbers = s.a["syscall"]
    touched = known & states.overlapping(s.a["start_ns"], s.runnable_from, left)
    most, _ = leading(numbers, s.runnable_from - s.a["start_ns"], touched, (numbers,), MAX_CALLS)
    named = [int(numbers[np.flatnonzero(m)[0]]) for m in most]
    return (
        text(", ".join("no system call" if n == states.UNKNOWN else system_calls.name(n, machine) for n in named))
        or None
    )


def _detectors(context: Context) -> SectionTable:
    """In the order in which time is allotted, with what each joins on and what became of it."""
    rows = []
    for n, known in enumerate(detectors(), start=1):
        outcome = context.causal.outcomes[known.declaration.id]
        state = f"not evaluated: {outcome.reason}" if isinstance(outcome, NotEvaluated) else outcome.reason
        rows.append((str(n), known.declaration.title, known.detector.scope, text(state)))
    return SectionTable("detectors", "Order in which time is allotted", DETECTORS, tuple(rows))
