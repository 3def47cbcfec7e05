"""Rules on what processes and threads do: memory, copies, launches, synchronisation."""

from __future__ import annotations

from fractions import Fraction

import pytest

from tests.rule_scenes import (
    excessive_synchronisation,
    managed_oversubscription,
    memory_leak,
    synchronous_copies,
    tiny_launches,
    zombie_allocation,
)
from tests.rule_scenes.memory_leak import MIB
from tests.rule_scenes.zombie_allocation import GIB, listed, polled
from tests.scenes import MS, T0, US, S, Scene
from tests.unit.analyze.test_rules import found, refused, value

CALL_RULES = (
    "memory_leak", "synchronous_copies", "tiny_launches", "excessive_synchronisation", "managed_oversubscription",
)  # fmt: skip


@pytest.mark.parametrize("rule", CALL_RULES)
def test_without_calls_they_say_why(rule: str) -> None:
    scene = Scene().clock().process(7)
    scene.open_body["sources"] = [{"source": "cuda", "state": "not available", "reason": "BPF is not allowed"}]
    assert "BPF is not allowed" in refused(scene, rule)


@pytest.mark.parametrize("rule", CALL_RULES)
def test_lost_calls_are_not_clear(rule: str) -> None:
    scene = Scene().clock().process(7).cuda(7, "cudaMalloc", T0, MS, size_bytes=1, device_pointer=1)
    scene.lost = {"cuda_calls": 3}
    assert "lost (3)" in refused(scene, rule)


@pytest.mark.parametrize("rule", CALL_RULES)
def test_the_recorder_is_never_told_of(rule: str) -> None:
    scene = {
        "memory_leak": memory_leak.leaking(), "synchronous_copies": synchronous_copies.steps(),
        "tiny_launches": tiny_launches.burst(), "excessive_synchronisation": excessive_synchronisation.loop(),
        "managed_oversubscription": managed_oversubscription.managed(100 * GIB),
    }[rule]  # fmt: skip
    assert found(scene, rule)
    scene.rows["processes"][0]["role"] = "recorder"
    if rule == "memory_leak":
        assert "no allocation was recorded" in refused(scene, rule)
    else:
        assert found(scene, rule) == []


def test_memory_of_a_process_that_is_gone() -> None:
    (scene,) = zombie_allocation.scenes()
    gone, never = sorted(found(scene, "zombie_allocation"), key=lambda f: f.subject["pid"])
    assert (gone.text, gone.subject["pid"], gone.subject["gpu"]) == ("exited", "7", "GPU-0")
    assert value(gone, "held") == 30 * S  # from the exit at 10 s to the last list at 40 s
    assert (value(gone, "memory"), value(gone, "share")) == (8 * GIB, Fraction(1, 10))
    assert gone.impact.value == 3 * S
    assert gone.severity == "warning"  # a twentieth of the GPU's time and memory
    assert (never.text, never.subject["pid"], value(never, "held")) == ("never_computed", "8", 60 * S)
    assert never.values["proof"] == "NVML told a utilisation of 0 for it at every poll"


@pytest.mark.parametrize(("seconds", "count"), [(0, 0), (2, 0), (3, 1)])
def test_the_list_may_lag_behind_an_exit(seconds: int, count: int) -> None:
    scene = polled().process(7).process(7, op="exited", duration_ns=11 * S, seen_ns=T0 + 10 * S)
    assert len(found(listed(scene, 7, T0, T0 + (10 + seconds) * S), "zombie_allocation")) == count


def test_a_new_process_with_the_same_id_is_no_zombie() -> None:
    scene = polled().process(7).process(7, op="exited", duration_ns=11 * S, seen_ns=T0 + 10 * S)
    scene.process(7, start_ns=T0 + 12 * S, seen_ns=T0 + 12 * S)
    assert found(listed(scene, 7, T0, T0 + 60 * S, sm=30), "zombie_allocation") == []


def test_a_process_that_computes_or_calls_or_is_short_is_no_zombie() -> None:
    assert found(listed(polled().process(7), 7, T0, T0 + 60 * S, sm=1), "zombie_allocation") == []
    called = listed(polled().process(7), 7, T0, T0 + 60 * S).cuda(7, "cudaMalloc", T0, US)
    assert found(called, "zombie_allocation") == []
    assert found(listed(polled().process(7), 7, T0, T0 + 29 * S), "zombie_allocation") == []
    assert len(found(listed(polled().process(7), 7, T0, T0 + 30 * S), "zombie_allocation")) == 1


