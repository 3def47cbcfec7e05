"""The late-rank detector: who, how late, what it cost the others, and when it says nothing."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gpuaudit.analyze.chains.late_rank import evaluate
from gpuaudit.analyze.context import Found, NotEvaluated
from gpuaudit.analyze.finding import Chain, Quantity
from tests.scenes import COMM, MS, T0, US, Mode, S, Scene, collectives

MODES: tuple[Mode, ...] = ("blocking", "asynchronous")


def the_chain(scene: Scene) -> Chain:
    outcome = evaluate(scene.context())
    assert isinstance(outcome, Found)
    (chain,) = outcome.items
    assert isinstance(chain, Chain)
    return chain


def value(chain: Chain, name: str) -> Fraction:
    q = chain.values[name]
    assert isinstance(q, Quantity)
    assert isinstance(q.value, int | Fraction)
    return Fraction(q.value)


@pytest.mark.parametrize("mode", MODES)
def test_a_rank_that_is_always_late(mode: Mode) -> None:
    chain = the_chain(collectives(mode, late={2: 30 * MS}))
    assert chain.subject == {"comm": f"{COMM:016x}", "rank": "2", "pid": "102"}
    assert value(chain, "occurrences") == value(chain, "evaluated") == 50
    assert abs(value(chain, "lateness_p50") - 30 * MS) < 100 * US
    assert value(chain, "lateness_max") >= value(chain, "lateness_p50")
    wait = value(chain, "wait")
    assert 3 * 50 * 29 * MS < wait < 3 * 50 * 31 * MS
    assert chain.severity == "critical"


@pytest.mark.parametrize("mode", MODES)
def test_the_explained_share_is_the_exact_overlap(mode: Mode) -> None:
    scene = collectives(mode, steps=3, late={2: 30 * MS})
    effect = overlap = 0
    for step in range(3):
        calls = sorted((r for r in scene.rows["nccl_calls"][step * 4 : step * 4 + 4]), key=lambda r: r["rank"])
        late = calls[2]["start_ns"]
        middle = sorted(c["start_ns"] for c in calls if c["rank"] != 2)[1]
        for c in calls:
            if c["rank"] == 2:
                continue
            row = c
            if mode == "asynchronous":
                row = next(
                    s for s in scene.rows["cuda_calls"] if s["pid"] == c["pid"] and s["start_ns"] > c["start_ns"]
                )
            start, end = row["start_ns"], row["start_ns"] + row["duration_ns"]
            effect += end - start
            overlap += max(0, min(end, late) - max(start, middle))
    link = the_chain(scene).links[0]
    assert (link.effect_ns.value, link.overlap_ns.value) == (effect, overlap)
    assert link.explained.value == Fraction(overlap, effect)


@pytest.mark.parametrize("mode", MODES)
def test_no_rank_is_late(mode: Mode) -> None:
    outcome = evaluate(collectives(mode).context())
    assert isinstance(outcome, Found)
    assert list(outcome.items) == []
    assert "device-side lateness: not evaluated" in outcome.reason


def test_jitter_below_the_floor_is_nothing() -> None:
    outcome = evaluate(collectives("blocking", late={2: 900 * US}, late_steps=[7]).context())
    assert isinstance(outcome, Found)
    assert list(outcome.items) == []
    assert "late arrivals" not in outcome.reason


def test_one_late_arrival_is_counted_and_no_chain() -> None:
    outcome = evaluate(collectives("asynchronous", late={2: 30 * MS}, late_steps=[7]).context())
    assert isinstance(outcome, Found)
    assert list(outcome.items) == []
    assert "1 late arrivals are neither systematic nor a stall" in outcome.reason


def test_one_stall_of_a_second_is_a_chain() -> None:
    chain = the_chain(collectives("asynchronous", late={2: 2 * S}, late_steps=[49]))
    assert value(chain, "occurrences") == 1


def test_scatter_of_all_ranks_raises_the_threshold() -> None:
    """The same 5 ms is late among ranks that agree to 0.1 ms, and nothing among ranks that scatter by 4 ms."""
    calm = collectives("blocking", late={2: 5 * MS})
    assert value(the_chain(calm), "occurrences") == 50
    wild = collectives("blocking", late={0: 0, 1: 4 * MS, 2: 5 * MS, 3: 8 * MS})
    outcome = evaluate(wild.context())
    assert isinstance(outcome, Found)
    assert list(outcome.items) == []


def test_two_ranks_cannot_be_told_apart() -> None:
    outcome = evaluate(collectives("blocking", ranks=2, late={1: 30 * MS}).context())
    assert isinstance(outcome, NotEvaluated)
    assert "2 of 2 ranks observed, and at least 3" in outcome.reason


def test_quorum() -> None:
    outcome = evaluate(collectives("blocking", late={2: 30 * MS}, nranks=16).context())
    assert isinstance(outcome, NotEvaluated)
    assert "4 of 16 ranks observed, fewer than 1/2" in outcome.reason


def test_without_identity_it_is_not_evaluated() -> None:
    outcome = evaluate(collectives("blocking", late={2: 30 * MS}, comm_id=None).context())
    assert isinstance(outcome, NotEvaluated)
    assert "identity not recorded" in outcome.reason
    assert "0 of 4 communicators evaluated" in outcome.reason


def test_a_second_communicator_without_identity_leaves_the_first() -> None:
    scene = collectives("blocking", late={2: 30 * MS})
    collectives("blocking", comm_id=None, scene=scene)
    chain = the_chain(scene)
    assert chain.subject["rank"] == "2"


def test_counted_losses_break_the_alignment() -> None:
    scene = collectives("blocking", late={2: 30 * MS})
    scene.lost = {"nccl_calls": 1}
    outcome = evaluate(scene.context())
    assert isinstance(outcome, NotEvaluated)
    assert "1 records of nccl_calls were lost" in outcome.reason


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("missing", [0, 10, 30])
def test_a_call_missing_without_a_counter_is_noticed(mode: Mode, missing: int) -> None:
    """Without the check, rank 1 would seem to be late by a whole step from the missing call on."""
    scene = collectives(mode)
    mine = [r for r in scene.rows["nccl_calls"] if r["rank"] == 1]
    scene.rows["nccl_calls"].remove(mine[missing])
    outcome = evaluate(scene.context())
    assert isinstance(outcome, NotEvaluated)
    assert "was through with collective" in outcome.reason
    assert "a call is missing" in outcome.reason


def test_without_synchronisation_different_counts_are_not_evaluated() -> None:
    scene = collectives("asynchronous")
    del scene.rows["cuda_calls"]
    scene.rows["nccl_calls"].pop()
    outcome = evaluate(scene.context())
    assert isinstance(outcome, NotEvaluated)
    assert "different numbers of calls" in outcome.reason


def test_a_capture_that_ends_within_a_step_is_evaluated_up_to_it() -> None:
    """Ranks 0 and 1 had entered the last collective and wait in it; 2 and 3 had not."""
    scene = collectives("asynchronous", late={2: 30 * MS})
    end = T0 + 58 * S
    for r in (0, 1):
        call = dict(scene.rows["nccl_calls"][r])
        scene.add("nccl_calls", **{**call, "start_ns": end, "duration_ns": 9 * US, "seq": 999})
        scene.cuda(100 + r, "cudaStreamSynchronize", end + 20 * US, None, stream=1 + r)
    chain = the_chain(scene)
    assert value(chain, "evaluated") == 50
    assert any("were not compared" in a for a in chain.against)


@pytest.mark.parametrize(
    ("column", "other"), [("count", 999), ("size_bytes", 8_000), ("datatype", 9), ("op", "ncclAllGather")]
)
def test_arguments_that_differ_break_the_alignment(column: str, other: object) -> None:
    scene = collectives("blocking", late={2: 30 * MS})
    next(r for r in scene.rows["nccl_calls"] if r["rank"] == 3 and r["start_ns"] > T0 + 2 * S)[column] = other
    outcome = evaluate(scene.context())
    assert isinstance(outcome, NotEvaluated)
    assert "is not the same on all ranks" in outcome.reason


def test_a_gap_of_the_source_breaks_the_alignment() -> None:
    scene = collectives("blocking", late={2: 30 * MS})
    scene.add("gaps", start_ns=T0 + 2 * S, duration_ns=MS, source="nccl", pid=102, reason="the library was replaced")
    outcome = evaluate(scene.context())
    assert isinstance(outcome, NotEvaluated)
    assert "the library was replaced" in outcome.reason


def test_a_late_rank_nobody_is_seen_to_wait_for_is_not_evaluated() -> None:
    scene = collectives("asynchronous", late={2: 30 * MS})
    for row in scene.rows["cuda_calls"]:
        row["stream"] = 999
    outcome = evaluate(scene.context())
    assert isinstance(outcome, NotEvaluated)
    assert "no wait of their peers was seen" in outcome.reason


def test_device_synchronisation_carries_the_wait_too() -> None:
    scene = collectives("asynchronous", late={2: 30 * MS})
    for row in scene.rows["cuda_calls"]:
        row |= {"op": "cudaDeviceSynchronize", "stream": None}
    assert value(the_chain(scene), "occurrences") == 50


def test_one_synchronisation_for_several_collectives_counts_its_time_once() -> None:
    """Two collectives back to back, one wait: no peer waits longer than its synchronisation lasts."""
    scene = Scene().clock()
    for step in range(10):
        base = T0 + S + step * 100 * MS
        arrival = [base, base + 10 * US, base + 30 * MS, base + 20 * US]
        for r, at in enumerate(arrival):
            for n in range(2):
                scene.add(
                    "nccl_calls", start_ns=at + n * 30 * US, duration_ns=9 * US, pid=100 + r, tid=100 + r,
                    op="ncclAllReduce",
                    return_code=0, comm_handle=r, comm_id=COMM, rank=r, nranks=4, datatype=7, count=1,
                    size_bytes=4, stream=1,
                )  # fmt: skip
            scene.cuda(100 + r, "cudaStreamSynchronize", at + 60 * US, base + 31 * MS - at, stream=1)
    chain = the_chain(scene)
    syncs = sum(r["duration_ns"] for r in scene.rows["cuda_calls"] if r["pid"] != 102)
    assert value(chain, "occurrences") == 20
    assert chain.links[0].effect_ns.value == syncs
    assert value(chain, "wait") < syncs


def test_failed_calls_take_no_part() -> None:
    scene = collectives("blocking", late={2: 30 * MS})
    failed = dict(scene.rows["nccl_calls"][0])
    scene.add("nccl_calls", **{**failed, "start_ns": T0 + S - MS, "duration_ns": US, "return_code": 4, "seq": 998})
    assert value(the_chain(scene), "evaluated") == 50


def test_the_recorder_is_never_a_rank() -> None:
    scene = collectives("blocking", late={2: 30 * MS}).process(102, role="recorder")
    outcome = evaluate(scene.context())
    assert isinstance(outcome, Found)
    assert list(outcome.items) == []


def test_nothing_recorded_is_not_clear() -> None:
    outcome = evaluate(Scene().clock().context())
    assert isinstance(outcome, NotEvaluated)
    assert outcome.reason == "no NCCL collective was recorded"
