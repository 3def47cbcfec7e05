"""Preempted, waiting for a lock, waiting for a disk: who is named, how much, and when nothing may be said."""

from __future__ import annotations

from typing import Any

import pytest

from gpuaudit.analyze.causal.findings import Findings
from gpuaudit.analyze.context import NotEvaluated
from gpuaudit.analyze.finding import Chain
from tests.rule_scenes.slow import AT, block, launches, off
from tests.scenes import MS, T0, US, S, Scene

SLEEP: dict[str, Any] = {"op": "blocked", "next_pid": 0, "next_tid": 0, "next_comm": "swapper/1", "runqueue_ns": 0}
FUTEX, READ, FSYNC, IOCTL, NANOSLEEP, IO_URING_ENTER, MMAP = 202, 0, 74, 16, 230, 426, 9
INTERRUPTIBLE, UNINTERRUPTIBLE, IDLE = 1, 2, 2 | 0x400


def found(scene: Scene) -> Findings:
    return scene.context().causal


def chains(scene: Scene | Findings) -> dict[tuple[str, str], Chain]:
    """The chains of a scene by detector and culprit."""
    result = found(scene) if isinstance(scene, Scene) else scene
    return {(c.detector, str(c.values["culprit"])): c for c in result.chains}


def told(scene: Scene | Findings) -> dict[tuple[str, str], int]:
    """ns explained by each."""
    return {k: int(c.impact.value or 0) for k, c in chains(scene).items()}


def sleeping(at: int, length: int, waker: tuple[int, int, str] | None = None, **more: Any) -> dict[str, Any]:
    woken = {} if waker is None else dict(zip(("waker_pid", "waker_tid", "waker_comm"), waker, strict=True))
    return {"start": at, "length": length, **SLEEP, "wake_ns": at + length, **woken, **more}


def test_a_neighbour_that_ran_instead() -> None:
    (chain,) = chains(off(launches(), AT + MS, 20 * MS)).values()
    assert (chain.detector, chain.values["culprit"], chain.impact.value) == ("preempted", "hog (99)", 20 * MS)
    assert chain.values["cpus"] == "CPU 1, to which the thread came back every time"


def test_a_neighbour_of_a_higher_priority_on_two_cpus() -> None:
    scene = off(launches(), AT, 10 * MS, priority=120, next_priority=49)
    off(scene, AT + 20 * MS, 10 * MS, priority=120, next_priority=49, cpu_out=3, cpu=0)
    (chain,) = chains(scene).values()
    assert chain.values["cpus"] == "CPUs 1, 3"
    assert chain.links[0].cause.endswith("hog (99) ran there, at a higher priority")


@pytest.mark.parametrize(
    "elsewhere",
    [{"pid": 8}, {"tid": 8}, {"start": AT - 21 * MS}, {"start": AT + 40 * MS}],
    ids=["another process", "another thread", "before", "after"],
)
def test_the_same_disturbance_somewhere_else_is_no_cause(elsewhere: dict[str, int]) -> None:
    scene = off(launches(), **{"start": AT + MS, "length": 20 * MS, **elsewhere})
    result = found(scene)
    assert told(result) == {}
    assert not isinstance(result.outcomes["preempted"], NotEvaluated)


def test_who_ran_when_a_sleeper_was_woken_is_not_guessed() -> None:
    """The neighbour ran when the thread went to sleep; who ran two milliseconds later was not seen."""
    scene = off(
        launches(), AT, 30 * MS, op="blocked", prev_state=INTERRUPTIBLE, wake_ns=AT + 2 * MS, runqueue_ns=28 * MS
    )
    assert told(scene) == {("preempted", "nobody that was seen"): 28 * MS}


