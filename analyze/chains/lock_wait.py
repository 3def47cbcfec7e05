"""Chain: a thread slept on a futex, a semaphore, a file lock or the lock of its address space until another woke it.

Effect: slow calls, the lateness of a rank, or the wait for a thread that was itself waited for. Cause: the time in
which the same thread slept in such a system call, from leaving the CPU to being woken, by the thread that woke it. For
the lock of the address space that is a call which maps or unmaps memory, or a page fault, in which it slept
uninterruptibly until another thread of its own process woke it: a disk wakes a thread from an interrupt or a kernel's
worker. A sleep that no thread ended (a time-out, or a wake-up that was not seen) is no cause and stays unexplained,
but where the thread asked for the same again at once, as CPython does every 5 ms for its lock, until one ended that.
What the other thread did in that time is looked at in the same way, and told by the next links. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import system_calls
from gpuaudit.analyze.call_meanings import BLOCKING_COPY, SYNCHRONISE, any_of
from gpuaudit.analyze.causal import model, states
from gpuaudit.analyze.causal.leading import codes, leading
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.causal.states import Chosen, States
from gpuaudit.analyze.finding import Declaration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

DECLARATION = Declaration(
    id="lock_wait",
    kind="chain",
    title="Waiting for a lock",
    question="Did a thread sleep until another one let it go on, while its calls were slow?",
    inputs=(
        ("off_cpu", ("start_ns", "duration_ns", "pid", "tid", "op", "prev_state", "syscall", "wake_ns", "waker_pid",
                     "waker_tid", "waker_comm", "runqueue_ns", "syscall_arg")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "parent_ns")),
    ),
    thresholds=model.THRESHOLDS,
    texts={
        "lock_wait": "For {explained} of {effect_time} ({share}) of {effect} the thread slept in {calls} until "
        "{culprit} woke it.",
    },
    never_claims="That the thread which woke it held a lock all that time: it ended the wait, and may have waited for "
    "something itself, such as the GPU.",
    assumptions=(
        "Who made the thread runnable is who it waited for.",
        "A wait that timed out, and was asked for again in the same system call with the same first argument within "
        "100 µs, is one wait.",
        "In a call that waits for the GPU (a synchronisation, a blocking copy) a thread that makes no calls itself and "
        "wakes the caller is the driver's, which says that the GPU is done: that is no lock, and not counted.",
    ),
)  # fmt: skip


Numbers = npt.NDArray[np.int64]

WAITS_FOR_GPU = any_of(SYNCHRONISE, BLOCKING_COPY)

OTHERS = "other threads, each after less"

AGAIN_NS = 100_000
"""Between a time-out and the same wait once more: chosen. CPython asks for its lock again some µs after each 5 ms
(``sys.getswitchinterval``)."""


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Sleep of each effect's thread in calls that wait for another thread, by the one that ended it."""
    why = states.untold(context)
    if why is not None:
        return why
    seen = states.of_effects(context, effects)
    of_gpu = {e.key for e in effects if WAITS_FOR_GPU.means(e.op)}
    callers = _callers(context) if of_gpu & set(seen) else frozenset()
    return {key: list(_by_waker(context, s, callers if key in of_gpu else None)) for key, s in seen.items()}


def _callers(context: Context) -> frozenset[tuple[int, int]]:
    """Threads that make calls of their own: what a driver's thread does not."""
    rows = context.store.sql("SELECT DISTINCT pid, tid FROM cuda_calls UNION SELECT DISTINCT pid, tid FROM nccl_calls")
    return frozenset((int(pid), int(tid)) for pid, tid in rows)


def _by_waker(context: Context, s: States, callers: frozenset[tuple[int, int]] | None) -> Iterator[Cause]:
    """``callers``: the only threads that count as wakers, where not all do."""
    s = s.uncut
    a, last = s.a, _last_of_each(context, s)
    who = (a["waker_pid"][last], a["waker_tid"][last])
    waited = (a["op"] == "blocked") & _for_a_lock(context, s) & _woken(*who)
    if callers is not None:
        wakers = zip(*(w.tolist() for w in who), strict=True)
        waited &= np.fromiter((w in callers for w in wakers), dtype=bool, count=len(waited))
    ns = s.runnable_from - a["start_ns"]
    named, rest = leading(codes(*who), ns, waited, who)
    for chosen in named:
        at = int(last[np.flatnonzero(chosen)[-1]])
        pid, tid = int(a["waker_pid"][at]), int(a["waker_tid"][at])
        culprit = _named(context, int(a["pid"][0]), pid, tid, str(a["waker_comm"][at]))
        yield from _cause(context, s, chosen, culprit, (pid, tid))
    yield from _cause(context, s, rest, OTHERS, None)


