"""Collectives put side by side: the same collective of one communicator, seen from each of its ranks.

The n-th collective call of a rank is the n-th of every other rank, because NCCL demands the same order on all of
them. That holds only if no call is missing from the evidence, so before anything is compared it is checked that
nothing was lost, that operation, element count, bytes, datatype and root agree at every index, and that no rank was
through with a collective before the last one had entered it (which is impossible, and shows a missing call or the
synchronisation of another device).

A rank's *arrival* is the start of its call. It *waits* in the call itself (blocking) or in the stream
synchronisation that waits for it (``syncs.py``): on its thread and stream, of the device, or through events
(asynchronous).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.evidence import RowKeys
from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.store import NOT_OWN, Store
from gpuaudit.analyze.syncs import NONE, Array, Syncs

COHORT = Threshold("min_cohort", 3, "count", "with two ranks nobody can say which was early and which late", least=3)
QUORUM = Threshold(
    "quorum", Fraction(1, 2), "share",
    "chosen: unless half of the ranks were observed, their median is not the communicator's",
)  # fmt: skip

NCCL_OK = "(return_code IS NULL OR return_code IN (0, 7))"
"""ncclSuccess = 0, ncclInProgress = 7 (ncclResult_t, nccl.h); a call that failed took part in no collective."""

COLLECTIVE = (
    f"{NCCL_OK} AND NOT regexp_matches(op, '(Send|Recv)(Config)?$') "
    "AND (parent_op IS NULL OR parent_op NOT LIKE 'nccl%')"
)
"""SQL condition of what all ranks of a communicator enter together: not point-to-point, and not made by another
collective."""

ALIVE = np.iinfo(np.int64).max
"""No exit of the process was seen."""

APART = "its ranks' times are of several hosts' clocks, and how far these are apart is not known"

SIGNATURE = ("count", "size_bytes", "datatype", "root")


@dataclass(frozen=True)
class Cohort:
    """How many ranks must have been observed: at least ``minimum``, and ``quorum`` of the communicator."""

    minimum: int = int(COHORT.value)
    quorum: Fraction = Fraction(QUORUM.value)


@dataclass(frozen=True)
class Collectives:
    """One communicator. Arrays have shape (ranks, collectives); times in ns, :data:`NONE` where there is none.

    ``not_evaluated`` says why the ranks cannot be compared; then the arrays are empty. ``unmatched`` counts collectives
    at the end that not every rank had reached. ``call_keys`` and ``sync_keys`` are (ranks, collectives,
    2): leaf and row. ``kind`` numbers the collectives by operation and arguments; ``last_moment`` is, per rank,
    when its process was seen to exit, or :data:`ALIVE`: a call that never returned ended with it.
    """

    comm_id: int
    nranks: int
    ranks: tuple[int, ...]
    pids: tuple[int, ...]
    arrival: Array
    call_end: Array
    sync_start: Array
    sync_end: Array
    call_keys: RowKeys
    sync_keys: RowKeys
    kind: Array
    last_moment: Array
    unmatched: int = 0
    not_evaluated: str = ""

    @property
    def name(self) -> str:
        """The identity as sixteen hexadecimal digits."""
        return f"{self.comm_id:016x}"

    @property
    def where(self) -> str:
        """SQL condition for the communicator's calls."""
        return f"comm_id = {self.comm_id} AND {COLLECTIVE} AND {NOT_OWN}"

    @property
    def count(self) -> int:
        """Collectives that every observed rank entered."""
        return int(self.arrival.shape[1])

    @property
    def last_arrival(self) -> Array:
        """Shape (collectives,): when the last observed rank entered."""
        return self.arrival.max(axis=0) if self.count else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class _RankCalls:
    rank: int
    pids: tuple[int, ...]
    nranks: int
    columns: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.columns["start_ns"])


def call_threads(store: Store, c: Collectives) -> Array:
    """Thread that made each call, shape (ranks, collectives)."""
    a = store.arrays(
        f"SELECT leaf::BIGINT AS leaf, row::BIGINT AS row, tid::BIGINT AS tid FROM nccl_calls WHERE {c.where} "
        "ORDER BY leaf, row"
    )
    at = np.searchsorted(a["leaf"] * _ROWS + a["row"], c.call_keys[..., 0] * _ROWS + c.call_keys[..., 1])
    out: Array = a["tid"][at]
    return out


