"""The waste ledger: what the observed time of each GPU went into, each nanosecond once.

Observed time of a GPU is what its NVML samples cover. Every nanosecond of it stands in exactly one row, by this
precedence: idle (utilisation 0), waiting for peers, host blocked in synchronisation, not classified. Unit: gpu_ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze import intervals
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Json, Quantity
from gpuaudit.analyze.gpu_time import GpuTime
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.money import Rate
from gpuaudit.analyze.syncs import SYNC_OPS
from gpuaudit.analyze.words import duration

KEYS: dict[str, str] = {
    "idle_allocated": "utilisation was 0 and NVML listed at least one process on the GPU",
    "idle_unallocated": "utilisation was 0 and NVML listed no process on the GPU; one that it cannot name may hold "
    "memory",
    "waiting_for_peers": "utilisation was not 0, and every process on the GPU had a thread in a collective, or in the "
    "synchronisation after it, that not all observed ranks had entered yet; the GPU itself may have had other work",
    "host_blocked": "utilisation was not 0, and every process on the GPU had a thread in a synchronisation call; the "
    "GPU itself may have been working",
    "not_classified": "none of the others, or not known: a busy GPU, several GPUs in one process, no utilisation or "
    "list of processes told",
}
"""Rows in order of precedence, with their definitions."""


@dataclass(frozen=True)
class Entry:
    """One row before it is written: ``pid`` None where nobody, or several processes together, held the GPU."""

    key: str
    gpu: GpuTime
    pid: int | None
    time: Intervals


def ledger(context: Context) -> list[Entry]:
    """Every row; per GPU the times are disjoint and together exactly the observed time."""
    hosts = _HostTime(context)
    single = _single_gpu_processes(context.gpus)
    out: list[Entry] = []
    for gpu in context.gpus:
        idle = gpu.time(gpu.utilization == 0)
        left_of_gpu = gpu.covered
        for pids, held in gpu.held_by():
            pid = pids[0] if len(pids) == 1 else None
            mine = intervals.intersect(left_of_gpu, held)
            left_of_gpu = intervals.subtract(left_of_gpu, held)
            known = bool(pids) and all(p in single for p in pids)
            waiting = intervals.intersect_all(hosts.waiting(p) for p in pids) if known else intervals.EMPTY
            inside = [intervals.union(hosts.waiting(p), hosts.blocked(p)) for p in pids]
            blocked = intervals.intersect_all(inside) if known else intervals.EMPTY
            for key, claim in (
                ("idle_allocated" if pids else "idle_unallocated", idle),
                ("waiting_for_peers", waiting),
                ("host_blocked", blocked),
                ("not_classified", mine),
            ):
                out.append(Entry(key, gpu, pid, intervals.intersect(mine, claim)))
                mine = intervals.subtract(mine, claim)
        out.append(Entry("not_classified", gpu, None, left_of_gpu))
    return [e for e in _merged(out) if len(e.time)]


def waste(context: Context, rate: Rate | None) -> Json:
    """Section ``waste`` of the document."""
    entries = ledger(context)
    observed = sum(intervals.measure(g.covered) for g in context.gpus)
    samples = (context.book.where("nvml_samples"),)
    if not observed:
        reason = context.quality.source_reason("nvml") or "no two NVML samples of one GPU in the bundle"
        total = Quantity(None, "gpu_ns", "derived", samples, "time covered by NVML samples, summed over GPUs", reason)
    else:
        total = Quantity(observed, "gpu_ns", "derived", samples, "time covered by NVML samples, summed over GPUs")
    rows = [_row(context, e, observed, rate) for e in entries]
    return {
        "rows": rows,
        "by_key": [
            _sum(k, entries, observed, rate, _evidence_of(rows, k)) for k in KEYS if any(e.key == k for e in entries)
        ],
        "observed": total.to_json(),
        "rate": None if rate is None else f"{rate.per_hour:f}",
        "currency": "" if rate is None else rate.currency,
        "notes": _notes(context, rate),
    }


def _merged(entries: Sequence[Entry]) -> list[Entry]:
    """One row per GPU, process and key, in that order."""
    order = {k: i for i, k in enumerate(KEYS)}
    out: dict[tuple[int, str, int, int], Entry] = {}
    for e in entries:
        place = (e.gpu.index, e.gpu.uuid, -1 if e.pid is None else e.pid, order[e.key])
        old = out.get(place)
        out[place] = e if old is None else Entry(e.key, e.gpu, e.pid, intervals.union(old.time, e.time))
    return [out[place] for place in sorted(out)]


def _single_gpu_processes(gpus: Sequence[GpuTime]) -> set[int]:
    """Processes that held one GPU only: of the others it is not known for which GPU a thread waited."""
    where: dict[int, set[str]] = {}
    for gpu in gpus:
        for who in gpu.holders:
            for pid in who:
                where.setdefault(pid, set()).add(gpu.uuid)
    return {pid for pid, uuids in where.items() if len(uuids) == 1}


class _HostTime:
    """Time in which at least one thread of a process waited, per process, read once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._blocked: dict[int, Intervals] = {}

    def waiting(self, pid: int) -> Intervals:
        return intervals.union(*(time for _, time in self._context.waiting.get(pid, [])))

    def blocked(self, pid: int) -> Intervals:
        if pid not in self._blocked:
            ops = ", ".join(f"'{op}'" for op in SYNC_OPS)
            a = self._context.store.arrays(
                f"SELECT start_ns::BIGINT AS a, coalesce(end_ns, {self._context.window.end_ns})::BIGINT AS b "
                f"FROM cuda_calls "
                f"WHERE op IN ({ops}) AND pid = {pid} ORDER BY 1, 2"
            )
            self._blocked[pid] = intervals.from_bounds(a["a"], a["b"])
        return self._blocked[pid]


