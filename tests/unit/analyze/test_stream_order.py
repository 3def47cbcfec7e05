"""Which synchronisation waits for a collective on a stream of its own: what events say, and nothing else."""

from __future__ import annotations

from gpuaudit.analyze.finding import Quantity
from gpuaudit.analyze.stream_order import (
    COLLECTIVE,
    DEVICE_SYNC,
    EVENT_SYNC,
    NONE,
    RECORD,
    STREAM_SYNC,
    WAIT,
    synchronisations,
)
from tests.scenes import COMM, MS, T0, US, S, Scene


def test_a_stream_waits_for_what_was_before_the_event() -> None:
    steps = [
        (COLLECTIVE, 0, "side", ""), (RECORD, 0, "side", "e"), (COLLECTIVE, 1, "side", ""), (WAIT, 1, "main", "e"),
        (STREAM_SYNC, 2, "main", ""), (STREAM_SYNC, 3, "side", ""),
    ]  # fmt: skip
    assert synchronisations(steps, 2) == [2, 3]


def test_a_stream_that_waits_for_nothing_tells_nothing() -> None:
    steps = [
        (COLLECTIVE, 0, "side", ""),
        (RECORD, 0, "main", "e"),
        (WAIT, 1, "other", "e"),
        (STREAM_SYNC, 2, "main", ""),
    ]
    assert synchronisations(steps, 1) == [NONE]


def test_events_hand_on_what_their_stream_waits_for() -> None:
    """Side → main → third stream → the event that the host waits for."""
    steps = [
        (COLLECTIVE, 0, "side", ""), (RECORD, 0, "side", "a"), (WAIT, 1, "main", "a"), (RECORD, 2, "main", "b"),
        (WAIT, 3, "third", "b"), (RECORD, 4, "third", "c"), (EVENT_SYNC, 5, "", "c"), (DEVICE_SYNC, 6, "", ""),
    ]  # fmt: skip
    assert synchronisations(steps, 1) == [5]


def test_an_event_is_what_it_was_last_recorded_as() -> None:
    steps = [
        (RECORD, 0, "side", "e"), (COLLECTIVE, 0, "side", ""), (EVENT_SYNC, 1, "", "e"), (RECORD, 2, "side", "e"),
        (EVENT_SYNC, 3, "", "e"),
    ]  # fmt: skip
    assert synchronisations(steps, 1) == [3]


def test_the_device_waits_for_all_and_the_first_wait_counts() -> None:
    steps = [
        (COLLECTIVE, 0, "a", ""), (COLLECTIVE, 1, "b", ""), (DEVICE_SYNC, 0, "", ""), (COLLECTIVE, 2, "a", ""),
        (STREAM_SYNC, 1, "b", ""), (DEVICE_SYNC, 2, "", ""),
    ]  # fmt: skip
    assert synchronisations(steps, 3) == [0, 0, 2]


SIDE, MAIN = 77, 5


def side_streams(ranks: int = 4, steps: int = 40, late: int = 2, late_ns: int = 30 * MS) -> Scene:
    """As PyTorch does it: collectives on a side stream by one thread, and another thread waits on the main stream."""
    s = Scene().clock()
    for step in range(steps):
        base = T0 + S + step * 100 * MS
        arrival = [base + r * 20 * US + (late_ns if r == late else 0) for r in range(ranks)]
        done = max(arrival) + 200 * US
        for r, at in enumerate(arrival):
            pid, event = 100 + r, 9_000 + r
            s.add(
                "nccl_calls", start_ns=at, duration_ns=9 * US, pid=pid, tid=pid + 1000, op="ncclAllReduce",
                return_code=0, comm_handle=7_000 + r, comm_id=COMM, rank=r, nranks=ranks, datatype=7, reduce_op=0,
                count=1_000, size_bytes=4_000, stream=SIDE,
            )  # fmt: skip
            s.cuda(pid, "cudaEventRecord", at + 12 * US, US, tid=pid + 1000, stream=SIDE, handle=event)
            s.cuda(pid, "cudaStreamWaitEvent", at + 15 * US, US, tid=pid + 1000, stream=MAIN, handle=event)
            s.cuda(pid, "cudaStreamSynchronize", at + 20 * US, max(done - at - 20 * US, 2 * US), stream=MAIN)
    return s


def test_the_wait_for_a_late_rank_is_seen_through_side_streams() -> None:
    (chain,) = side_streams().document().chains
    assert chain.subject["rank"] == "2"
    explained = chain.links[0].explained.value
    assert explained is not None
    assert explained > 0.9
    wait = chain.values["wait"]
    assert isinstance(wait, Quantity)
    assert wait.value is not None
    assert wait.value >= 40 * 3 * 29 * MS


def test_without_the_events_nothing_connects_the_two_streams() -> None:
    scene = side_streams()
    scene.rows["cuda_calls"] = [r for r in scene.rows["cuda_calls"] if r["op"] == "cudaStreamSynchronize"]
    assert scene.document().chains == []
