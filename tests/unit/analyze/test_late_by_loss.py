"""A rank that is late because TCP sent packets of its own connections again: the next link of its chain, and twins."""

from __future__ import annotations

from typing import Any

import pytest

from gpuaudit.analyze.finding import Chain, Link
from tests.scenes import MS, T0, Scene, collectives

LATE, SIBLING, STORE = 102, 1_020, 300
STEPS, LATE_NS, SLEPT, REACH = 12, 300 * MS, 260 * MS, 200 * MS
HERE, THERE = "10.9.0.3", "10.9.0.9"
RECEIVE, FUTEX, NAP, POLL = 45, 202, 230, 7


def sleep(scene: Scene, at: int, length: int, **more: Any) -> Scene:
    """The main thread of the late rank asleep in a call that receives."""
    return scene.add("off_cpu", **{
        "start_ns": at, "duration_ns": length, "pid": LATE, "tid": LATE, "op": "blocked", "comm": "python3",
        "prev_state": 1, "next_pid": 0, "next_tid": 0, "next_comm": "swapper/1", "cpu_out": 1, "runqueue_ns": 0,
        "wake_ns": at + length, "syscall": RECEIVE, **more,
    })  # fmt: skip


def resent(scene: Scene, at: int, **more: Any) -> Scene:
    """The late rank sends a packet to the store again."""
    return scene.add("tcp_retransmits", **{
        "start_ns": at, "pid": LATE, "comm": "python3", "inode": 900, "family": 2, "state": 1, "segments": 1,
        "error": 0, "local_address": HERE, "local_port": 4_000, "remote_address": THERE, "remote_port": 80, **more,
    })  # fmt: skip


def socket(scene: Scene, pid: int, here: tuple[str, int], there: tuple[str, int]) -> Scene:
    return scene.add(
        "socket_io", start_ns=T0, duration_ns=MS, pid=pid, op="receive", receive=1, inode=800 + pid, family=2,
        local_address=here[0], local_port=here[1], remote_address=there[0], remote_port=there[1], count=3, errors=0,
        size_bytes=96, sum_ns=MS, max_ns=MS,
    )  # fmt: skip


def ranks() -> Scene:
    """Four ranks, of which one is 300 ms late every time; so far apart that each loss is one by itself."""
    scene = collectives("asynchronous", steps=STEPS, late={2: LATE_NS}, gap=2_000 * MS)
    for pid in range(100, 104):
        scene.process(pid)
    return scene.process(STORE, "store")


def arrivals(scene: Scene) -> list[int]:
    """When the late rank came."""
    return [r["start_ns"] for r in scene.rows["nccl_calls"] if r["rank"] == 2]


def lossy(of_packet: dict[str, Any] | None = None, of_sleep: dict[str, Any] | None = None, *, at: int = -MS) -> Scene:
    """It sleeps for 260 ms until 5 ms before it comes; a packet is sent again ``at`` of the end of that sleep."""
    scene = ranks()
    for came in arrivals(scene):
        end = came - 5 * MS
        sleep(scene, end - SLEPT, SLEPT, **(of_sleep or {}))
        resent(scene, end + at, **(of_packet or {}))
    return scene


def chain(scene: Scene) -> Chain:
    (found,) = [c for c in scene.document().chains if c.detector == "late_rank"]
    return found


def links(scene: Scene) -> list[Link]:
    """Those that tell of packets."""
    return [x for x in chain(scene).links if "sent again" in x.cause]


def test_it_goes_on_from_the_peers_to_the_packets_of_the_late_rank() -> None:
    """Peers waited ← rank 2 was late ← its thread slept in recvfrom ← its packets were sent again: 200 ms each time."""
    found = chain(lossy())
    _, link = found.links
    assert "12 late arrivals of rank 2" in link.effect
    assert link.cause == (
        f"its thread slept in recvfrom while packets of a connection with {THERE} were on their way that were then "
        f"sent again by python3 ({LATE})"
    )
    assert link.overlap_ns.value == STEPS * REACH
    told = {s.label: int(s.time.value or 0) for s in found.shares}
    assert told[f"TCP packets sent again: {THERE}"] == STEPS * REACH
    assert sum(told.values()) == link.effect_ns.value
    assert {"off_cpu", "tcp_retransmits"} <= tables(lossy())
    assert any(a.startswith("TCP packets sent again: when the lost packets had first been sent") for a in found.against)