def _row(context: Context, e: Entry, observed: int, rate: Rate | None) -> Json:
    time = intervals.measure(e.time)
    evidence = _evidence(context, e)
    formula = f"observed time of the GPU in which {KEYS[e.key]}"
    return {
        "key": e.key, "gpu": e.gpu.uuid, "gpu_index": e.gpu.index, "pid": e.pid,
        "definition": KEYS[e.key],
        **_amounts(time, observed, rate, evidence, formula),
    }  # fmt: skip


def _sum(key: str, entries: Sequence[Entry], observed: int, rate: Rate | None, evidence: tuple[str, ...]) -> Json:
    time = sum(intervals.measure(e.time) for e in entries if e.key == key)
    return {"key": key, **_amounts(time, observed, rate, evidence, "sum of the rows with this key")}


def _amounts(time: int, observed: int, rate: Rate | None, evidence: tuple[str, ...], formula: str) -> dict[str, Json]:
    return {
        "gpu_time": Quantity(time, "gpu_ns", "derived", evidence, formula).to_json(),
        "share": Quantity(Fraction(time, observed), "share", "derived", evidence, "gpu_time / observed").to_json(),
        "money": None if rate is None else rate.of(time, evidence).to_json(),
    }


def _evidence_of(rows: Sequence[Json], key: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(i for r in rows if r["key"] == key for i in r["gpu_time"]["evidence"]))


def _evidence(context: Context, e: Entry) -> tuple[str, ...]:
    book = context.book
    out = [book.where("nvml_samples", e.gpu.where)]
    if e.key != "idle_unallocated":
        out.append(book.where("nvml_processes", e.gpu.where if e.pid is None else f"{e.gpu.where} AND pid = {e.pid}"))
    pids = [e.pid] if e.pid is not None else sorted({p for who in e.gpu.holders for p in who})
    who = f"pid IN ({', '.join(map(str, pids))})" if pids else "false"
    if e.key == "waiting_for_peers":
        mine = [c for c in context.collectives if set(pids) & set(c.pids) and not c.not_evaluated]
        out += [book.where("nccl_calls", c.where) for c in mine]
    if e.key in ("waiting_for_peers", "host_blocked"):
        ops = ", ".join(f"'{op}'" for op in SYNC_OPS)
        out.append(book.where("cuda_calls", f"op IN ({ops}) AND {who}"))
    return tuple(out)


def _notes(context: Context, rate: Rate | None) -> list[str]:
    out = ["Each nanosecond of observed GPU time stands in one row; precedence: " + ", ".join(KEYS) + "."]
    window = context.window.length_ns
    for g in context.gpus:
        missing = window - intervals.measure(intervals.clip(g.covered, context.window.start_ns, context.window.end_ns))
        if missing:
            out.append(
                f"GPU {g.index} ({g.uuid}): {duration(missing)} of the window of {duration(window)} are not "
                f"covered by samples and not counted."
            )
    if any(len(who) > 1 for g in context.gpus for who in g.holders):
        out.append(
            "Time of a GPU that several processes held together is not divided among them: it has no process id."
        )
    if any(not c.not_evaluated for c in context.collectives):
        out.append(
            "Waiting for peers is time of the host: ranks that were not observed would add to it, and work that "
            "the GPU had in that time would take from it. Without GPU timing it is a bound in neither direction."
        )
    refused = sum(int((~g.listed).sum()) for g in context.gpus)
    if refused:
        out.append(f"In {refused} samples NVML refused the list of processes: their time is not classified.")
    if context.window.sleeps:
        out.append("Time between clock readings in which the host was suspended is not observed and not counted.")
    if rate is not None:
        out.append(f"Money assumes {rate.per_hour:f} {rate.currency} per GPU-hour, as given by the user.")
    return out