def test_a_sleeper_that_comes_back_to_the_cpu_which_a_neighbour_takes_from_it() -> None:
    scene = off(launches(), AT, 10 * MS)
    off(scene, AT + 12 * MS, 12 * MS, op="blocked", prev_state=INTERRUPTIBLE, runqueue_ns=10 * MS)
    assert told(scene) == {("preempted", "hog (99)"): 20 * MS}
    away = off(launches(), AT, 10 * MS)
    off(away, AT + 12 * MS, 12 * MS, op="blocked", prev_state=INTERRUPTIBLE, runqueue_ns=10 * MS, cpu=0)
    assert told(away) == {("preempted", "hog (99)"): 10 * MS, ("preempted", "nobody that was seen"): 10 * MS}


def test_a_row_that_waited_longer_for_a_cpu_than_it_lasted_counts_for_what_it_lasted() -> None:
    scene = off(launches(), AT + 10 * MS, 5 * MS, op="blocked", prev_state=INTERRUPTIBLE, runqueue_ns=30 * MS)
    assert told(scene) == {("preempted", "nobody that was seen"): 5 * MS}


def test_of_many_neighbours_the_leading_ones_are_named_and_no_time_is_lost() -> None:
    scene = launches()
    for n in range(30):
        off(scene, AT + n * MS, (900 + n) * US, next_pid=1000 + n, next_tid=1000 + n, next_comm=f"kworker/{n}")
    result = found(scene)
    (effect,) = [e for e in result.effects if e.kind == "slow_call"]
    parts = {p.who[1].culprit: p.allotted_ns for p in result.allotments[effect.key].parts}
    assert sum(parts.values()) == sum((900 + n) * US for n in range(30))
    assert set(parts) == {*(f"kworker/{n} ({1000 + n})" for n in range(18, 30)), "other processes, each for less"}
    (chain,) = result.chains
    assert (chain.values["culprit"], chain.subject.get("culprit_pid")) == ("other processes, each for less", None)


def test_a_sibling_is_told_as_one() -> None:
    scene = off(launches(), AT, 20 * MS, next_pid=7, next_tid=9, next_comm="loader")
    assert list(told(scene)) == [("preempted", "loader (of its own process, 7)")]


@pytest.mark.parametrize("role", ["recorder", "attacher", "observer"])
def test_who_watches_is_a_share_and_never_a_chain(role: str) -> None:
    scene = off(launches(), AT, 20 * MS).process(99, "hog", role=role)
    result = found(scene)
    assert not result.chains
    (effect,) = [e for e in result.effects if e.kind == "slow_call"]
    assert [p.allotted_ns for p in result.allotments[effect.key].parts] == [20 * MS]


def test_a_lock_that_a_sibling_held() -> None:
    scene = off(launches(), **sleeping(AT, 30 * MS, (7, 9, "loader"), prev_state=INTERRUPTIBLE, syscall=FUTEX))
    chain = chains(scene)["lock_wait", "loader (thread 9 of its own process)"]
    assert chain.impact.value == 30 * MS
    assert chain.values["calls"] == "futex"
    assert chain.subject["culprit_tid"] == "9"


def test_a_lock_of_another_process() -> None:
    scene = off(launches(), **sleeping(AT, 30 * MS, (12, 13, "server"), prev_state=INTERRUPTIBLE, syscall=FUTEX))
    scene.process(12, "server")
    assert told(scene) == {("lock_wait", "server (thread 13 of server 12)"): 30 * MS}


@pytest.mark.parametrize("syscall", [MMAP, None])
def test_the_lock_of_the_address_space_that_a_sibling_held(syscall: int | None) -> None:
    fault = sleeping(AT, 30 * MS, (7, 9, "loader"), prev_state=UNINTERRUPTIBLE, syscall=syscall)
    result = found(off(launches(), **fault))
    assert told(result) == {("lock_wait", "loader (thread 9 of its own process)"): 30 * MS}
    (chain,) = result.chains
    assert chain.values["calls"] == ("mmap" if syscall else "a page fault")
    for other in ((0, 0, "swapper/1"), (12, 12, "kworker/0:1")):
        assert told(off(launches(), **sleeping(AT, 30 * MS, other, prev_state=UNINTERRUPTIBLE, syscall=syscall))) == {}


