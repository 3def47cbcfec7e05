"""Chain: a thread slept while its process waited for a disk.

Effect: slow calls, the lateness of a rank, or the wait for a thread that was itself waited for. Cause: time in which
the same thread slept (uninterruptibly, or in a call that waits for requests given before; where an import does not
record the state of threads: was off its CPU) and a request to a block device, issued by its own process, was pending:
from its insertion into the queue to its completion. While it slept in a call that writes or syncs, also requests that
the kernel made on behalf of its process. Sleep in a call that never waits for a disk is no cause. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals, mounts, system_calls
from gpuaudit.analyze.causal import model, recorded, states
from gpuaudit.analyze.causal.during import DEVICE, PROCESS, THREAD, Columns, During, device_key, rows_during, thread_key
from gpuaudit.analyze.causal.leading import codes, leading
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.causal.states import Chosen, States
from gpuaudit.analyze.finding import Declaration
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.mounts import Mount, Place
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

DECLARATION = Declaration(
    id="blocking_io",
    kind="chain",
    title="Waiting for a disk",
    question="Did a thread sleep while a request of its own process to a disk was pending, and its calls were slow?",
    inputs=(
        ("block_io", ("start_ns", "duration_ns", "pid", "tid", "op", "comm", "major", "minor", "queue_ns", "for_pid")),
        ("off_cpu", ("start_ns", "duration_ns", "pid", "tid", "op", "prev_state", "syscall", "runqueue_ns")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
    ),  # mounts only name what was read: a capture without them proves as much
    thresholds=model.THRESHOLDS,
    texts={
        "blocking_io": "For {explained} of {effect_time} ({share}) of {effect} the thread slept in {calls} while "
        "{requests} on {culprit} were pending.",
        "blocking_io_unknown": "For {explained} of {effect_time} ({share}) of {effect} the thread was off its CPU "
        "(asleep or not was not recorded) while {requests} on {culprit} were pending.",
    },
    never_claims="Which file was read or written, or that the disk was slow: only that the thread slept while requests "
    "of its process were pending. Requests of other processes, the recorder's among them, are never its cause.",
    assumptions=("A thread that sleeps uninterruptibly while its process has a request pending waits for it.",),
)  # fmt: skip

MAX_OTHERS = 3
"""Other users of a disk that are named, those with most pending time first."""

INSERTED = "start_ns::BIGINT - least(coalesce(queue_ns, 0), start_ns)::BIGINT"
"""SQL: when a request was put into the queue, or issued where it went past it."""

COLUMNS = {
    "major": "coalesce(major::BIGINT, -1)", "minor": "coalesce(minor::BIGINT, -1)", "op": "op",
    "comm": "coalesce(comm, '')", "pid": "pid::BIGINT", "tid": "tid::BIGINT",
    "for_pid": "coalesce(for_pid::BIGINT, -1)", **mounts.COLUMNS,
}  # fmt: skip

OWN = During("block_io", PROCESS, COLUMNS, start=INSERTED)
OWN_THREAD = During("block_io", THREAD, COLUMNS, start=INSERTED)
ON_BEHALF = During(
    "block_io", "for_pid::UBIGINT", COLUMNS, "for_pid IS NOT NULL AND for_pid IS DISTINCT FROM pid", INSERTED
)
ON_DEVICE = During("block_io", DEVICE, COLUMNS, "major IS NOT NULL", INSERTED)


@dataclass(frozen=True)
class _Sleep:
    """Of one effect: when its thread may have waited for a disk, and which rows say so."""

    states: States
    any_request: Chosen
    """In a page fault, a call on files, or a state that was not recorded: a request of any thread of the process."""
    own_request: Chosen
    """In another call (ioctl): a request of the thread itself, for a driver sleeps for reasons of its own."""
    written: Chosen
    """In a call that writes: also what the kernel wrote on behalf of the process."""

    @property
    def pid(self) -> int:
        """Process of the thread."""
        return int(self.states.a["pid"][0])

    def key(self, what: During) -> int:
        """What a request must have in common with it."""
        return thread_key(self.pid, int(self.states.a["tid"][0])) if what is OWN_THREAD else self.pid


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Sleep of each effect's thread while requests of its process were pending, by disk."""
    why = states.unrecorded(context) or recorded.unrecorded(context, "block_io", "request to a disk")
    if why is not None:
        return why
    machine, mounted = system_calls.machine(context.store.open_body), mounts.read_mounts(context.store)
    sleeps = {key: _sleep(s, machine) for key, s in states.of_effects(context, effects).items()}
    causes: dict[str, list[Cause]] = {key: [] for key in sleeps}
    for kind, what in (("any_request", OWN), ("own_request", OWN_THREAD), ("written", ON_BEHALF)):
        chosen: dict[str, Chosen] = {key: getattr(x, kind) for key, x in sleeps.items()}
        wanted = {key: (x.key(what), x.states.asleep(chosen[key])) for key, x in sleeps.items()}
        for key, requests in rows_during(context, what, wanted).items():
            causes[key] += _by_device(context, sleeps[key].states, chosen[key], requests, mounted)
    return _with_others(context, causes, {key: x.pid for key, x in sleeps.items()})


