"""Chain: a process frees memory and asks for as much again, over and over.

Effect: the time in allocator calls, slow calls, or a late arrival. Cause: time inside calls of the same process that
allocate a size of which it had freed a piece no longer than ``again_ns`` before, and inside the releases of such
pieces, where that happened at least ``least_again`` times. Keeping the piece would have saved both calls. Sizes are
those that were asked for; each release is counted for one allocation. Units: ns, bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.allocations import MAX_ADDRESS
from gpuaudit.analyze.call_meanings import FIRST, any_of
from gpuaudit.analyze.call_rows import Rows, pids_of
from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration, Quantity, Threshold
from gpuaudit.analyze.gpu_time import bounded
from gpuaudit.analyze.store import NOT_OWN

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

AGAIN = Threshold(
    "again_ns", 1_000_000_000, "ns",
    "chosen: a piece that is asked for again within a second was given back for nothing; steps are shorter than that",
)  # fmt: skip
LEAST = Threshold(
    "least_again", 20, "count", "chosen: a few may be the growth of a program; twenty are a habit", least=1
)

DECLARATION = Declaration(
    id="allocator_thrash",
    kind="chain",
    title="Memory freed and asked for again",
    question="Did a process free memory only to ask for as much again, over and over?",
    inputs=(("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "size_bytes", "device_pointer",
                            "return_code", "parent_op")),),
    thresholds=(*model.THRESHOLDS, AGAIN, LEAST),
    texts={
        "allocator_thrash": "For {explained} of {effect_time} ({share}) of {effect} the process freed memory and asked "
        "for the same size again within {again}: {times} times, {size} in all, of {sizes} sizes.",
    },
    never_claims="That the memory could have been kept: another allocation may have needed it between the two.",
    assumptions=("A piece is freed by the next call that frees its address.",),
)  # fmt: skip


MAX_CALLS = 2_000_000
"""Calls that are paired one by one, which takes about a second a million."""


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Pairs of a release and an allocation of the same size, by process."""
    from gpuaudit.analyze.chains.allocation_burst import MAKES, RELEASES  # noqa: PLC0415 - one reading of the calls
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    where = (
        f"{pids_of([e.pid for e in effects])} AND {context.means(any_of(MAKES, RELEASES))} AND {FIRST} AND {NOT_OWN} "
        "AND coalesce(return_code, 0) = 0"
    )
    columns = (
        "pid::BIGINT AS pid", "tid::BIGINT AS tid", f"({context.means(MAKES)})::BIGINT AS makes",
        f"{bounded('size_bytes')} AS size",
        f"CASE WHEN device_pointer < {MAX_ADDRESS} THEN device_pointer ELSE 0 END::BIGINT AS address",
    )  # fmt: skip
    rows = Rows.read(context, "cuda_calls", where, columns)
    if len(rows) > MAX_CALLS:
        return NotEvaluated(f"{len(rows)} allocator calls have rows of their own, at most {MAX_CALLS} are paired")
    again = int(context.policy.value(AGAIN, DECLARATION.id))
    least = int(context.policy.value(LEAST, DECLARATION.id))
    of_process = {pid: _of_process(context, rows.of(rows.a["pid"] == pid), again, least) for pid in _pids(effects)}
    out = {}
    for e in effects:
        cause = of_process[e.pid]
        if cause is not None:
            out[e.key] = [cause]
    return out


def _pids(effects: Sequence[Effect]) -> list[int]:
    return sorted({e.pid for e in effects})


def _of_process(context: Context, rows: Rows, again_ns: int, least: int) -> Cause | None:
    chosen, times, sizes = pairs(rows, again_ns)
    if times < least:
        return None
    mine = rows.of(chosen)
    evidence = mine.evidence(context)
    listed = evidence(mine.time)
    made = mine.a["makes"] == 1
    return Cause(
        culprit="the same sizes again", time=mine.time, evidence=evidence, text="allocator_thrash",
        what="its process freed memory and asked for the same size again",
        values={
            "again": Quantity(again_ns, "ns", "assumed"),
            "times": Quantity(times, "count", "derived", listed, "allocations of a size freed within again_ns before"),
            "size": Quantity(sum(mine.a["size"][made].tolist()), "bytes", "derived", listed, "sizes they asked for"),
            "sizes": Quantity(sizes, "count", "derived", listed, "different sizes among them"),
        },
    )  # fmt: skip


def pairs(rows: Rows, again_ns: int) -> tuple[npt.NDArray[np.bool_], int, int]:
    """Which calls free a piece whose size is allocated again in time, or allocate such a size; how often; sizes."""
    chosen = np.zeros(len(rows), dtype=bool)
    held: dict[int, int] = {}  # address → size of the piece there
    freed: dict[int, deque[tuple[int, int]]] = {}  # size → (end, row) of releases not yet matched, oldest first
    sizes = set[int]()
    times = 0
    a = rows.a
    columns = (a[c].tolist() for c in ("start_ns", "end_ns", "makes", "size", "address"))
    for i, (start, end, makes, size, address) in enumerate(zip(*columns, strict=True)):
        if not makes:
            piece = held.pop(address, 0)
            if piece:
                freed.setdefault(piece, deque()).append((end, i))
            continue
        waiting = freed.get(size, deque())
        while waiting and waiting[0][0] < start - again_ns:
            waiting.popleft()
        if waiting and waiting[0][0] <= start:
            chosen[[waiting.popleft()[1], i]] = True
            sizes.add(size)
            times += 1
        if address > 0 and size > 0:
            held[address] = size
    return chosen, times, len(sizes)


DETECTOR = Detector(
    precedence=118,
    kinds=frozenset({"allocator_calls", "slow_call", "late_arrival", "throughput_drop", "gpu_idle", "slow_step"}),
    scope="same process",
    find=find,
    refuted_by="The same time in allocator calls with no size asked for again.",
    experiment="Keep freed pieces in a pool (a caching allocator, cudaMallocAsync with a release threshold), and "
    "capture again: these calls are gone.",
    next_step="See which sizes come again (audit query, cuda_calls by size_bytes), and who asks for them in each step.",
)