def test_what_ends_a_wait_for_the_gpu_is_a_lock_only_where_it_makes_calls_itself() -> None:
    scene = off(launches(), **sleeping(AT, 30 * MS, (7, 9, "cuda-EvtHandlr"), prev_state=INTERRUPTIBLE, syscall=FUTEX))
    waits = scene.mapped(
        lambda t, rows: [{**r, "op": "cudaStreamSynchronize"} for r in rows] if t == "cuda_calls" else rows
    )
    assert told(waits) == {}
    waits.cuda(7, "cudaMalloc", AT, 30 * MS, tid=9)
    assert told(waits) == {("lock_wait", "cuda-EvtHandlr (thread 9 of its own process)"): 30 * MS}


@pytest.mark.parametrize(
    "row",
    [
        sleeping(AT, 30 * MS, None, prev_state=INTERRUPTIBLE, syscall=FUTEX),
        sleeping(AT, 30 * MS, (0, 0, "swapper/1"), prev_state=INTERRUPTIBLE, syscall=FUTEX),
        sleeping(AT, 30 * MS, (7, 9, "loader"), prev_state=INTERRUPTIBLE, syscall=NANOSLEEP),
        sleeping(AT, 30 * MS, (7, 9, "loader"), prev_state=INTERRUPTIBLE),
    ],
    ids=["a time-out", "an interrupt", "a voluntary sleep", "no system call"],
)
def test_a_sleep_that_is_no_wait_for_a_lock_stays_unexplained(row: dict[str, Any]) -> None:
    assert told(off(launches(), **row)) == {}


def waits_5_ms_each(gap_ns: int, last: tuple[int, int, str] | None, words: tuple[int, ...]) -> Scene:
    """Waits of 5 ms for these futexes, one after the other; all but the last time out."""
    scene = launches()
    for n, word in enumerate(words):
        who = last if n == len(words) - 1 else None
        row = sleeping(AT + n * (5 * MS + gap_ns), 5 * MS, who, prev_state=INTERRUPTIBLE, syscall=FUTEX)
        off(scene, **row, syscall_arg=word)
    return scene


def test_a_wait_that_times_out_and_is_asked_for_again_is_one_wait() -> None:
    """As CPython waits for its lock, 5 ms at a time, until who has it lets it go."""
    scene = waits_5_ms_each(20 * US, (7, 9, "loader"), (0x7F00, 0x7F00, 0x7F00))
    assert told(scene) == {("lock_wait", "loader (thread 9 of its own process)"): 15 * MS}


@pytest.mark.parametrize(
    ("scene", "explained_ns"),
    [
        (waits_5_ms_each(200 * US, (7, 9, "loader"), (0x7F00, 0x7F00)), 5 * MS),
        (waits_5_ms_each(20 * US, (7, 9, "loader"), (0x7F00, 0x7F00, 0x7F04, 0x7F00)), 5 * MS),
        (waits_5_ms_each(20 * US, (7, 9, "loader"), (0x7F04, 0x7F00, 0x7F00)), 10 * MS),
        (waits_5_ms_each(20 * US, None, (0x7F00, 0x7F00)), 0),
    ],
    ids=["much later", "another one between", "another one first", "the last one times out too"],
)
def test_a_wait_that_timed_out_is_no_part_of_another_one(scene: Scene, explained_ns: int) -> None:
    assert sum(told(scene).values()) == explained_ns


def test_the_wait_for_a_lock_goes_on_with_what_its_holder_went_through() -> None:
    """Thread 7 waits for thread 9, which waits for thread 10, which has no CPU because of a neighbour."""
    scene = off(launches(), **sleeping(AT, 30 * MS, (7, 9, "loader"), prev_state=INTERRUPTIBLE, syscall=FUTEX))
    off(scene, **sleeping(AT + MS, 20 * MS, (7, 10, "io"), tid=9, prev_state=INTERRUPTIBLE, syscall=FUTEX))
    off(scene, AT + 2 * MS, 15 * MS, tid=10)
    result = found(scene)
    (chain,) = result.chains
    assert chain.detector == "lock_wait"
    assert [(link.overlap_ns.value, link.effect_ns.value) for link in chain.links] == [
        (30 * MS, 40 * MS), (20 * MS, 30 * MS), (15 * MS, 20 * MS),
    ]  # fmt: skip
    assert "hog (99)" in chain.links[-1].cause
    assert "as links of other chains" in result.outcomes["preempted"].reason