def tables(scene: Scene) -> set[str]:
    document = scene.document()
    (found,) = [c for c in document.chains if c.detector == "late_rank"]
    known = {e.id: e for e in document.evidence}
    assert all(known[i].rows for i in found.links[-1].evidence)
    return {known[i].table for i in found.links[-1].evidence}


def test_packets_of_the_other_end_count_too() -> None:
    """What the store sends again is what the rank waits for."""
    back = {"pid": STORE, "local_address": THERE, "local_port": 80, "remote_address": HERE, "remote_port": 4_000}
    scene = socket(lossy(back), LATE, (HERE, 4_000), (THERE, 80))
    (link,) = links(scene)
    assert f"a connection with {THERE}" in link.cause
    assert f"sent again by store ({STORE})" in link.cause
    assert link.overlap_ns.value == STEPS * REACH


def test_while_it_waits_for_one_of_several_sockets() -> None:
    (link,) = links(lossy(of_sleep={"syscall": POLL}))
    assert "slept in poll" in link.cause


def test_what_lies_before_the_sleep_is_not_claimed() -> None:
    """Sent again 100 ms into the sleep: the 100 ms before it began were no wait for a socket."""
    (link,) = links(lossy(at=-SLEPT + 100 * MS))
    assert link.overlap_ns.value == STEPS * 100 * MS


def test_a_sleep_that_had_ended_before_is_not_claimed() -> None:
    """The 80 ms before it was woken for something else and slept again: the packet did not keep it then."""
    scene = lossy(of_sleep={"duration_ns": 160 * MS, "wake_ns": None, "runqueue_ns": None, "syscall": POLL})
    for came in arrivals(scene):
        sleep(scene, came - 5 * MS - 99 * MS, 99 * MS)
    (link,) = links(scene)
    assert link.overlap_ns.value == STEPS * 98 * MS


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"of_sleep": {"syscall": NAP}},
        {"of_sleep": {"syscall": FUTEX}},
        {"of_sleep": {"prev_state": 2}},
        {"of_sleep": {"tid": SIBLING}},
        {"of_sleep": {"op": "preempted", "prev_state": 0, "runqueue_ns": SLEPT, "wake_ns": None}},
        {"of_packet": {"pid": STORE, "local_port": 22}},
        {"of_packet": {"pid": 103, "local_address": "10.9.0.4"}},
        {"at": 2 * MS},
        {"at": -SLEPT - MS},
        {"of_sleep": {"syscall": POLL}, "at": -60 * MS},
    ],
)
def test_twins_that_are_no_cause(elsewhere: dict[str, Any]) -> None:
    """It napped, waited for a lock or a disk, another thread slept, it ran nowhere; the packets were of others, or
    were sent again when it did not sleep, or long before a sleep ended that was for anything."""
    assert links(lossy(**elsewhere)) == []


def test_through_a_thread_that_was_waited_for() -> None:
    """Rank 2 waits for its sibling's lock, and the sibling for the store."""
    scene = ranks()
    for came in arrivals(scene):
        end = came - 5 * MS
        sleep(
            scene, end - SLEPT, SLEPT, syscall=FUTEX, waker_pid=LATE, waker_tid=SIBLING, waker_comm="loader",
        )  # fmt: skip
        sleep(scene, end - SLEPT, SLEPT - MS, tid=SIBLING, comm="loader")
        resent(scene, end - 2 * MS)
    found = chain(scene)
    _, lock, packets = found.links
    assert lock.cause == f"its thread slept in futex until loader (thread {SIBLING} of its own process) woke it"
    assert lock.overlap_ns.value == STEPS * SLEPT
    assert packets.cause.startswith(f"its thread slept in recvfrom while packets of a connection with {THERE}")
    assert packets.effect == f"the wait for thread {SIBLING} of python3 ({LATE})"
    assert found.against[-1] == (
        "TCP packets sent again: for which descriptor the thread slept is not recorded: it may have waited for "
        "something else"
    )
    assert packets.overlap_ns.value == STEPS * REACH
