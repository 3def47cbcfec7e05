"""Chains that the recorded data itself speaks against: own work of the peers, two late ranks, delays from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from gpuaudit.analyze.chains.late_rank import DECLARATION, evaluate
from gpuaudit.analyze.context import Found
from gpuaudit.analyze.finding import Chain, Quantity
from gpuaudit.analyze.words import sentence
from tests.scenes import MS, T0, US, Mode, S, Scene, collectives

MODES: tuple[Mode, ...] = ("blocking", "asynchronous")


def chains(scene: Scene) -> dict[tuple[str, str], Chain]:
    """By communicator and rank."""
    outcome = evaluate(scene.context())
    assert isinstance(outcome, Found)
    found = [c for c in outcome.items if isinstance(c, Chain)]
    return {(c.subject["comm"][-1], c.subject["rank"]): c for c in found}


def ns(chain: Chain, name: str) -> int | None:
    q = chain.values[name]
    assert isinstance(q, Quantity)
    return None if q.value is None else int(q.value)


def step(
    scene: Scene, base: int, arrival: Mapping[int, int], *, work: int = 0, comm: int = 1, op: str = "ncclAllReduce"
) -> int:
    """One collective of ranks that arrive at ``base + arrival[rank]``; it ends 200 µs after the last, or ``work``."""
    done = base + max(work, *arrival.values()) + 200 * US
    for rank, (pid, at) in enumerate(arrival.items()):
        scene.add(
            "nccl_calls", start_ns=base + at, duration_ns=9 * US, pid=pid, tid=pid, op=op, return_code=0, datatype=7,
            comm_handle=7_000 + rank, comm_id=comm, rank=rank, nranks=len(arrival), count=8, size_bytes=32,
            stream=comm,
        )  # fmt: skip
        scene.cuda(pid, "cudaStreamSynchronize", base + at + 12 * US, done - base - at - 12 * US, stream=comm)
    return done


def steps(late: Sequence[int], *, work: int, offsets: Mapping[int, int], ranks: int = 4) -> Scene:
    """Twenty steps 100 ms apart; ``offsets`` (process → ns) apply in the steps ``late``."""
    scene = Scene().clock()
    for i in range(20):
        arrival = {p: (p - 100) * 10 * US + (offsets.get(p, 0) if i in late else 0) for p in range(100, 100 + ranks)}
        step(scene, T0 + S + i * 100 * MS, arrival, work=work)
    return scene


def test_peers_that_wait_for_their_own_work_do_not_wait_for_the_late_rank() -> None:
    """Every synchronisation ends when 60 ms of queued work are done; that rank 2 comes 30 ms late changes nothing."""
    chain = chains(steps(range(10), work=60 * MS, offsets={102: 30 * MS}))["1", "2"]
    wait, longer = ns(chain, "wait"), ns(chain, "longer")
    assert wait is not None
    assert longer is not None
    assert wait > 10 * 3 * 29 * MS
    assert longer == 0
    assert (chain.severity, chain.confidence, chain.impact.value) == ("notice", "low", 0)
    assert any("had mostly other things to wait for" in a for a in chain.against)


@pytest.mark.parametrize("mode", MODES)
def test_a_wait_that_other_collectives_lack_is_shown_by_them(mode: Mode) -> None:
    (chain,) = chains(collectives(mode, late={2: 30 * MS}, late_steps=range(0, 50, 2))).values()
    wait, longer = ns(chain, "wait"), ns(chain, "longer")
    assert wait is not None
    assert longer is not None
    assert 0.98 * wait < longer <= wait
    assert (chain.confidence, chain.severity, chain.impact.value) == ("high", "critical", longer)


@pytest.mark.parametrize("mode", MODES)
def test_without_a_comparison_the_wait_is_the_most_it_can_be(mode: Mode) -> None:
    (chain,) = chains(collectives(mode, late={2: 30 * MS})).values()
    assert ns(chain, "longer") is None
    assert chain.confidence == "medium"
    assert any(a.startswith("no comparison") and "the most that the wait can be" in a for a in chain.against)


def test_collectives_of_another_kind_are_no_comparison() -> None:
    scene = Scene().clock()
    for i in range(20):
        late = 30 * MS if i % 2 else 0
        arrival = {100: 0, 101: 10 * US, 102: late, 103: 20 * US}
        step(scene, T0 + S + i * 100 * MS, arrival, op="ncclAllReduce" if i % 2 else "ncclAllGather")
    assert ns(chains(scene)["1", "2"], "longer") is None


def test_of_two_late_ranks_neither_is_said_to_cost_all_of_it() -> None:
    chain = chains(steps(range(20), work=0, offsets={102: 30 * MS, 103: 33 * MS}, ranks=6))["1", "3"]
    wait, alone = ns(chain, "wait"), ns(chain, "wait_alone")
    assert wait is not None
    assert alone is not None
    assert alone * 8 < wait
    assert any("another rank came nearly as late" in a for a in chain.against)


def test_half_of_the_ranks_late_is_scatter_and_its_cost_is_told() -> None:
    outcome = evaluate(steps(range(20), work=0, offsets={102: 30 * MS, 103: 33 * MS}).context())
    assert isinstance(outcome, Found)
    assert list(outcome.items) == []
    assert "before the last had entered, but no single rank is late beyond their usual scatter" in outcome.reason


def test_a_delay_that_came_from_another_communicator_is_said_to() -> None:
    """Process 103 waits for 102 in communicator 1, and is late for that reason only in communicator 2."""
    scene = Scene().clock()
    for i in range(20):
        base = T0 + S + i * 100 * MS
        done = step(scene, base, {100: 0, 101: 10 * US, 102: 30 * MS, 103: 20 * US})
        step(scene, base, {200: 0, 201: 10 * US, 202: 20 * US, 103: done - base + 10 * US}, comm=2)
    found = chains(scene)
    assert set(found) == {("1", "2"), ("2", "3")}
    assert found["2", "3"].confidence == "low"
    assert any("it was itself waiting for a peer in communicator" in a for a in found["2", "3"].against)
    assert not any("itself waiting" in a for a in found["1", "2"].against)


def test_a_peer_that_died_in_its_call_stopped_waiting() -> None:
    scene = collectives("blocking", late={2: 2 * S}, late_steps=[49])
    last = max((r for r in scene.rows["nccl_calls"] if r["pid"] == 100), key=lambda r: r["start_ns"])
    before = ns(next(iter(chains(scene).values())), "wait")
    last["duration_ns"] = None
    died = last["start_ns"] + 500 * MS
    scene.rows["cuda_calls"] = [
        r for r in scene.rows["cuda_calls"] if r["pid"] != 100 or r["start_ns"] < last["start_ns"]
    ]
    scene.process(100, op="exited", duration_ns=died - (T0 - S), seen_ns=died)
    after = ns(next(iter(chains(scene).values())), "wait")
    assert before is not None
    assert after is not None
    assert abs(before - after - 1500 * MS) < 2 * MS


def test_the_sentence_names_what_the_share_is_of() -> None:
    (chain,) = chains(collectives("blocking", late={2: 30 * MS})).values()
    text = sentence(chain, DECLARATION)
    assert "% of their" in text
    assert "from the communicator's first arrival to its last end" in text
    assert "waited" not in text


def in_one_process(scene: Scene) -> Scene:
    """All ranks driven by one thread, as with ncclCommInitAll."""
    return scene.mapped(lambda _, rows: [{**r, "pid": 100, "tid": 100} if "tid" in r else r for r in rows])


def test_ranks_of_one_process_count_their_waits_once() -> None:
    scattered = steps(range(20), work=0, offsets={102: 30 * MS, 103: 33 * MS})
    for i, r in enumerate(scattered.rows["cuda_calls"]):
        r["stream"] = 10 + i % 4
    for r in scattered.rows["nccl_calls"]:
        r["stream"] = 10 + r["rank"]
    apart, together = evaluate(scattered.context()), evaluate(in_one_process(scattered).context())
    assert isinstance(apart, Found)
    assert together == apart


def test_device_synchronisation_of_one_gpu_after_another_is_not_taken_for_a_missing_call_only() -> None:
    """One thread synchronises device after device: the first does not wait for the collective of the last."""
    scene = Scene().clock()
    for i in range(5):
        for rank in range(4):
            at = T0 + S + i * 100 * MS + rank * 20 * MS
            scene.add(
                "nccl_calls", start_ns=at, duration_ns=US, pid=100, tid=100, op="ncclAllReduce", return_code=0,
                comm_handle=rank, comm_id=1, rank=rank, nranks=4, count=1, datatype=7, size_bytes=4, stream=rank,
            )  # fmt: skip
            scene.cuda(100, "cudaDeviceSynchronize", at + 2 * US, 3 * US)
    outcome = evaluate(scene.context())
    assert not isinstance(outcome, Found)
    assert "or the synchronisation after it was that of another device" in outcome.reason