def test_threads_that_wait_for_each_other_are_followed_once() -> None:
    scene = off(launches(), **sleeping(AT, 30 * MS, (7, 9, "loader"), prev_state=INTERRUPTIBLE, syscall=FUTEX))
    off(scene, **sleeping(AT + MS, 20 * MS, (7, 7, "python3"), tid=9, prev_state=INTERRUPTIBLE, syscall=FUTEX))
    assert [e.thread for e in found(scene).effects if e.kind == "waited_for"] == [(7, 9)]


def read(start: int, length: int, **more: Any) -> dict[str, Any]:
    return {"start": start, "length": length, **SLEEP, "prev_state": UNINTERRUPTIBLE, "syscall": READ, **more}


def test_a_read_of_a_disk_from_its_insertion_into_the_queue() -> None:
    scene = block(off(launches(), **read(AT, 30 * MS)), AT + 5 * MS, 20 * MS, queue_ns=3 * MS)
    chain = chains(scene)["blocking_io", "disk 259:0"]
    assert chain.impact.value == 23 * MS
    assert chain.values["requests"] == "reads by python3"
    assert chain.values["calls"] == "read"


def test_a_page_fault_waits_for_a_disk_in_no_call() -> None:
    scene = block(off(launches(), **read(AT, 30 * MS, syscall=None)), AT, 30 * MS)
    assert chains(scene)["blocking_io", "disk 259:0"].values["calls"] == "a page fault"


def test_what_the_kernel_writes_on_behalf_of_a_process_that_syncs() -> None:
    sync = off(launches(), **read(AT, 30 * MS, syscall=FSYNC))
    written: dict[str, Any] = {"pid": 50, "op": "write", "comm": "kworker/u8:1", "for_pid": 7, "for_comm": "python3"}
    assert told(block(sync, AT, 30 * MS, **written)) == {("blocking_io", "disk 259:0"): 30 * MS}
    reading = off(launches(), **read(AT, 30 * MS))
    assert told(block(reading, AT, 30 * MS, **written)) == {}


def test_requests_that_were_given_before_are_waited_for_in_interruptible_sleep() -> None:
    asleep = read(AT, 30 * MS, prev_state=INTERRUPTIBLE, syscall=IO_URING_ENTER)
    assert told(block(off(launches(), **asleep), AT, 30 * MS)) == {("blocking_io", "disk 259:0"): 30 * MS}


@pytest.mark.parametrize(
    ("row", "request_of"),
    [
        (read(AT, 30 * MS), {"pid": 8}),
        (read(AT, 30 * MS, syscall=NANOSLEEP), {}),
        (read(AT, 30 * MS, prev_state=INTERRUPTIBLE), {}),
        (read(AT, 30 * MS, prev_state=IDLE), {}),
        (read(AT, 30 * MS, syscall=IOCTL), {"tid": 9}),
        (read(AT - 40 * MS, 30 * MS), {}),
    ],
    ids=["another process", "a sleep", "interruptible", "TASK_NOLOAD", "a driver", "another time"],
)
def test_sleep_that_is_no_wait_for_a_disk(row: dict[str, Any], request_of: dict[str, Any]) -> None:
    scene = block(off(launches(), **row), row["start"], 30 * MS, **request_of)
    result = found(scene)
    assert told(result) == {}
    assert not isinstance(result.outcomes["blocking_io"], NotEvaluated)


def test_two_disks_at_once_share_the_time_and_the_longer_goes_first() -> None:
    scene = off(launches(), **read(AT, 30 * MS))
    block(scene, AT, 10 * MS)
    block(scene, AT + 5 * MS, 25 * MS, major=8)
    result = found(scene)
    assert told(result) == {("blocking_io", "disk 8:0"): 25 * MS, ("blocking_io", "disk 259:0"): 5 * MS}
    against = chains(result)["blocking_io", "disk 259:0"].against
    assert any(a.startswith("5.00 ms more of the effect it covers too") for a in against)