def _woken(pid: Numbers, tid: Numbers) -> Chosen:
    """By a thread. The idle task (0) is none that anybody waits for: an interrupt came while nothing ran."""
    out: Chosen = (pid > 0) & (tid > 0)
    return out


def _last_of_each(context: Context, s: States) -> Numbers:
    """For each row the one that ended its wait: itself, but after a time-out the last of those that asked again."""
    a, out = s.a, np.arange(len(s))
    machine = system_calls.machine(context.store.open_body)
    locks = np.flatnonzero((a["op"] == "blocked") & s.in_calls(system_calls.numbers(system_calls.LOCKS, machine)))
    if not len(locks):
        return out
    this, then = locks[:-1], locks[1:]
    asked_again = ~_woken(a["waker_pid"][this], a["waker_tid"][this]) & (a["syscall_arg"][this] != states.UNKNOWN)
    for column in ("syscall", "syscall_arg"):
        asked_again &= a[column][this] == a[column][then]
    asked_again &= a["start_ns"][then] - a["end_ns"][this] <= AGAIN_NS
    ends = np.flatnonzero(~np.append(asked_again, False))
    out[locks] = locks[ends[np.searchsorted(ends, np.arange(len(locks)))]]
    return out


def _for_a_lock(context: Context, s: States) -> Chosen:
    """Rows of threads that slept where they wait for a lock."""
    machine = system_calls.machine(context.store.open_body)
    memory = s.in_calls(system_calls.numbers(system_calls.ADDRESS_SPACE, machine)) | (s.a["syscall"] == states.UNKNOWN)
    sibling = (s.a["waker_pid"] == s.a["pid"]) & (s.a["waker_tid"] != s.a["tid"])
    out: Chosen = s.in_calls(system_calls.numbers(system_calls.LOCKS, machine)) | (memory & s.uninterruptible & sibling)
    return out


def _cause(
    context: Context, s: States, chosen: Chosen, culprit: str, thread: tuple[int, int] | None
) -> Iterator[Cause]:
    time = s.asleep(chosen)
    if not len(time):
        return
    machine = system_calls.machine(context.store.open_body)
    calls = " and ".join(sorted({_name(int(n), machine) for n in np.unique(s.a["syscall"][chosen])}))
    subject = {"culprit_pid": str(thread[0]), "culprit_tid": str(thread[1])} if thread else {}
    yield Cause(
        culprit=culprit, time=time, evidence=s.evidence(context, chosen),
        what=f"its thread slept in {calls} until {culprit} woke it", values={"calls": calls}, subject=subject,
        thread=thread, observer=thread is not None and thread[0] in context.observers,
    )  # fmt: skip


def _name(number: int, machine: str) -> str:
    return "a page fault" if number == states.UNKNOWN else system_calls.name(number, machine)


def _named(context: Context, own: int, pid: int, tid: int, comm: str) -> str:
    name = comm or "a thread without a recorded name"
    if pid == own:
        return f"{name} (thread {tid} of its own process)"
    return f"{name} (thread {tid} of {context.process_name(pid)} {pid})"


DETECTOR = Detector(
    precedence=40,
    kinds=frozenset({"slow_call", "late_arrival", model.WAITED_FOR, "slow_step"}),
    scope="same thread",
    find=find,
    refuted_by="The same calls as slow with the other thread stopped from taking the lock, or with nothing to hand on.",
    experiment="Take the other thread out of the way (one worker fewer, the interpreter's lock not shared: a process "
    "instead of a thread), and capture again.",
    next_step="See what the other thread was doing in that time (the next links, or audit query, off_cpu and "
    "cuda_calls of its tid), and hold the lock for less.",
)
