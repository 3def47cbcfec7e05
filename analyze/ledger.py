"""What the observed time of each GPU went into, exactly, each GPU-nanosecond once.

Observed time of a GPU is what its NVML samples cover. A sample of length t and utilisation u says that a kernel ran in
u·t of it, and not when. Its time is allotted in this order (all of it in GPU-ns):

    waiting_for_peers   w: every process on the GPU waited for a rank that was late, whatever the GPU did meanwhile
    of the rest t − w, idle (1 − u), spread evenly:
      host_blocked      in which every process was in a blocking call, or waited as above
      starved           in which the others were between two of their calls, or their engine had no request
      over_allocated    the rest, on a GPU that ran nothing in the capture while another GPU of its process did
      idle_allocated    the rest, with a process on the GPU; idle_unallocated without one
    of the rest t − w, busy u:
      throttled         × (1 − SM clock / highest SM clock), under a reason of power or heat
      memory_bound      of what is left, × (1 − busiest pipe), where GPM tells a DRAM wall
      useful            what is left
    not_classified      no utilisation, no list of processes, or throttled without a clock

``low`` and ``high`` bound each part: busy time lies where it does the part most, or least, good, in every stretch of
samples that say the same. The expected parts add up to the observed time; they are the same however samples are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.cumulative import Cumulative
from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime
from gpuaudit.analyze.host_time import HostTime
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.memory_wall import MemoryWall, Wall
from gpuaudit.analyze.rules.throttling import MASK

KEYS: dict[str, str] = {
    "useful": "a kernel ran, and nothing below claims its time; whether its work was needed is not known",
    "waiting_for_peers": "every process on the GPU had a thread in a collective, or in the synchronisation after it, "
    "that not all observed ranks had entered yet; the GPU itself may have had other work (low: time in which it had "
    "none for certain)",
    "host_blocked": "no kernel ran, and every process on the GPU was in a synchronisation or a blocking copy, or "
    "waited for peers",
    "starved": "no kernel ran, and processes on the GPU that were not blocked were between two of their recorded "
    "calls, or their inference engine had no request: nobody gave it work",
    "over_allocated": "a process held the GPU, which ran nothing in the whole capture, while another GPU of that "
    "process ran kernels",
    "idle_allocated": "no kernel ran, a process held the GPU, and why is not known",
    "idle_unallocated": "no kernel ran and NVML listed no process on the GPU; one that it cannot name may hold memory",
    "throttled": "of time in which kernels ran under a reason of power or heat, the part of the highest SM clock that "
    "was missing",
    "memory_bound": "of time in which kernels ran against the bandwidth of the GPU's memory (GPM), what its busiest "
    "pipe did not use: headroom, not all of which any change could win",
    "not_classified": "not known: no utilisation, no list of processes, or lowered clocks that NVML did not tell",
}
"""Parts with their definitions, in the order of a report."""

WASTE = tuple(k for k in KEYS if k not in ("useful", "memory_bound", "not_classified"))
"""What could have been avoided in principle. Headroom against the memory wall is told beside it and not in it: kernels
ran in that time, and how much of it any change could win is not known."""

PER_CENT = 100
MAX_SHORT_NS = 1 << 55
"""A year and more, in which sums of hundredths of a ns stay within int64."""
Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Amount:
    """GPU-ns, expected and within bounds."""

    expected: Fraction
    low: Fraction
    high: Fraction

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.expected + other.expected, self.low + other.low, self.high + other.high)


NOTHING = Amount(Fraction(0), Fraction(0), Fraction(0))


@dataclass(frozen=True)
class Entry:
    """One part of one GPU's time; ``pid`` None where nobody, or several processes together, held it."""

    key: str
    gpu: GpuTime
    pid: int | None
    amount: Amount


def ledger(context: Context) -> list[Entry]:
    """Every part that is not zero, by GPU, process and key; the expected ones of a GPU add up to its observed time."""
    book = _Book(context)
    out: dict[tuple[int, str, int, str], Entry] = {}
    for gpu in context.gpus:
        for pids, key, amount in book.parts(gpu):
            pid = pids[0] if len(pids) == 1 else None
            place = (gpu.index, gpu.uuid, -1 if pid is None else pid, key)
            old = out.get(place)
            out[place] = Entry(key, gpu, pid, amount + (old.amount if old else NOTHING))
    order = list(KEYS)
    found = [out[p] for p in sorted(out, key=lambda p: (p[0], p[1], p[2], order.index(p[3])))]
    return [e for e in found if e.amount.expected or e.amount.high]


