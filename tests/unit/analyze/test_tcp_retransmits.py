"""TCP packets sent again inside collectives: which belong to them, how far back each reaches, and what is no cause."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import pytest

from gpuaudit.analyze.context import Found, NotEvaluated
from gpuaudit.analyze.finding import Chain
from gpuaudit.analyze.registry import plugins
from tests.rule_scenes.tcp_retransmits import ADDRESSES, PIDS, PORTS, SLOW_STEP, begin, ranks, resent, socket
from tests.scenes import MS, T0, US, S, Scene

SLOW = begin(SLOW_STEP)
EVALUATE = next(p.evaluate for p in plugins() if p.declaration.id == "tcp_retransmits")


def chains(scene: Scene) -> list[Chain]:
    outcome = EVALUATE(scene.context())
    assert isinstance(outcome, Found), outcome
    return [c for c in outcome.items if isinstance(c, Chain)]


def explained(scene: Scene) -> Mapping[str, int]:
    """ns by process."""
    return {c.subject["pid"]: int(c.impact.value or 0) for c in chains(scene)}


def test_what_the_timer_can_have_waited_is_claimed_on_both_ranks() -> None:
    """Sent again 205 ms after the call began: 200 ms of its 410 ms, on the sender and on the rank that waits for it."""
    scene = resent(ranks(), SLOW + 205 * MS)
    assert explained(scene) == {str(p): 200 * MS for p in PIDS}
    chain = chains(scene)[0]
    assert chain.links[0].explained.value == Fraction(200, 410)
    assert chain.values["culprit"] == ADDRESSES[1]
    assert chain.gain is not None
    assert (chain.gain.low.value, chain.gain.high.value) == (0, 200 * MS)
    assert sum(int(s.time.value or 0) for s in chain.shares) == 410 * MS
    assert any("when the lost packets had first been sent is not recorded" in a for a in chain.against)
    assert not any("other end was not observed" in a for a in chain.against)


def test_never_before_the_call_began() -> None:
    assert explained(resent(ranks(), SLOW + 150 * MS))["100"] == 150 * MS


def test_timeouts_in_a_row_double_and_their_times_do_not_overlap() -> None:
    """At 205, 610 and 1,415 ms: 200, 400 and 800 ms before them, from the first timeout on all but 5 + 5 + 5 ms."""
    scene = ranks(slow=1_500 * MS)
    for at in (205, 610, 1_415):
        resent(scene, SLOW + at * MS)
    assert explained(scene)["100"] == 1_400 * MS


def test_a_loss_long_after_another_reaches_back_200_ms_again() -> None:
    scene = ranks(slow=5 * S)
    for at in (205 * MS, 4 * S):
        resent(scene, SLOW + at)
    assert explained(scene)["100"] == 400 * MS


def test_packets_of_one_volley_do_not_reach_further() -> None:
    scene = ranks(slow=5 * S)
    for at in (205 * MS, 206 * MS, 207 * MS, 208 * MS, 3 * S):
        resent(scene, SLOW + at)
    assert explained(scene)["100"] == (200 + 3 + 200) * MS


def test_not_before_the_connection_was_last_seen_to_move() -> None:
    scene = resent(ranks(), SLOW + 205 * MS)
    socket(scene, PIDS[1], 1, SLOW + 99 * MS, op="receive", receive=1)
    assert explained(scene)["100"] == 105 * MS


def test_calls_that_failed_moved_nothing() -> None:
    scene = resent(ranks(), SLOW + 205 * MS)
    socket(scene, PIDS[1], 1, SLOW + 99 * MS, op="receive", receive=1, errors=3, not_ready=3, size_bytes=0)
    assert explained(scene)["100"] == 200 * MS


def test_not_before_the_last_rank_had_entered() -> None:
    """The other rank comes 120 ms late: until then nobody waits for a packet."""
    scene = resent(ranks(), SLOW + 205 * MS)
    late = next(r for r in scene.rows["nccl_calls"] if r["pid"] == PIDS[1] and r["start_ns"] == SLOW)
    late |= {"start_ns": SLOW + 120 * MS, "duration_ns": 290 * MS}
    assert explained(scene) == {str(p): 85 * MS for p in PIDS}


def test_the_wait_may_lie_in_the_synchronisation_after_it() -> None:
    scene = resent(ranks(), SLOW + 205 * MS)
    for row in scene.rows["nccl_calls"]:
        took, row["duration_ns"] = row["duration_ns"], 10 * US
        scene.cuda(row["pid"], "cudaStreamSynchronize", row["start_ns"] + 20 * US, took - 20 * US, stream=1)
    found = chains(scene)
    assert {c.subject["op"] for c in found} == {"cudaStreamSynchronize"}
    assert {int(c.impact.value or 0) for c in found} == {200 * MS}


def test_a_communicator_without_identity_has_its_own_sockets() -> None:
    """Its peers are not known: only the rank whose socket it is is told."""
    assert explained(resent(ranks(comm_id=None), SLOW + 205 * MS)) == {"100": 200 * MS}


def test_an_owner_not_told_is_known_by_the_sockets_ends() -> None:
    assert explained(resent(ranks(), SLOW + 205 * MS, pid=None, inode=None))["100"] == 200 * MS


@pytest.mark.parametrize(
    "other",
    [
        {"pid": 300, "inode": 5, "local_port": 22},
        {"pid": None, "inode": None, "local_address": "10.9.0.77"},
    ],
)
def test_a_packet_of_another_process_is_no_cause(other: dict[str, object]) -> None:
    assert chains(resent(ranks(), SLOW + 205 * MS, **other)) == []


def test_a_connection_of_the_rank_to_a_process_outside_the_communicator_is_no_cause() -> None:
    """A metrics server on the same host, of which the capture knows both ends."""
    scene = ranks().process(300, "exporter")
    socket(scene, 300, 1, local_port=9_090, remote_port=4_444)
    resent(scene, SLOW + 205 * MS, local_port=4_444, remote_port=9_090)
    assert chains(scene) == []


def test_a_connection_to_where_nobody_was_observed_is_told_as_such() -> None:
    scene = resent(ranks(), SLOW + 205 * MS, remote_address="10.9.0.50", local_port=4_001)
    assert any("who is at the other end was not observed" in a for a in chains(scene)[0].against)


@pytest.mark.parametrize("at", [SLOW - 100 * MS, SLOW + 450 * MS, begin(40) + MS])
def test_another_time_is_no_cause(at: int) -> None:
    assert chains(resent(ranks(), at)) == []


def test_a_slow_call_that_is_no_collective_is_none() -> None:
    scene = Scene().clock().process(PIDS[0])
    for step in range(60):
        scene.cuda(PIDS[0], "cudaMemcpy", begin(step), 410 * MS if step == SLOW_STEP else 2 * MS)
    scene.add(
        "nccl_calls", start_ns=T0, duration_ns=MS, pid=PIDS[0], tid=PIDS[0], op="ncclAllReduce", return_code=0,
        comm_handle=7, stream=1,
    )  # fmt: skip
    socket(scene, PIDS[0], 0)
    assert chains(resent(scene, SLOW + 205 * MS)) == []


def test_a_packet_that_could_not_be_made_was_not_sent() -> None:
    assert chains(resent(ranks(), SLOW + 205 * MS, error=-113)) == []


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        ([{"source": "tcp", "state": "not recorded", "reason": "no BTF"}], NotEvaluated("no BTF")),
        ([], NotEvaluated("no TCP packet that was sent again was recorded")),
        ([{"source": "tcp", "state": "recorded", "reason": ""}], Found([], "effects looked at: 2")),
    ],
)
def test_only_a_source_that_recorded_makes_it_clear(
    told: list[dict[str, str]], outcome: Found | NotEvaluated
) -> None:  # fmt: skip
    scene = ranks()
    scene.open_body["sources"] = told
    assert EVALUATE(scene.context()) == outcome


def test_ports_of_the_scene_are_of_one_connection() -> None:
    """Or the tests above would not test the join."""
    rows = ranks().rows["socket_io"]
    ends = {(r["local_address"], r["local_port"]) for r in rows}
    assert ends == set(zip(ADDRESSES, PORTS, strict=True)) == {(r["remote_address"], r["remote_port"]) for r in rows}