def _sleep(s: States, machine: str) -> _Sleep:
    def called(names: frozenset[str]) -> Chosen:
        return s.in_calls(system_calls.numbers(names, machine))

    slept = (s.a["op"] == "blocked") & (s.uninterruptible | called(system_calls.ASYNCHRONOUS_IO))
    chosen = (slept | s.unknown) & ~called(system_calls.NO_DISK)
    files = called(system_calls.FILES) | (s.a["syscall"] == states.UNKNOWN)
    return _Sleep(s, chosen & files, chosen & ~files, chosen & (called(system_calls.WRITING) | s.unknown))


def _by_device(
    context: Context, s: States, chosen: Chosen, requests: Columns, mounted: Sequence[Mount]
) -> Iterator[Cause]:
    asleep, device = s.asleep(chosen), (requests["major"], requests["minor"])
    pending_ns = requests["end_ns"] - requests["start_ns"]
    named, rest = leading(codes(*device), pending_ns, np.ones(len(pending_ns), dtype=bool), device)
    for mine in named:
        at = int(np.flatnonzero(mine)[0])
        major, minor = int(device[0][at]), int(device[1][at])
        place = {"device": f"{major}:{minor}"} if major >= 0 else {}
        disk = f"disk {major}:{minor}" if major >= 0 else "a disk (device not recorded)"
        yield from _cause(context, _Part(s, chosen, requests, mine, mounted), asleep, disk, place)
    yield from _cause(context, _Part(s, chosen, requests, rest), asleep, "other disks, each for less", {})


@dataclass(frozen=True)
class _Part:
    """Intervals off the CPU (``chosen``), and requests that were pending then (``mine``)."""

    states: States
    chosen: Chosen
    requests: Columns
    mine: Chosen
    mounted: Sequence[Mount] = ()
    """Where file systems of the one disk may be found; none where the requests are to several."""


def _cause(context: Context, part: _Part, asleep: Intervals, disk: str, subject: Mapping[str, str]) -> Iterator[Cause]:
    s, requests, mine = part.states, part.requests, part.mine
    pending = intervals.from_bounds(requests["start_ns"][mine], requests["end_ns"][mine])
    time = intervals.intersect(asleep, pending)
    if not len(time):
        return
    touched = part.chosen & states.overlapping(s.a["start_ns"], s.a["end_ns"], time)
    place = _place(part, time)
    told, calls = _requests(requests, mine, place), _calls(s, touched, system_calls.machine(context.store.open_body))
    known = not s.unknown[touched].all()
    slept = f"slept in {calls}" if known else "was off its CPU"
    yield Cause(
        culprit=disk, time=time, evidence=_evidence(context, part, place),
        text="blocking_io" if known else "blocking_io_unknown",
        what=f"its thread {slept} while {told} on {disk} were pending",
        values={"requests": told, "calls": calls},
        subject=subject if place is None else {**subject, "file_system": place.device, "mounted_at": place.path},
    )  # fmt: skip


def _place(part: _Part, time: Intervals) -> Place | None:
    """The file system of the requests that were pending then, where they are of one."""
    touching = part.mine & states.overlapping(part.requests["start_ns"], part.requests["end_ns"], time)
    return mounts.place(part.mounted, {k: v[touching] for k, v in part.requests.items()}) if part.mounted else None