@dataclass
class _Book:
    """What all GPUs share: host time, and on which GPUs each process was."""

    context: Context
    host: HostTime = field(init=False)

    def __post_init__(self) -> None:
        self.host = HostTime(self.context)

    @cached_property
    def _gpus_of(self) -> dict[int, list[GpuTime]]:
        where: dict[int, list[GpuTime]] = {}
        for gpu in self.context.gpus:
            for pid in sorted({p for who in gpu.holders for p in who}):
                where.setdefault(pid, []).append(gpu)
        return where

    @cached_property
    def _without_requests(self) -> dict[int, Intervals]:
        """Per process: time in which the engine it is of was idle (no running, no waiting request, no token)."""
        out: dict[int, Intervals] = {}
        for run in self.context.engine_runs:
            idle = intervals.from_bounds(
                [w.start_ns for w in run.windows if w.evaluable and not w.active],
                [w.end_ns for w in run.windows if w.evaluable and not w.active],
            )
            for pid in run.pids:
                out[pid] = intervals.intersect(out[pid], idle) if pid in out else idle
        return out

    def parts(self, gpu: GpuTime) -> Iterator[tuple[tuple[int, ...], str, Amount]]:
        """(processes, key, amount) of every part of one GPU's time; a key may come more than once."""
        wall = MemoryWall(self.context, gpu)
        for pids, chosen in _groups(gpu):
            samples = _Samples(gpu, chosen)
            yield from ((pids, key, a) for key, a in self._of_group(gpu, pids, samples, wall))

    def _of_group(
        self, gpu: GpuTime, pids: tuple[int, ...], samples: _Samples, wall: MemoryWall
    ) -> Iterator[tuple[str, Amount]]:
        waiting, blocked, starved = self._host_time(pids)
        seen = samples.covered
        parts = _Parts(samples, [intervals.intersect(x, seen) for x in (waiting, blocked, starved)])
        yield "not_classified", parts.unknown
        yield "waiting_for_peers", parts.waiting
        yield "host_blocked", parts.idle(1)
        yield "starved", parts.idle(2)
        rest = "over_allocated" if self._spare(gpu, pids) else "idle_allocated" if pids else "idle_unallocated"
        yield rest, parts.idle(3)
        yield from parts.busy(wall.within(intervals.subtract(seen, waiting)))

    def _host_time(self, pids: Sequence[int]) -> tuple[Intervals, Intervals, Intervals]:
        """Disjoint: waiting for peers; blocked; starved. Of a process on several GPUs it is not known for which."""
        if not pids:
            return intervals.EMPTY, intervals.EMPTY, intervals.EMPTY
        no_requests = [self._without_requests.get(p, intervals.EMPTY) for p in pids]
        if any(len(self._gpus_of[p]) > 1 for p in pids):
            return intervals.EMPTY, intervals.EMPTY, intervals.intersect_all(no_requests)
        waits = [self.host.waiting(p) for p in pids]
        stuck = [intervals.union(w, self.host.blocked(p)) for w, p in zip(waits, pids, strict=True)]
        idle = [intervals.union(s, self.host.starving(p), n) for s, p, n in zip(stuck, pids, no_requests, strict=True)]
        waiting, blocked, starved = (intervals.intersect_all(x) for x in (waits, stuck, idle))
        blocked = intervals.subtract(blocked, waiting)
        return waiting, blocked, intervals.subtract(starved, intervals.union(waiting, blocked))

    def _spare(self, gpu: GpuTime, pids: Sequence[int]) -> bool:
        """Whether it ran nothing in the whole capture while another GPU of every one of its processes did."""
        if not pids or (gpu.utilization != 0).any():
            return False
        return all(any((g.utilization > 0).any() for g in self._gpus_of[p] if g is not gpu) for p in pids)


