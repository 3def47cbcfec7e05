"""Chain: calls were slow inside a burst of allocations and releases of memory.

Effect: slow calls, the time in allocator calls, or the lateness of a rank. Cause: time inside calls of the same process
that allocate or free memory and belong to a burst: at least ``burst_calls`` of them, each begun no later than
``burst_gap_ns`` after the end of all before it. Such calls take the driver's lock, and a release waits for the device
(CUDA Runtime API, cudaFree), so that they slow each other and the calls of other threads. Units: ns; bytes as asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze.call_meanings import ALLOCATE, ALLOCATE_HOST, ALLOCATE_MANAGED, FIRST, FREE, FREE_HOST, any_of
from gpuaudit.analyze.call_rows import Rows, pids_of
from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration, Quantity, Threshold
from gpuaudit.analyze.gpu_time import bounded
from gpuaudit.analyze.store import NOT_OWN

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

BURST_CALLS = Threshold(
    "burst_calls", 20, "count",
    "chosen: a step of a model that has its memory makes no allocation, and one that grows makes a few", least=2,
)  # fmt: skip
BURST_GAP = Threshold(
    "burst_gap_ns", 1_000_000, "ns",
    "chosen: a loop that only allocates or frees comes to its next call within microseconds; a millisecond leaves room "
    "for an interpreter",
)  # fmt: skip

DECLARATION = Declaration(
    id="allocation_burst",
    kind="chain",
    title="Burst of allocations or releases",
    question="Were calls slow while their process allocated or released memory many times in a row?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "size_bytes", "parent_op")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
    ),
    thresholds=(*model.THRESHOLDS, BURST_CALLS, BURST_GAP),
    texts={
        "releases": "For {explained} of {effect_time} ({share}) of {effect} the process was in a burst of releases: "
        "{frees} releases and {allocations} allocations in bursts of {longest} at most, of {median} each (median).",
        "allocations": "For {explained} of {effect_time} ({share}) of {effect} the process was in a burst of "
        "allocations: {allocations} allocations ({size}) and {frees} releases in bursts of {longest} at most, of "
        "{median} each (median).",
    },
    never_claims="Why memory was released or asked for; nor that a call of the burst would have been fast alone.",
    assumptions=("Calls that follow each other within burst_gap_ns are one piece of work of the program.",),
)  # fmt: skip

MAKES = any_of(ALLOCATE, ALLOCATE_MANAGED, ALLOCATE_HOST)
RELEASES = any_of(FREE, FREE_HOST)


def read(context: Context, pids: Sequence[int]) -> Rows:
    """Calls of these processes that allocate or free, each once; ``makes`` is 1 for an allocation."""
    where = f"{pids_of(pids)} AND {context.means(any_of(MAKES, RELEASES))} AND {FIRST} AND {NOT_OWN}"
    columns = (
        "pid::BIGINT AS pid", "tid::BIGINT AS tid", f"({context.means(MAKES)})::BIGINT AS makes",
        f"{bounded('size_bytes')} AS size",
    )  # fmt: skip
    return Rows.read(context, "cuda_calls", where, columns)


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Bursts of each effect's process."""
    rows = read(context, [e.pid for e in effects])
    least = int(context.policy.value(BURST_CALLS, DECLARATION.id))
    gap = int(context.policy.value(BURST_GAP, DECLARATION.id))
    of_process = {pid: rows.of(rows.a["pid"] == pid) for pid in sorted({e.pid for e in effects})}
    bursts = {pid: mine.of(in_bursts(mine, least, gap)) for pid, mine in of_process.items()}
    return {e.key: list(_causes(context, e, bursts[e.pid], gap)) for e in effects}


def runs(rows: Rows, gap_ns: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Number of the run that each row belongs to: a row begins one where it starts later than the gap allows."""
    reach = np.maximum.accumulate(rows.a["end_ns"])
    begins = np.zeros(len(rows), dtype=np.int64)
    begins[1:] = rows.a["start_ns"][1:] > reach[:-1] + gap_ns
    return np.cumsum(begins)


def in_bursts(rows: Rows, least: int, gap_ns: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows belong to a run of at least so many."""
    if not len(rows):
        return np.zeros(0, dtype=bool)
    number = runs(rows, gap_ns)
    out: np.ndarray[tuple[int], np.dtype[np.bool_]] = np.bincount(number)[number] >= least
    return out


def _causes(context: Context, e: Effect, bursts: Rows, gap_ns: int) -> Iterator[Cause]:
    if not bursts.touching(e.time).any():
        return
    number = runs(bursts, gap_ns)
    mine = bursts.of(np.isin(number, number[bursts.touching(e.time)]))
    number = runs(mine, gap_ns)
    evidence = mine.evidence(context)
    rows = evidence(mine.time)
    makes = mine.a["makes"] == 1
    durations = np.sort(mine.a["end_ns"] - mine.a["start_ns"])
    ends = np.maximum.reduceat(mine.a["end_ns"], np.flatnonzero(np.r_[True, np.diff(number) > 0]))
    starts = mine.a["start_ns"][np.flatnonzero(np.r_[True, np.diff(number) > 0])]
    sizes = mine.a["size"][makes & (mine.a["size"] >= 0)].tolist()
    mostly = "releases" if 2 * int(makes.sum()) < len(mine) else "allocations"

    def told(value: int, unit: str, formula: str) -> Quantity:
        return Quantity(value, unit, "derived", rows, formula)

    yield Cause(
        culprit=f"burst of {mostly}", time=mine.time, evidence=evidence, text=mostly,
        what=f"its process was inside a burst of {mostly} of memory",
        values={
            "frees": told(int((~makes).sum()), "count", "calls of the bursts that free"),
            "allocations": told(int(makes.sum()), "count", "calls of the bursts that allocate"),
            "size": told(sum(sizes), "bytes", "sizes that those calls asked for"),
            "longest": told(int((ends - starts).max()), "ns", "first start to last end of the longest burst"),
            "median": told(int(durations[(len(durations) + 1) // 2 - 1]), "ns", "median duration of their calls"),
        },
        against=_against(e, mine),
    )  # fmt: skip


def _against(e: Effect, mine: Rows) -> tuple[str, ...]:
    """That the bursts were made by other threads, so that only a lock of the driver joins the two."""
    own = mine.a["tid"] == (e.tid if e.tid is not None else -1)
    touching = mine.touching(e.time)
    if (own & touching).any():
        return ()
    return ("the burst was made by another thread of the process: that the driver's lock joined the two is not seen",)


DETECTOR = Detector(
    precedence=120,
    kinds=frozenset({"slow_call", "late_arrival", "allocator_calls", "gpu_idle", "slow_step"}),
    scope="same process",
    find=find,
    refuted_by="The same calls as slow with no allocation or release of the process near them.",
    experiment="Keep memory instead of giving it back (no empty_cache, a larger pool, expandable segments), and "
    "capture again: without the burst the slow calls are gone.",
    next_step="Find the line that releases or allocates in a loop, and move it out of the step.",
)