_ROWS = 1 << 32
"""More than a leaf has rows: leaf and row as one number that sorts as they do."""


def read_collectives(
    store: Store, syncs: Syncs, nccl_lost: int, cohort: Cohort, *, several_clocks: bool = False
) -> list[Collectives]:
    """Every communicator with an identity, by identity. ``nccl_lost``: calls that the counters say were lost;
    ``several_clocks``: its ranks' times are not of one clock."""
    ids = store.sql(
        f"SELECT DISTINCT comm_id FROM nccl_calls WHERE comm_id IS NOT NULL AND {COLLECTIVE} AND {NOT_OWN} ORDER BY 1"
    )
    apart = APART if several_clocks else ""
    return [_read_one(store, int(i), syncs, nccl_lost, cohort, apart=apart) for (i,) in ids]


def _read_one(
    store: Store, comm_id: int, syncs: Syncs, nccl_lost: int, cohort: Cohort, *, apart: str
) -> Collectives:  # fmt: skip
    ranks = _read_ranks(store, comm_id)
    reason = apart or _why_not(store, ranks, nccl_lost, cohort)
    numbers = tuple(r.rank for r in ranks)
    pids = tuple(r.pids[0] for r in ranks)
    nranks = max((r.nranks for r in ranks), default=0)
    n = 0 if reason else min(len(r) for r in ranks)
    rows = [{k: v[:n] for k, v in r.columns.items()} for r in ranks]
    arrival = _stack([r["start_ns"] for r in rows], n)
    call_end = _stack([r["end_ns"] for r in rows], n)
    found = [syncs.following(pid, r) for pid, r in zip(pids, rows, strict=True)]
    sync_start, sync_end = _stack([f[0] for f in found], n), _stack([f[1] for f in found], n)
    if not reason:
        reason = _impossible(arrival, sync_end, numbers, equal_counts=len({len(r) for r in ranks}) == 1)
    if reason:
        none, keys = np.zeros((len(ranks), 0), dtype=np.int64), np.zeros((len(ranks), 0, 2), dtype=np.int64)
        of_none = np.zeros(0, dtype=np.int64)
        return Collectives(
            comm_id, nranks, numbers, pids, none, none, none, none, keys, keys, of_none, of_none, 0, reason
        )
    call_keys = np.stack([np.stack([r["leaf"], r["row"]], axis=1) for r in rows])
    sync_keys = np.stack([f[2] for f in found])
    unmatched = max(len(r) for r in ranks) - n
    signatures = rows[0]["signature"].tolist()
    number = {text: i for i, text in enumerate(sorted(set(signatures)))}
    kind = np.array([number[text] for text in signatures], dtype=np.int64)
    lived = np.array([_last_moment(store, pid) for pid in pids], dtype=np.int64)
    return Collectives(
        comm_id, nranks, numbers, pids, arrival, call_end, sync_start, sync_end, call_keys, sync_keys, kind, lived,
        unmatched,
    )  # fmt: skip


def _last_moment(store: Store, pid: int) -> int:
    """When the last process of that id was seen to exit, or :data:`ALIVE`."""
    found = store.sql(
        f"SELECT max(end_ns) FROM processes WHERE pid = {pid} GROUP BY start_ns ORDER BY start_ns DESC LIMIT 1"
    )
    return int(found[0][0]) if found and found[0][0] is not None else ALIVE


def _stack(parts: list[Array], n: int) -> Array:
    return np.stack(parts) if parts else np.zeros((0, n), dtype=np.int64)


def _read_ranks(store: Store, comm_id: int) -> list[_RankCalls]:
    signature = ", ".join(f"'{c} ' || coalesce({c}::VARCHAR, 'none')" for c in SIGNATURE)
    a = store.arrays(
        f"SELECT coalesce(rank, {NONE})::BIGINT AS rank, coalesce(nranks, 0)::BIGINT AS nranks, pid::BIGINT AS pid, "
        f"tid::BIGINT AS tid, concat_ws(', ', op, {signature}) AS signature, start_ns::BIGINT AS start_ns, "
        f"coalesce(end_ns, {NONE})::BIGINT AS end_ns, coalesce(stream::VARCHAR, '') AS stream, "
        f"leaf::BIGINT AS leaf, row::BIGINT AS row FROM nccl_calls WHERE comm_id = {comm_id} AND {COLLECTIVE} AND "
        f"{NOT_OWN} "
        "ORDER BY rank, start_ns, seq, leaf, row"
    )
    out = []
    for rank in np.unique(a["rank"]).tolist():
        mine = {k: v[a["rank"] == rank] for k, v in a.items()}
        pids = tuple(int(p) for p in np.unique(mine["pid"]))
        out.append(_RankCalls(int(rank), pids, int(mine["nranks"].max()), mine))
    return out