def _groups(gpu: GpuTime) -> list[tuple[tuple[int, ...], npt.NDArray[np.bool_]]]:
    """Samples by the processes that held the GPU; where NVML refused the list they are of nobody, and unknown."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, who in enumerate(gpu.holders):
        groups.setdefault(tuple(sorted(who)) if gpu.listed[i] else (), []).append(i)
    out = []
    for pids in sorted(groups):
        chosen = np.zeros(len(gpu.starts), dtype=bool)
        chosen[groups[pids]] = True
        out.append((pids, chosen))
    return out


class _Samples:
    """Samples of one GPU and one set of processes, those that say the same side by side put together.

    ``busy`` is in per cent, -1 where it is not known; ``clock`` and ``highest`` are 0 where nothing lowered them, and
    -1 where they were lowered and NVML did not tell; ``length`` leaves out time in which the host slept.
    """

    def __init__(self, gpu: GpuTime, chosen: npt.NDArray[np.bool_]) -> None:
        spans = gpu.spans[chosen]
        awake = Cumulative(gpu.time(chosen))
        known = gpu.listed[chosen] & (gpu.utilization[chosen] != UNKNOWN)
        busy = np.where(known, np.minimum(gpu.utilization[chosen], PER_CENT), UNKNOWN)
        told = gpu.event_reasons[chosen] != UNKNOWN
        lowered = told & (gpu.event_reasons[chosen] & MASK != 0)
        clock, highest = gpu.clock_sm_mhz[chosen], gpu.clock_sm_max_mhz[chosen]
        clocks = (clock != UNKNOWN) & (highest > 0)
        state = np.stack(
            [
                busy,
                np.where(~lowered, 0, np.where(clocks, np.minimum(clock, highest), UNKNOWN)),
                np.where(~lowered, 0, np.where(clocks, highest, UNKNOWN)),
                told,
            ],
            axis=1,
        )
        first = np.ones(len(spans), dtype=bool)
        first[1:] = (state[1:] != state[:-1]).any(axis=1) | (spans[1:, 0] != spans[:-1, 1])
        at = np.flatnonzero(first)
        self.starts = spans[at, 0]
        self.ends = spans[np.append(at[1:], len(spans)) - 1, 1] if len(spans) else self.starts
        self.busy, self.clock, self.highest, self.told = (state[at, i] for i in range(4))
        self.length = awake.between(self.starts, self.ends)
        self.covered = gpu.time(chosen)


class _Parts:
    """Amounts of one group of samples, in 1/100 GPU-ns until they are given out."""

    def __init__(self, samples: _Samples, host: list[Intervals]) -> None:
        self._s = samples
        self._known = samples.busy != UNKNOWN
        # Python's own integers where hundredths of a ns would pass 2^63.
        kind = np.int64 if int(samples.length.sum()) <= MAX_SHORT_NS else object
        self._kind = kind
        busy = np.where(self._known, samples.busy, 0).astype(kind)
        length = np.where(self._known, samples.length, 0).astype(kind)
        inside = [Cumulative(x).between(samples.starts, samples.ends) for x in host]
        wait, blocked, starved = (np.where(self._known, x, 0).astype(kind) for x in inside)
        self._times = [wait, blocked, starved, length - wait - blocked - starved]
        self._share = busy
        self._all_busy = busy * length
        self._rest = length - wait

    @property
    def unknown(self) -> Amount:
        """Time without utilisation or without a list of processes."""
        ns = Fraction(int(self._s.length[~self._known].sum()))
        return Amount(ns, ns, ns)

    @property
    def waiting(self) -> Amount:
        """All of it; at least what busy time cannot fill."""
        wait = self._times[0]
        total = Fraction(int(wait.sum()))
        return Amount(total, _ns(np.maximum(wait * PER_CENT - self._all_busy, 0)), total)

    def idle(self, which: int) -> Amount:
        """The idle share of host time ``which``: 1 blocked, 2 starved, 3 the rest."""
        time = self._times[which]
        idle = (PER_CENT - self._share) * (self._times[0] + self._rest)
        low = np.maximum(time * PER_CENT - self._all_busy, 0)
        return Amount(_ns((PER_CENT - self._share) * time), _ns(low), _ns(np.minimum(time * PER_CENT, idle)))

    def busy(self, wall: Wall) -> Iterator[tuple[str, Amount]]:
        """Throttled, memory-bound, useful, and what cannot be told; ``wall`` weighs memory-bound time."""
        s, rest = self._s, self._rest
        expected = self._share * rest
        low = np.maximum(self._all_busy - self._times[0] * PER_CENT, 0)
        high = np.minimum(self._all_busy, rest * PER_CENT)
        bound = np.where(self._known, wall.between(s.starts, s.ends), 0)
        walled = np.where(self._known, wall.measure.between(s.starts, s.ends), 0).astype(self._kind) * PER_CENT
        sums = dict.fromkeys(("throttled", "memory_bound", "useful", "not_classified"), NOTHING)
        for clock, highest in np.unique(np.stack([s.clock, s.highest], axis=1), axis=0).tolist():
            mine = (s.clock == clock) & (s.highest == highest)
            e, lo, hi = (_ns(x[mine]) for x in (expected, low, high))
            if clock == UNKNOWN:
                sums["throttled"] += Amount(Fraction(0), Fraction(0), hi)
                sums["not_classified"] += Amount(e, Fraction(0), hi)
                continue
            left = Fraction(clock, highest) if highest else Fraction(1)
            untold = _ns(high[mine & (s.told == 0)])
            memory = _weighted(bound[mine], self._share[mine]) / wall.scale * left
            most = _ns(np.minimum(walled, high)[mine]) * left
            sums["throttled"] += Amount(e * (1 - left), lo * (1 - left), hi * (1 - left) + untold)
            sums["memory_bound"] += Amount(memory, Fraction(0), most)
            least = max(Fraction(0), lo * left - most - untold)
            sums["useful"] += Amount(e * left - memory, least, hi * left)
        yield from sums.items()


def _weighted(amounts: Array, per_cent: Array) -> Fraction:
    """Sum of amounts, each times a share in per cent; added by share, so that no product passes 2^63."""
    shares = np.unique(per_cent).tolist()
    return Fraction(sum(int(amounts[per_cent == x].sum()) * x for x in shares), PER_CENT)


def _ns(scaled: Array) -> Fraction:
    """The sum of amounts in 1/100 GPU-ns."""
    return Fraction(int(scaled.sum()), PER_CENT)
