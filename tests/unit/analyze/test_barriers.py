"""The barrier correlator: each way in which a host waits for a collective, told apart, with hand-made truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gpuaudit.analyze.barriers import HOW, Barriers, read_barriers
from gpuaudit.analyze.chains.late_rank import evaluate
from gpuaudit.analyze.context import Found
from gpuaudit.analyze.syncs import Syncs
from tests.scenes import MS, T0, US, S, Scene, collectives

AT = T0 + S
PID = 7


def collective(scene: Scene, at: int = AT, *, stream: int = 5, tid: int = PID, **more: Any) -> Scene:
    """One all-reduce that returns after 10 µs, of a communicator without identity."""
    return scene.add(
        "nccl_calls", **{
            "start_ns": at, "duration_ns": 10 * US, "pid": PID, "tid": tid, "op": "ncclAllReduce", "return_code": 0,
            "comm_handle": 70, "stream": stream, **more,
        },
    )  # fmt: skip


def only(scene: Scene) -> Barriers:
    store = scene.store()
    (barriers,) = read_barriers(store, Syncs(store)).values()
    return barriers


def told(scene: Scene) -> tuple[str, int, int]:
    """How, start and end of the wait for the only collective, relative to its call."""
    b = only(scene)
    assert b.calls.tolist() == [[AT, AT + 10 * US]]
    return HOW[int(b.how[0])], int(b.syncs[0, 0]) - AT, int(b.syncs[0, 1]) - AT


def same_stream(s: Scene) -> None:
    s.cuda(PID, "cudaStreamSynchronize", AT + MS, 2 * MS, stream=6)
    s.cuda(PID, "cudaStreamSynchronize", AT + 4 * MS, 2 * MS, stream=5)


def device(s: Scene) -> None:
    s.cuda(PID, "cudaDeviceSynchronize", AT + 4 * MS, 2 * MS)


def event(s: Scene) -> None:
    s.cuda(PID, "cudaEventRecord", AT + MS, US, handle=900, stream=5)
    s.cuda(PID, "cudaEventSynchronize", AT + 4 * MS, 2 * MS, handle=900, tid=8)


def other_stream(s: Scene) -> None:
    s.cuda(PID, "cudaEventRecord", AT + MS, US, handle=900, stream=5)
    s.cuda(PID, "cudaStreamWaitEvent", AT + 2 * MS, US, handle=900, stream=6)
    s.cuda(PID, "cudaStreamSynchronize", AT + 4 * MS, 2 * MS, stream=6, tid=8)


def polled_stream(s: Scene) -> None:
    """Asked from 4 ms on, not ready twice, done at 6 ms; the question before the call is of what came before."""
    s.cuda(PID, "cudaStreamQuery", AT - MS, US, stream=5)
    for at, code in ((4 * MS, 600), (5 * MS, 600), (6 * MS - US, 0)):
        s.cuda(PID, "cudaStreamQuery", AT + at, US, stream=5, return_code=code)


def polled_event(s: Scene) -> None:
    s.cuda(PID, "cudaEventRecord", AT + MS, US, handle=900, stream=5)
    for at, code in ((4 * MS, 600), (6 * MS - US, 0)):
        s.cuda(PID, "cudaEventQuery", AT + at, US, handle=900, return_code=code)


@pytest.mark.parametrize(
    ("how", "wait"),
    [
        ("same stream", same_stream), ("device", device), ("event", event),
        ("stream that waited for an event", other_stream), ("polling", polled_stream), ("polling", polled_event),
    ],
)  # fmt: skip
def test_every_way_of_waiting_is_found_and_named(how: str, wait: Callable[[Scene], None]) -> None:
    scene = collective(Scene().clock())
    wait(scene)
    assert told(scene) == (how, 4 * MS, 6 * MS)


def test_a_blocking_copy_on_the_default_stream_waits_for_a_collective_there() -> None:
    scene = collective(Scene().clock(), stream=0)
    scene.cuda(PID, "cudaMemcpy", AT + 2 * MS, MS, direction=3)
    scene.cuda(PID, "cudaMemcpy_ptds", AT + 3 * MS, MS, direction=2)
    scene.cuda(PID, "cudaMemcpy", AT + 4 * MS, 2 * MS, direction=2)
    assert told(scene) == ("blocking copy", 4 * MS, 6 * MS)


def test_the_same_copy_says_nothing_of_a_collective_on_another_stream() -> None:
    scene = collective(Scene().clock(), stream=5)
    scene.cuda(PID, "cudaMemcpy", AT + 4 * MS, 2 * MS, direction=2)
    assert told(scene)[0] == "none found"


def test_polling_of_another_thread_is_no_wait_of_this_one() -> None:
    """A watchdog that looks every 100 ms whether work is done waits for nobody."""
    scene = collective(Scene().clock())
    for at, code in ((4 * MS, 600), (104 * MS, 0)):
        scene.cuda(PID, "cudaStreamQuery", AT + at, US, stream=5, tid=8, return_code=code)
    assert told(scene)[0] == "none found"


def test_a_question_that_was_never_answered_with_yes_is_no_wait() -> None:
    scene = collective(Scene().clock())
    scene.cuda(PID, "cudaStreamQuery", AT + 4 * MS, US, stream=5, return_code=600)
    assert told(scene)[0] == "none found"


def test_a_synchronisation_counts_before_polling() -> None:
    scene = collective(Scene().clock())
    polled_stream(scene)
    scene.cuda(PID, "cudaStreamSynchronize", AT + 8 * MS, MS, stream=5)
    assert told(scene) == ("same stream", 8 * MS, 9 * MS)


def test_what_carries_a_wait_is_known_by_its_bounds() -> None:
    scene = collective(Scene().clock())
    same_stream(scene)
    b = only(scene)
    parts = b.syncs.repeat(2, axis=0)
    parts[1] += 1
    assert b.carries(parts).tolist() == [True, False]
    assert b.waited.tolist() == [6 * MS]


def test_a_late_rank_is_found_where_its_peers_poll() -> None:
    """The same scene with each synchronisation replaced by two questions: the same wait, to the microsecond."""
    scene = collectives("asynchronous", late={2: 30 * MS})
    (by_sync,) = found(scene)
    waits = scene.rows.pop("cuda_calls")
    for row in waits:
        at, took = row["start_ns"], row["duration_ns"]
        for start, code in ((at, 600), (at + took - US, 0)):
            scene.cuda(row["pid"], "cudaStreamQuery", start, US, stream=row["stream"], return_code=code)
    (by_polls,) = found(scene)
    assert by_polls.links[0].overlap_ns.value == by_sync.links[0].overlap_ns.value
    assert by_polls.subject == by_sync.subject


def found(scene: Scene) -> list[Any]:
    outcome = evaluate(scene.context())
    assert isinstance(outcome, Found), outcome
    return list(outcome.items)