def test_a_process_that_only_waits_is_never_critical() -> None:
    """A server without a request holds all the memory and runs nothing: worth telling, and nobody's alarm."""
    (finding,) = found(listed(polled().process(7), 7, T0, T0 + 60 * S, memory=80 * GIB), "zombie_allocation")
    assert (finding.text, value(finding, "share"), finding.severity) == ("never_computed", 1, "warning")


def test_without_utilisation_a_probed_library_is_the_proof() -> None:
    scene = listed(polled().process(7), 7, T0, T0 + 60 * S, sm=None)
    assert found(scene, "zombie_allocation") == []
    scene.add(
        "libraries", start_ns=T0, duration_ns=MS, pid=7, op="attached", library="cudart", path="libcudart.so.12",
        device=1, inode=1, probes=22, not_observed="",
    )  # fmt: skip
    (finding,) = found(scene, "zombie_allocation")
    assert "no call was recorded" in str(finding.values["proof"])
    scene.process(9).cuda(9, "cudaMalloc", T0, US).lost = {"cuda_calls": 1}
    assert found(scene, "zombie_allocation") == []


def test_a_zombie_of_unknown_memory_is_told_without_a_share() -> None:
    scene = listed(polled().process(7), 7, T0, T0 + 60 * S, memory=None)
    (finding,) = found(scene, "zombie_allocation")
    assert (value(finding, "memory"), value(finding, "share"), finding.impact.value) == (None, None, None)
    assert finding.severity == "warning"


def test_zombies_need_lists_of_processes() -> None:
    scene = Scene().clock().samples(T0, T0 + 60 * S, unavailable="compute_processes=3")
    assert "no list of processes" in refused(scene, "zombie_allocation")


def test_growth_through_the_whole_capture_is_consistent_with_a_leak() -> None:
    (finding,) = found(memory_leak.leaking(), "memory_leak")
    # 120 steps of half a second in 8 windows of about 15: from the second window's low water to the last one's
    assert value(finding, "growth") == 90 * 2 * MIB
    assert (value(finding, "allocations"), value(finding, "frees")) == (240, 120)
    assert finding.severity == "warning"


def test_memory_that_is_given_back_or_stops_growing_is_no_leak() -> None:
    scene = memory_leak.leaking()
    kept = [r for r in scene.rows["cuda_calls"] if r["op"] == "cudaMalloc"]
    plateau = memory_leak.leaking()
    plateau.rows["cuda_calls"] = [
        r for r in plateau.rows["cuda_calls"] if r["op"] != "cudaMalloc" or r["start_ns"] < T0 + 44 * S
    ]
    assert found(plateau, "memory_leak") == []
    for r in kept:
        scene.cuda(7, "cudaFree", r["start_ns"] + 400 * MS, US, device_pointer=r["device_pointer"])
    assert found(scene, "memory_leak") == []


