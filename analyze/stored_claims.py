"""What our evidence says to conclusions that another tool stored with its recording.

A stored conclusion names an operation and what it holds for the cause. It is believed in nothing: the calls of that
operation that have rows are looked up, of them the slow ones (as long as the p99 it states; where none is, longer than
three times the median it states; else all), and how much of their time the alleged cause covers on their own thread or
process. *Watched* is the part of it in which the cause would have been seen. Supported: it covers a quarter of the
watched time at least. Refuted: less than a twentieth. Unsupported: in between, or nothing to look at. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.model import HIGH, LEAST_SHARE, MEDIUM
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.effects.slow_calls import TIMES
from gpuaudit.analyze.effects.stalls import OF_WORKLOAD
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.store import MAX_TIME_NS, NOT_OWN, is_text

Verdict = Literal["supported", "refuted", "unsupported"]

MAX_CLAIMS = 40
"""Different claims that are judged, those stored most often first."""
MAX_THREADS = 32
"""Threads of an operation that are looked at, the first by their ids: tools of this kind follow main threads."""
FULL_PERCENT = 90
"""As ``input_starvation`` has it: at least so much of all CPUs in use leaves nobody a free one."""
SAMPLE_NS = 1_000_000_000
"""A sample of CPU use tells of the second before it: samplers read once a second."""


@dataclass(frozen=True)
class Claim:
    """Conclusions that name the same operation and the same cause; texts and figures are those of the last one."""

    tool: str
    op: str
    alleged: str
    count: int
    severity: str
    summary: str
    tail_ns: int | None
    usual_ns: int | None
    stated_off_cpu_ns: int | None
    where: str


@dataclass(frozen=True)
class Calls:
    """Calls of an operation, one row each, and those of them that are slow."""

    pid: npt.NDArray[np.int64]
    tid: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    slow: npt.NDArray[np.bool_]
    as_long: bool
    """Whether a call as long as the p99 that is stated has a row."""

    @property
    def threads(self) -> list[tuple[int, int]]:
        """Process and thread of each, the first :data:`MAX_THREADS`."""
        return sorted(set(zip(self.pid.tolist(), self.tid.tolist(), strict=True)))[:MAX_THREADS]

    def of(self, pid: int, tid: int, *, slow: bool) -> Intervals:
        """Time of one thread's calls."""
        mine = (self.pid == pid) & (self.tid == tid) & (self.slow | (not slow))
        return intervals.from_bounds(self.start[mine], self.end[mine])


@dataclass(frozen=True)
class Judgement:
    """A verdict with its numbers; null where there was nothing to count."""

    verdict: Verdict
    why: str
    calls: int = 0
    slow_ns: int | None = None
    watched_ns: int | None = None
    overlap_ns: int | None = None
    touched: int | None = None
    tables: tuple[str, ...] = ()


def claims(context: Context) -> tuple[list[Claim], int]:
    """Claims, and how many more there are than are judged."""
    rows = context.store.sql(
        "WITH c AS (SELECT *, unnest(string_split(coalesce(alleged, 'nothing'), ',')) AS what FROM stored_conclusions) "
        "SELECT tool, coalesce(op, ''), what, count(*), arg_max(severity, k), arg_max(summary, k), "
        "arg_max(tail_ns, k), arg_max(usual_ns, k), arg_max(alleged_off_cpu_ns, k) "
        "FROM (SELECT *, (start_ns, leaf, row) AS k FROM c) "
        "GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3"
    )
    out = [
        Claim(
            str(tool), str(op), str(what), int(n), str(severity), str(summary), _int(tail), _int(usual), _int(stated),
            " AND ".join((is_text("tool", tool), is_text("op", op) if op else "op IS NULL")),
        )
        for tool, op, what, n, severity, summary, tail, usual, stated in rows[:MAX_CLAIMS]
    ]  # fmt: skip
    return out, max(0, len(rows) - MAX_CLAIMS)


def _int(value: object) -> int | None:
    return None if value is None else int(str(value))


def judge(context: Context, claim: Claim) -> Judgement:
    """What the rows say to one claim."""
    look = _JUDGES.get(claim.alleged)
    if look is None:
        return Judgement("unsupported", "evidence absent: nothing in the bundle is compared with what it names")
    calls = _calls(context, claim)
    if not len(calls.pid):
        return _without_calls(context, claim)
    return look(context, claim, calls)