def test_who_else_used_the_disk_is_told() -> None:
    scene = block(off(launches(), **read(AT, 30 * MS)), AT, 30 * MS)
    block(scene, AT + 10 * MS, 10 * MS, pid=70, comm="backup")
    against = chains(scene)["blocking_io", "disk 259:0"].against
    assert against == ("for 10.0 ms of it requests of backup (70) were pending on the same disk too",)


@pytest.mark.parametrize(("pid", "told_of"), [(None, True), (7, True), (8, False)])
def test_a_gap_in_what_a_detector_joins_on_is_told(pid: int | None, told_of: bool) -> None:
    scene = off(launches(), AT, 20 * MS)
    scene.add("gaps", start_ns=AT + 30 * MS, duration_ns=S, source="off_cpu", pid=pid, reason="the ring was full")
    (chain,) = chains(scene).values()
    note = "for 10.0 ms of the effects off_cpu was not recorded (gaps): the cause may cover more of them"
    assert (note in chain.against) == told_of


def test_without_states_or_requests_nothing_is_clear() -> None:
    outcomes = found(launches()).outcomes
    assert all(isinstance(outcomes[d], NotEvaluated) for d in ("preempted", "lock_wait", "blocking_io"))
    scene = off(launches(), AT, 20 * MS)
    scene.open_body["sources"] = [{"source": "block_io", "state": "recorded", "reason": ""}]
    assert not isinstance(found(scene).outcomes["blocking_io"], NotEvaluated)


def test_a_thread_still_asleep_at_the_end_waited_until_then() -> None:
    """The call returned after the last record of its thread: the interval reaches to the end of the capture."""
    scene = block(launches(slow=20 * S), AT, None)  # type: ignore[arg-type]
    scene.rows["block_io"][0]["error"] = None
    off(scene, AT + S, None, op="blocked", prev_state=UNINTERRUPTIBLE, syscall=READ)  # type: ignore[arg-type]
    until_the_end = T0 + 60 * S + US - (AT + S)
    assert told(scene) == {("blocking_io", "disk 259:0"): until_the_end}, "in the call, and in the silence after it"


def test_a_silence_in_which_the_calling_thread_had_no_cpu_or_waited_for_a_disk_is_theirs() -> None:
    """Ten seconds without a call: seven without a CPU, two asleep for a disk, one with a lock, which is no loss here:
    a thread that waits to be given work sleeps so, too."""
    scene = Scene().clock(end=T0 + 20 * S).process(7)
    for i in range(400):
        scene.cuda(7, "cudaLaunchKernel", T0 + (10 * S if i >= 200 else 0) + i * 5 * MS, 10 * US)
    quiet = T0 + S
    off(scene, quiet, 7 * S)
    block(scene, quiet + 7 * S, 2 * S)
    off(scene, quiet + 7 * S, 2 * S, op="blocked", prev_state=UNINTERRUPTIBLE, syscall=READ)
    off(scene, **sleeping(quiet + 9 * S, S, (7, 9, "loader"), prev_state=INTERRUPTIBLE, syscall=FUTEX))
    assert told(scene) == {("preempted", "hog (99)"): 7 * S, ("blocking_io", "disk 259:0"): 2 * S}


def test_two_effects_of_one_thread_count_a_moment_once() -> None:
    """A slow call inside another one of another operation, both preempted by the same: 20 ms were lost, not 40."""
    scene = launches()
    for i in range(60):
        scene.cuda(7, "cudaStreamSynchronize", T0 + i * 10 * MS + 100 * US, 20 * US)
    scene.cuda(7, "cudaStreamSynchronize", AT, 40 * MS)
    (chain,) = found(off(scene, AT, 20 * MS)).chains
    assert chain.impact.value == 20 * MS
    assert len(chain.links) == 2
    assert chain.values["effect_time"].value == 40 * MS  # type: ignore[union-attr]
