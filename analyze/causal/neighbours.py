"""What the culprit itself did: the process that ran instead of a thread, where it is one that was followed too.

A chain can then go on: rank 5 was late because its dispatcher had no CPU, because a tokenizer of the same host ran
there, which was encoding. That the culprit ran is shown by its own rows: time of the cause in which its thread was, by
its own intervals off the CPU, on one. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal import unended
from gpuaudit.analyze.finding import Link, Quantity
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import quoted
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

MAX_OPS = 3
"""Operations that are named, those with most calls in the time."""

MAX_SPANS = 64
"""Stretches of time that a query names one by one; past it the whole span is asked for."""

NOT_FOLLOWED = ("recorder", "attacher", "observer")


def follow(context: Context, pid: int, tids: Sequence[int]) -> Callable[[Intervals], tuple[Link, ...]]:
    """For :attr:`~gpuaudit.analyze.causal.model.Cause.further`: no link for a process that was not followed, or whose
    own rows do not show it on a CPU."""

    def links(time: Intervals) -> tuple[Link, ...]:
        told = role(context, pid)
        if not told or not len(time):
            return ()
        ran = intervals.intersect(time, on_cpu(context, pid, tids))
        if not len(ran):
            return ()
        return (_link(context, pid, tids, told, (time, ran)),)

    return links


def role(context: Context, pid: int) -> str:
    """What a followed process is, in words; empty for one that was not, and for what observed."""
    rows = context.store.sql(
        "SELECT role, rank, parent_pid, left(container_id, 12) FROM processes "
        f"WHERE pid = {int(pid)} ORDER BY seen_ns DESC, leaf DESC, row DESC LIMIT 1"
    )
    if not rows or rows[0][0] in NOT_FOLLOWED:
        return ""
    kind, rank, parent, container = rows[0]
    words = ["part of the workload" if kind == "workload" else "a traced process"]
    mine = {c.ranks[c.pids.index(pid)] for c in context.collectives if pid in c.pids}
    if mine or rank is not None:
        words.append(f"rank {', '.join(map(str, sorted(mine))) if mine else int(rank)}")
    if parent is not None and int(parent) in context.names:
        words.append(f"child of {context.process_name(int(parent))} ({int(parent)})")
    if container is not None:
        words.append(f"container {container}")
    return ", ".join(words)


def on_cpu(context: Context, pid: int, tids: Sequence[int]) -> Intervals:
    """Time between the first and the last own interval off the CPU of each thread in which it was on one, as far as is
    known: not after a wake-up whose switch back was not told."""
    out, unknown = [intervals.EMPTY], unended.after_wakes(context, [pid])
    for tid in sorted(set(tids)):
        a = context.store.arrays(
            "SELECT start_ns::BIGINT AS start_ns, end_ns::BIGINT AS end_ns FROM off_cpu "
            f"WHERE pid = {int(pid)} AND tid = {int(tid)} AND duration_ns IS NOT NULL ORDER BY start_ns"
        )
        if len(a["start_ns"]):
            off = intervals.from_bounds(a["start_ns"], a["end_ns"])
            whole = intervals.single(int(a["start_ns"].min()), int(a["end_ns"].max()))
            away = intervals.union(off, unknown.get((pid, tid), intervals.EMPTY))
            out.append(intervals.subtract(whole, away))
    return intervals.union(*out)


def _link(
    context: Context, pid: int, tids: Sequence[int], told: str, times: tuple[Intervals, Intervals]
) -> Link:  # fmt: skip
    time, ran = times
    threads = ", ".join(str(int(t)) for t in sorted(set(tids)))
    busy = list(_activity(context, pid, ran))
    evidence = (
        context.book.where("off_cpu", f"pid = {int(pid)} AND tid IN ({threads}) AND {_within(time)}"),
        context.book.where("processes", f"pid = {int(pid)}"),
        *(e for _, ids in busy for e in ids),
    )
    name, total, shown = context.process_name(pid), intervals.measure(time), intervals.measure(ran)
    doing = "; ".join(text for text, _ in busy) or "no call of it was recorded in that time"
    return Link(
        effect=f"{name} ({pid}) ran on that CPU",
        cause=f"{name} ({pid}) is {told}, by its own rows on a CPU for {duration(shown)} of it; {doing}",
        effect_ns=Quantity(total, "ns", "derived", evidence, "what was allotted to the cause before"),
        overlap_ns=Quantity(
            shown, "ns", "derived", evidence, "of it, the culprit's threads on a CPU by their own rows"
        ),
        explained=Quantity(Fraction(shown, total), "share", "derived", evidence, "overlap / effect"),
        evidence=tuple(dict.fromkeys(evidence)),
    )


def _activity(context: Context, pid: int, ran: Intervals) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Its calls by operation, and what it sent and received, where they touch the time."""
    for table in ("cuda_calls", "nccl_calls"):
        where = f"pid = {int(pid)} AND parent_ns IS NULL AND {_within(ran)}"
        rows = context.store.sql(
            f"SELECT op, count(*) FROM {table} WHERE {where} GROUP BY op ORDER BY 2 DESC, 1 LIMIT {MAX_OPS}"
        )
        for op, count in rows:
            yield (
                f"{count} call{'' if count == 1 else 's'} of {op}",
                (context.book.where(table, f"{where} AND op = {quoted(str(op))}"),),
            )
    where = f"pid = {int(pid)} AND size_bytes > 0 AND {_within(ran)}"
    (count,) = context.store.sql(f"SELECT count(*) FROM socket_io WHERE {where}")[0]
    if count:
        yield "traffic on its sockets", (context.book.where("socket_io", where),)


def _within(time: Intervals) -> str:
    """SQL: rows that share a moment with ``time``."""
    spans = time.tolist() if len(time) <= MAX_SPANS else [[int(time[0, 0]), int(time[-1, 1])]]
    terms = [f"(start_ns < {b} AND coalesce(end_ns, start_ns) > {a})" for a, b in spans]
    return terms[0] if len(terms) == 1 else f"({' OR '.join(terms)})"