def _calls(context: Context, claim: Claim) -> Calls:
    a = context.store.arrays(
        "SELECT pid::BIGINT AS pid, tid::BIGINT AS tid, start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM cuda_calls "
        f"WHERE {is_text('op', claim.op)} AND {NOT_OWN} AND duration_ns IS NOT NULL ORDER BY a, leaf, row"
    )
    length = a["b"] - a["a"]
    slow = length >= (claim.tail_ns or MAX_TIME_NS)
    as_long = bool(slow.any())
    if not as_long and claim.usual_ns is not None:
        slow = length > int(TIMES.value) * claim.usual_ns
    if not slow.any():
        slow = np.ones(len(length), dtype=bool)
    return Calls(a["pid"], a["tid"], a["a"], a["b"], slow, as_long)


def _verdict(watched_ns: int, overlap_ns: int) -> Verdict:
    share = Fraction(overlap_ns, watched_ns) if watched_ns else Fraction(0)
    if watched_ns and share < LEAST_SHARE.value:
        return "refuted"
    return "supported" if share >= MEDIUM.value and watched_ns else "unsupported"


def _add_up(
    claim: Claim, calls: Calls, time_of: Callable[[int, int], tuple[Intervals, Intervals]], words: tuple[str, str, str],
    tables: tuple[str, ...],
) -> Judgement:  # fmt: skip
    """Slow time of each thread, of it what was watched, and of that what the cause covers."""
    slow = watched = overlap = touched = 0
    for pid, tid in calls.threads:
        cause, seen = time_of(pid, tid)
        mine = calls.of(pid, tid, slow=True)
        within = intervals.intersect(mine, seen)
        slow += intervals.measure(mine)
        watched += intervals.measure(within)
        overlap += intervals.measure(intervals.intersect(within, cause))
        chosen = (calls.pid == pid) & (calls.tid == tid)
        touched += _touching(calls.start[chosen], calls.end[chosen], cause)
    verdict = _verdict(watched, overlap)
    why = {"refuted": words[0], "supported": words[1]}.get(verdict, words[2])
    if not watched:
        why = "evidence absent: nothing that could show the cause was recorded while these calls ran"
    if claim.tail_ns and not calls.as_long:
        why += "; no call as long as it states has a row"
    return Judgement(verdict, why, len(calls.pid), slow, watched, overlap, touched, tables)


def _touching(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], time: Intervals) -> int:
    if not len(time):
        return 0
    at = np.searchsorted(time[:, 1], start, side="right")
    return int(((at < len(time)) & (time[np.minimum(at, len(time) - 1), 0] < end)).sum())


def _thread(pid: int, tid: int) -> str:
    return f"pid = {pid} AND tid = {tid}"


def _requested(pid: int) -> str:
    return f"(pid = {pid} OR for_pid = {pid})"


def _bounds(context: Context, table: str, where: str) -> Intervals:
    a = context.store.arrays(
        f"SELECT start_ns::BIGINT AS a, end_ns::BIGINT AS b FROM {table} WHERE {where} AND end_ns IS NOT NULL "
        "ORDER BY 1, 2"
    )
    return intervals.from_bounds(a["a"], a["b"])


def _hull(time: Intervals) -> Intervals:
    return intervals.single(int(time[0, 0]), int(time[:, 1].max())) if len(time) else intervals.EMPTY


def _off_cpu(context: Context, claim: Claim, calls: Calls) -> Judgement:
    """Time off a CPU of the calls' own threads; watched from a thread's first such row to its last."""

    def of(pid: int, tid: int) -> tuple[Intervals, Intervals]:
        off = _bounds(context, "off_cpu", _thread(pid, tid))
        return off, _hull(off)

    words = ("its thread was on a CPU for nearly all of these calls", "its thread was off a CPU during these calls",
             "its thread was off a CPU for a part of these calls that settles nothing")  # fmt: skip
    found = _add_up(claim, calls, of, words, ("cuda_calls", "off_cpu"))
    return _for_disks(context, calls, found) if found.verdict == "supported" else found


def _for_disks(context: Context, calls: Calls, found: Judgement) -> Judgement:
    """Who is off a CPU because it waits for a disk is not kept from a CPU, which such conclusions say."""
    waited = 0
    for pid, tid in calls.threads:
        off = intervals.intersect(calls.of(pid, tid, slow=True), _bounds(context, "off_cpu", _thread(pid, tid)))
        waited += intervals.measure(intervals.intersect(off, _bounds(context, "block_io", _requested(pid))))
    if not found.overlap_ns or Fraction(waited, found.overlap_ns) < HIGH.value:
        return found
    why = "its thread was off a CPU, and waited for disk requests of its own process, for no CPU"
    return replace(found, verdict="refuted", why=why, tables=(*found.tables, "block_io"))