@pytest.mark.parametrize(("keep", "count"), [(64 * MIB // 90, 0), (64 * MIB // 90 + 1, 1)])
def test_growth_is_told_from_64_mib(keep: int, count: int) -> None:
    assert len(found(memory_leak.leaking(keep=keep), "memory_leak")) == count


def test_a_process_that_was_probed_late_is_refused() -> None:
    scene = memory_leak.leaking().cuda(7, "cudaFree", T0 + S, US, device_pointer=12_345)
    assert "probed late" in refused(scene, "memory_leak")
    again = memory_leak.leaking().cuda(7, "cudaMalloc", T0 + 2 * S, US, size_bytes=1, device_pointer=1 << 32)
    assert "frees of it match no recorded one (1)" in refused(again, "memory_leak")


def test_a_leak_is_not_looked_for_through_a_gap_or_in_a_moment() -> None:
    gap = {"start_ns": T0 + S, "duration_ns": S, "source": "cuda", "reason": "the recorder was stopped"}
    assert "could not be seen for 1 s" in refused(memory_leak.leaking().add("gaps", **gap), "memory_leak").replace(
        "1.00 s", "1 s"
    )
    assert "it takes" in refused(memory_leak.leaking(seconds=20), "memory_leak")


def test_failed_calls_and_the_null_pointer_hold_nothing() -> None:
    scene = memory_leak.leaking()
    for i in range(10):
        scene.cuda(7, "cudaMalloc", T0 + i * S, US, size_bytes=1 << 40, device_pointer=None, return_code=2)
        scene.cuda(7, "cudaFree", T0 + i * S, US, device_pointer=0)
        scene.cuda(7, "cudaFree", T0 + i * S, US, device_pointer=99, return_code=1)
    (finding,) = found(scene, "memory_leak")
    assert value(finding, "growth") == 90 * 2 * MIB


def test_managed_memory_beyond_the_gpu() -> None:
    (finding,) = found(managed_oversubscription.managed(60 * GIB, 40 * GIB), "managed_oversubscription")
    assert (value(finding, "managed"), value(finding, "memory")) == (100 * GIB, 80 * GIB)
    assert (value(finding, "ratio"), finding.impact.value) == (Fraction(5, 4), 20 * GIB)


def test_managed_memory_that_just_fits_or_is_freed_is_no_finding() -> None:
    assert found(managed_oversubscription.managed(80 * GIB), "managed_oversubscription") == []
    assert len(found(managed_oversubscription.managed(80 * GIB + 1), "managed_oversubscription")) == 1
    assert found(managed_oversubscription.managed(100 * GIB, gpus=2), "managed_oversubscription") == []
    freed = managed_oversubscription.managed(60 * GIB, 40 * GIB)
    freed.cuda(7, "cudaFree", T0 + S // 2, US, device_pointer=1 << 40)
    assert found(freed, "managed_oversubscription") == []
    assert "did not tell the GPU" in refused(
        managed_oversubscription.managed(100 * GIB, total=None), "managed_oversubscription"
    )


def test_managed_memory_that_was_not_probed_is_not_clear() -> None:
    """A recording from before cudaMallocManaged was probed has no row of it, whatever was allocated."""
    scene = Scene().clock().process(7).cuda(7, "cudaMalloc", T0, US, size_bytes=1, device_pointer=1)
    assert found(scene, "managed_oversubscription") == []
    probe = {"start_ns": T0, "library": "cudart", "path": "libcudart.so.12", "mechanism": "uprobe_multi"}
    scene.add("probes", **probe, op="cudaMalloc")
    assert "cudaMallocManaged was not among" in refused(scene, "managed_oversubscription")
    assert found(scene.add("probes", **probe, op="cudaMallocManaged"), "managed_oversubscription") == []


def test_a_size_that_no_memory_has_does_not_break_the_balance() -> None:
    scene = managed_oversubscription.managed(*[(1 << 64) - 1] * 5)
    (finding,) = found(scene, "managed_oversubscription")
    assert value(finding, "managed") == 1 << 62


def test_blocking_copies_by_size_and_direction() -> None:
    (finding,) = found(synchronous_copies.steps(), "synchronous_copies")
    observed = S + US
    assert (value(finding, "copied"), value(finding, "observed")) == (50 * (2 * MS + 10 * US), observed)
    assert value(finding, "share") == Fraction(50 * 2_010_000, observed)
    assert value(finding, "size") == 50 * (4_096 + (8 << 20))
    assert (value(finding, "small"), value(finding, "median")) == (50, 4_096)
    assert finding.values["directions"] == "host to device: 50, device to host: 50"
    assert finding.subject["tid"] == "7"
    assert finding.severity == "warning"


@pytest.mark.parametrize(("back", "count"), [(990 * US, 0), (990_001, 1)])
def test_copies_are_told_from_a_twentieth_of_the_thread(back: int, count: int) -> None:
    """50 × (10 µs + back) of 1,000,001 µs: 50.00005 ms are a twentieth."""
    assert len(found(synchronous_copies.steps(back=back), "synchronous_copies")) == count


def test_few_copies_and_unknown_directions() -> None:
    assert found(synchronous_copies.steps(count=9, every=100 * MS, back=50 * MS), "synchronous_copies") == []
    (finding,) = found(synchronous_copies.steps(direction=None), "synchronous_copies")
    assert finding.values["directions"] == "host to device: 50, direction not known: 50"
    (strange,) = found(synchronous_copies.steps(direction=-7), "synchronous_copies")
    assert "direction not known: 50" in str(strange.values["directions"])


def test_asynchronous_copies_are_not_blocking() -> None:
    scene = synchronous_copies.steps()
    for r in scene.rows["cuda_calls"]:
        r["op"] = r["op"].replace("cudaMemcpy_ptds", "cudaMemcpyAsync")
    assert found(scene, "synchronous_copies") == []


def test_small_launches_one_after_the_other() -> None:
    (finding,) = found(tiny_launches.burst(), "tiny_launches")
    assert finding.text == "tiny_launches"
    assert value(finding, "observed") == 1_199 * 20 * US + 8 * US
    assert value(finding, "inside") == 1_200 * 8 * US
    assert (value(finding, "median"), value(finding, "gap"), value(finding, "small")) == (8 * US, 12 * US, 1_200)


def test_launches_read_in_slices_are_the_same_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = found(tiny_launches.burst(), "tiny_launches")
    monkeypatch.setattr("gpuaudit.analyze.threads.SLICE_ROWS", 100)
    assert found(tiny_launches.burst(), "tiny_launches") == [whole]


def test_large_launches_are_launch_bound_but_not_tiny() -> None:
    (finding,) = found(tiny_launches.burst(grid=2_000), "tiny_launches")
    assert (finding.text, value(finding, "small")) == ("launch_bound", 0)
    (edge,) = found(tiny_launches.burst(threads=1_024), "tiny_launches")  # 2 × 1,024 fill a multiprocessor
    assert edge.text == "launch_bound"


def test_launches_of_unknown_or_impossible_size_are_not_small() -> None:
    (unknown,) = found(tiny_launches.burst(grid=None), "tiny_launches")
    assert (unknown.text, value(unknown, "small")) == ("launch_bound", 0)
    scene = tiny_launches.burst()
    for r in scene.rows["cuda_calls"]:
        r.update(dict.fromkeys(("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z"), (1 << 32) - 1))
    assert found(scene, "tiny_launches")[0].text == "launch_bound"


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({"count": 999}, 0), ({"count": 1_000}, 1),
        ({"took": 5 * US, "every": 20_012}, 1), ({"took": 5 * US, "every": 20_013}, 0),  # a quarter of the time
        ({"took": 50 * US, "every": 100 * US}, 1), ({"took": 50_001, "every": 100 * US}, 0),  # waited for the queue
    ],
)  # fmt: skip
def test_the_edges_of_being_launch_bound(more: dict[str, int], count: int) -> None:
    assert len(found(tiny_launches.burst(**more), "tiny_launches")) == count


@pytest.mark.parametrize("op", ["cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"])
def test_a_wait_after_every_launch(op: str) -> None:
    (finding,) = found(excessive_synchronisation.loop(op=op), "excessive_synchronisation")
    observed = 2 * S - MS + 410 * US
    assert (value(finding, "waited"), value(finding, "observed")) == (2_000 * 400 * US, observed)
    assert value(finding, "rate") == Fraction(2_000 * S, observed)
    assert (value(finding, "per_launch"), value(finding, "median")) == (1, 400 * US)


@pytest.mark.parametrize(
    ("every", "wait", "count"),
    [
        (20 * MS, 15 * MS, 0),  # long steps: 50 waits a second
        (MS, 100 * US, 0),  # often, but a tenth of the time
        (MS, 200 * US, 1),
    ],
)
def test_waiting_is_excessive_only_often_and_long(every: int, wait: int, count: int) -> None:
    assert len(found(excessive_synchronisation.loop(every, wait), "excessive_synchronisation")) == count


def test_threads_are_told_apart() -> None:
    scene = excessive_synchronisation.loop()
    for r in excessive_synchronisation.loop(wait=50 * US).rows["cuda_calls"]:
        scene.add("cuda_calls", **{**r, "tid": 8, "seq": r["seq"] + 10_000})
    (finding,) = found(scene, "excessive_synchronisation")
    assert finding.subject["tid"] == "7"


def test_time_in_which_the_source_was_blind_is_no_time_of_a_thread() -> None:
    gap = {"start_ns": T0 + S, "duration_ns": S // 2, "source": "cuda", "reason": "the recorder was stopped"}
    (finding,) = found(excessive_synchronisation.loop().add("gaps", **gap), "excessive_synchronisation")
    assert value(finding, "observed") == 2 * S - MS + 410 * US - S // 2
    assert value(finding, "waited") == 1_500 * 400 * US


def test_a_call_that_never_returned_lasts_until_the_process_ends() -> None:
    scene = excessive_synchronisation.loop().cuda(7, "cudaDeviceSynchronize", T0 + 2 * S, None)
    scene.process(7, op="exited", duration_ns=4 * S, seen_ns=T0 + 3 * S)
    (finding,) = found(scene, "excessive_synchronisation")
    assert value(finding, "waited") == 2_000 * 400 * US + S