def _requests(requests: Columns, mine: Chosen, place: Place | None) -> str:
    """What was asked for, by which threads and of what: "reads by python3 of the ext4 file system mounted at /data"."""
    ops = sorted({f"{op}s" if op in {"read", "write"} else f"{op} requests" for op in requests["op"][mine].tolist()})
    names = sorted({c for c in requests["comm"][mine].tolist() if c})
    by = f" by {', '.join(names[:MAX_OTHERS])}" if names else " of its process"
    sectors = requests["size_bytes"][mine] > 0 if place else mine[mine]
    of = "" if place is None else f" of {place.text}" if sectors.all() else f", those with sectors of {place.text}"
    return " and ".join(ops) + by + of


def _calls(s: States, touched: Chosen, machine: str) -> str:
    """In which system calls it slept, by how much, the most first; a page fault is in none."""
    numbers = s.a["syscall"]
    most, _ = leading(numbers, s.runnable_from - s.a["start_ns"], touched, (numbers,), MAX_OTHERS)
    named = [int(numbers[np.flatnonzero(m)[0]]) for m in most]
    return " and ".join("a page fault" if n == states.UNKNOWN else system_calls.name(n, machine) for n in named)


def _evidence(context: Context, part: _Part, place: Place | None) -> Callable[[Intervals], tuple[str, ...]]:
    off, requests = part.states.evidence(context, part.chosen), part.requests
    pid = int(part.states.a["pid"][0])

    def rows(time: Intervals) -> tuple[str, ...]:
        touching = part.mine & states.overlapping(requests["start_ns"], requests["end_ns"], time)
        keys = np.stack([requests["leaf"][touching], requests["row"][touching]], axis=1).astype(np.int64)
        where = () if place is None else (context.book.listed("mounts", place.rows, "true"),)
        return (*off(time), context.book.listed("block_io", keys, f"(pid = {pid} OR for_pid = {pid})"), *where)

    return rows


def _with_others(context: Context, causes: Mapping[str, list[Cause]], pids: Mapping[str, int]) -> Causes:
    """What others had pending on the same disks meanwhile: a request may have waited behind theirs."""
    wanted = {}
    for key, found in causes.items():
        for n, c in enumerate(found):
            major, _, minor = c.subject.get("device", "").partition(":")
            if minor:
                wanted[_at(key, n)] = (device_key(int(major), int(minor)), c.time)
    rows = rows_during(context, ON_DEVICE, wanted)
    return {
        key: [
            replace(c, against=tuple(_others(c.time, rows[_at(key, n)], pids[key]))) if _at(key, n) in rows else c
            for n, c in enumerate(found)
        ]
        for key, found in causes.items()
    }


def _at(key: str, n: int) -> str:
    return f"{key} {n}"


def _others(time: Intervals, rows: Columns, own: int) -> Iterator[str]:
    theirs = (rows["pid"] != own) & (rows["for_pid"] != own)
    told = []
    most, _ = leading(rows["pid"], rows["end_ns"] - rows["start_ns"], theirs, (rows["pid"],), MAX_OTHERS)
    for his in most:
        at = int(np.flatnonzero(his)[0])
        pending = intervals.from_bounds(rows["start_ns"][his], rows["end_ns"][his])
        ns = intervals.measure(intervals.intersect(time, pending))
        told.append((-ns, int(rows["pid"][at]), str(rows["comm"][at]) or "a process"))
    for ns, pid, comm in sorted(told):
        yield f"for {duration(-ns)} of it requests of {comm} ({pid}) were pending on the same disk too"


DETECTOR = Detector(
    precedence=30,
    kinds=frozenset(
        {"slow_call", "api_silence", "throughput_drop", "late_arrival", "stall", model.WAITED_FOR, "slow_step"}
    ),
    scope="same thread, and a request of its process",
    find=find,
    refuted_by="The same calls as slow with the files in memory already (read once before), or on another disk.",
    experiment="Read the files once before the run so that they are in the page cache (or put them on a RAM disk), and "
    "capture again.",
    next_step="See what is read or written there (audit query, block_io of the process; lsof), and prefetch it, or "
    "move it off the thread that gives work to the GPU.",
)