def _block_io(context: Context, claim: Claim, calls: Calls) -> Judgement:
    """Disk requests of the calls' own process; watched from the host's first request to its last."""
    seen = _hull(_bounds(context, "block_io", "true"))

    def of(pid: int, tid: int) -> tuple[Intervals, Intervals]:  # noqa: ARG001 - a request is of a process
        return _bounds(context, "block_io", _requested(pid)), seen

    own = {pid for pid, _ in calls.threads}
    named = ", ".join(map(str, sorted(own))) or "0"
    ((mine,),) = context.store.sql(f"SELECT count(*) FROM block_io WHERE pid IN ({named}) OR for_pid IN ({named})")
    words = ("disk requests of its process do not overlap these calls" if mine else
             "every disk request is of another process, the recorder or the kernel: none is of the callers",
             "disk requests of its process were pending during these calls",
             "disk requests of its process overlap a part of these calls that settles nothing")  # fmt: skip
    return _add_up(claim, calls, of, words, ("cuda_calls", "block_io"))


def _host_cpu(context: Context, claim: Claim, calls: Calls) -> Judgement:
    """Seconds before samples with full CPUs; watched are the seconds before all samples."""
    full, seen = (
        _seconds(context, f"cpu_percent >= {FULL_PERCENT}"), _seconds(context, "cpu_percent IS NOT NULL"),
    )  # fmt: skip
    words = ("CPUs were free while these calls ran", "the CPUs of the host were full while these calls ran",
             "the CPUs of the host were full for a part of these calls that settles nothing")  # fmt: skip
    return _add_up(claim, calls, lambda pid, tid: (full, seen), words, ("cuda_calls", "host_samples"))  # noqa: ARG005


def _seconds(context: Context, where: str) -> Intervals:
    a = context.store.arrays(f"SELECT start_ns::BIGINT AS b FROM host_samples WHERE {where} ORDER BY 1")
    return intervals.from_bounds(np.maximum(a["b"] - SAMPLE_NS, 0), a["b"])


_JUDGES: dict[str, Callable[[Context, Claim, Calls], Judgement]] = {
    "off_cpu": _off_cpu, "block_io": _block_io, "host_cpu": _host_cpu,
}  # fmt: skip


def _without_calls(context: Context, claim: Claim) -> Judgement:
    """No call of the operation has a row. Of time off a CPU there is still what the workload's own rows say."""
    absent = "evidence absent: no call of this operation has a row"
    if claim.alleged not in ("off_cpu", "block_io"):
        return Judgement("unsupported", absent)
    off, waited = _waited_for_disks(context)
    if not off:
        return Judgement("unsupported", absent)
    share = Fraction(waited, off)
    tables = ("off_cpu", "block_io")
    if claim.alleged == "off_cpu" and share >= HIGH.value:
        why = "no call of it has a row, and while off a CPU its process waited for its own disk requests, for no CPU"
        return Judgement("refuted", why, 0, None, off, off - waited, None, tables)
    if claim.alleged == "block_io" and share >= MEDIUM.value:
        why = f"{absent}; that the process waited for its own disk requests is shown, not that these calls did"
        return Judgement("unsupported", why, 0, None, off, waited, None, tables)
    return Judgement("unsupported", absent, 0, None, off, None, None, tables)


def _waited_for_disks(context: Context) -> tuple[int, int]:
    """(time off a CPU of the workload's threads, of it the part in which a request of the same process was pending)."""
    off = waited = 0
    threads = context.store.sql(
        f"SELECT pid, tid FROM off_cpu WHERE {OF_WORKLOAD} GROUP BY pid, tid ORDER BY sum(duration_ns) DESC, pid, tid "
        f"LIMIT {MAX_THREADS}"
    )
    for pid, tid in threads:
        mine = _bounds(context, "off_cpu", _thread(int(pid), int(tid)))
        disk = _bounds(context, "block_io", _requested(int(pid)))
        off += intervals.measure(mine)
        waited += intervals.measure(intervals.intersect(mine, disk))
    return off, waited


def all_off_cpu(context: Context) -> Sequence[tuple[int, int]]:
    """(process, ns off a CPU by rows), the most first."""
    rows = context.store.sql(
        "SELECT pid, sum(duration_ns)::HUGEINT FROM off_cpu WHERE duration_ns IS NOT NULL GROUP BY pid "
        "ORDER BY 2 DESC, 1"
    )
    return [(int(p), int(n)) for p, n in rows]