def _why_not(store: Store, ranks: list[_RankCalls], nccl_lost: int, cohort: Cohort) -> str:
    """Why the ranks cannot be compared, or nothing."""
    if not ranks:
        return "no collective of it succeeded"
    if nccl_lost:
        return f"{nccl_lost} records of nccl_calls were lost, so a collective's number on a rank is not known"
    for r in ranks:
        if r.rank < 0:
            return f"{len(r)} of its calls carry no rank"
        if len(r.pids) > 1:
            return f"rank {r.rank} was seen in {len(r.pids)} processes, expected one process per rank"
    sizes = {r.nranks for r in ranks}
    if len(sizes) > 1 or max(r.rank for r in ranks) >= max(sizes):
        return f"the ranks do not agree on the size of the communicator: {sorted(sizes)}"
    return _too_few(ranks, sizes.pop(), cohort) or _gap(store, ranks) or _disagreement(ranks)


def _too_few(ranks: list[_RankCalls], nranks: int, cohort: Cohort) -> str:
    seen = f"{len(ranks)} of {nranks} ranks observed"
    if len(ranks) < cohort.minimum:
        return f"{seen}, and at least {cohort.minimum} are needed to tell late from early"
    if len(ranks) < nranks * cohort.quorum:
        return f"{seen}, fewer than {cohort.quorum.numerator}/{cohort.quorum.denominator} of them"
    return ""


def _gap(store: Store, ranks: list[_RankCalls]) -> str:
    start = min(int(r.columns["start_ns"][0]) for r in ranks)
    end = max(int(r.columns["start_ns"][-1]) for r in ranks)
    pids = ", ".join(str(r.pids[0]) for r in ranks)
    found = store.sql(
        "SELECT start_ns, reason FROM gaps WHERE (table_name = 'nccl_calls' OR source = 'nccl') "
        f"AND (pid IS NULL OR pid IN ({pids})) AND start_ns <= {end} AND coalesce(end_ns, {end}) > {start} "
        "ORDER BY start_ns, reason LIMIT 1"
    )
    if found:
        return f"calls may be missing: {found[0][1]}"
    aggregated = store.sql(
        f"SELECT coalesce(sum(count), 0)::HUGEINT FROM call_totals WHERE op LIKE 'nccl%' AND pid IN ({pids}) "
        f"AND start_ns <= {end} AND end_ns > {start}"
    )[0][0]
    if aggregated:
        return f"{aggregated} calls were aggregated in the kernel, so a collective's number on a rank is not known"
    return ""


def _disagreement(ranks: list[_RankCalls]) -> str:
    n = min(len(r) for r in ranks)
    first = ranks[0]
    for r in ranks[1:]:
        differ = np.flatnonzero(r.columns["signature"][:n] != first.columns["signature"][:n])
        if len(differ):
            i = int(differ[0])
            return (
                f"collective {i} is not the same on all ranks: rank {first.rank} {first.columns['signature'][i]}; "
                f"rank {r.rank} {r.columns['signature'][i]}"
            )
    return ""


def _impossible(arrival: Array, sync_end: Array, ranks: tuple[int, ...], *, equal_counts: bool) -> str:
    """A rank that was through before another one came: then a call is missing from the evidence."""
    if not arrival.shape[1]:
        return "no collective was entered by every rank"
    seen = sync_end != NONE
    if not equal_counts and not seen.any():
        return "the ranks made different numbers of calls, and no synchronisation shows whether one is missing"
    early = seen & (sync_end < arrival.max(axis=0))
    if early.any():
        i = int(np.flatnonzero(early.any(axis=0))[0])
        who = ranks[int(np.flatnonzero(early[:, i])[0])]
        late = ranks[int(arrival[:, i].argmax())]
        return (
            f"rank {who} was through with collective {i} before rank {late} entered it, so a call is missing, or the "
            "synchronisation after it was that of another device"
        )
    return ""
