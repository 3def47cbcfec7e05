"""Compute/stall ratio against worked examples: what counts as blocked, what is busy, and how windows are cut."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from gpuaudit.analyze import busy, intervals
from gpuaudit.analyze.blocked import Blocked, of_calls, read_blocked
from gpuaudit.analyze.busy import Busy
from gpuaudit.analyze.shards import calls_seen, shard_of
from gpuaudit.analyze.stall import Stall
from tests.scenes import COMM, MS, T0, S, Scene, collectives

F = Fraction


def blocked(scene: Scene, pid: int = 7, end: int = T0 + 60 * S) -> Blocked:
    return read_blocked(scene.store(), pid, end)


def spans(time: intervals.Intervals) -> list[tuple[int, int]]:
    """In ms from the start."""
    return [((int(a) - T0) // MS, (int(b) - T0) // MS) for a, b in time]


def copy(scene: Scene, at: int, length: int | None, op: str = "cudaMemcpy", **more: int) -> Scene:
    return scene.cuda(7, op, T0 + at * MS, None if length is None else length * MS, **{"stream": 1, **more})


def test_time_inside_copies_counts_open_ones_to_the_end() -> None:
    scene = copy(copy(Scene().clock(), 0, 5), 100, None, "cudaMemcpyAsync_ptsz")
    assert spans(blocked(scene, end=T0 + 300 * MS).copies) == [(0, 5), (100, 300)]


def test_a_synchronisation_waits_for_copies_only_if_nothing_else_was_given_to_the_stream() -> None:
    scene = Scene().clock()
    copy(scene, 0, 1, "cudaMemcpyAsync")
    scene.cuda(7, "cudaStreamSynchronize", T0 + 20 * MS, 10 * MS, stream=1)  # the copy alone
    scene.cuda(7, "cudaLaunchKernel", T0 + 40 * MS, MS, stream=1)
    scene.cuda(7, "cudaStreamSynchronize", T0 + 50 * MS, 10 * MS, stream=1)  # a kernel alone
    copy(scene, 70, 1, "cudaMemcpyAsync")
    scene.cuda(7, "cudaLaunchKernel", T0 + 75 * MS, MS, stream=1)
    scene.cuda(7, "cudaStreamSynchronize", T0 + 90 * MS, 10 * MS, stream=1)  # both
    scene.cuda(7, "cudaStreamSynchronize", T0 + 110 * MS, 10 * MS, stream=1)  # nothing
    found = blocked(scene)
    assert spans(found.waits) == [(20, 30)]
    assert spans(found.mixed) == [(90, 100)]
    assert spans(found.possible) == [(0, 1), (20, 30), (70, 71), (90, 100)]


def test_streams_are_apart_and_the_device_is_all_of_them() -> None:
    scene = Scene().clock()
    copy(scene, 0, 1, "cudaMemcpyAsync", stream=1)
    scene.cuda(7, "cudaLaunchKernel", T0 + 5 * MS, MS, stream=2)
    scene.cuda(7, "cudaStreamSynchronize", T0 + 20 * MS, 10 * MS, stream=2)
    scene.cuda(7, "cudaDeviceSynchronize", T0 + 40 * MS, 10 * MS)
    copy(scene, 60, 1, "cudaMemcpyAsync", stream=1)
    scene.cuda(7, "cudaDeviceSynchronize", T0 + 80 * MS, 10 * MS)
    scene.cuda(7, "cudaStreamSynchronize", T0 + 100 * MS, 10 * MS, stream=1)  # the device was waited for already
    found = blocked(scene)
    assert spans(found.waits) == [(80, 90)]
    assert spans(found.mixed) == [(40, 50)]


def test_a_blocking_copy_leaves_nothing_to_wait_for() -> None:
    scene = copy(Scene().clock(), 0, 5)
    scene.cuda(7, "cudaStreamSynchronize", T0 + 50 * MS, 10 * MS, stream=1)
    found = blocked(scene)
    assert not len(found.waits)
    assert not len(found.mixed)


def test_gaps_are_between_copies_of_one_thread_and_short() -> None:
    scene = Scene().clock()
    copy(copy(scene, 0, 2), 6, 2)  # 4 ms apart
    scene.cuda(7, "cudaLaunchKernel", T0 + 9 * MS, MS, stream=1)
    copy(scene, 12, 1)  # a kernel was launched between
    copy(scene, 24, 1)  # 11 ms apart
    copy(scene, 26, 1, tid=8)  # another thread
    assert spans(blocked(scene).gaps) == [(2, 6)]


def test_the_default_stream_of_a_thread_is_its_own() -> None:
    scene = Scene().clock()
    copy(scene, 0, 1, "cudaMemcpyAsync_ptsz", stream=0)
    scene.cuda(7, "cudaLaunchKernel_ptsz", T0 + 2 * MS, MS, stream=0, tid=8)
    scene.cuda(7, "cudaStreamSynchronize_ptsz", T0 + 20 * MS, 10 * MS, stream=0)
    assert spans(blocked(scene).waits) == [(20, 30)]


def test_memory_per_call_is_bounded() -> None:
    """Beside its columns a call costs at most 64 bytes: five million of a process are 320 MB, given back at once."""
    n = 100_000
    i = np.arange(n)
    calls = {
        "tid": (i % 7).astype(np.uint32), "kind": (i * 31 % 5).astype(np.uint8), "asynchronous": i % 3 == 0,
        "stream": i % 4, "start_ns": i * 1_000, "end_ns": i * 1_000 + 900,
    }  # fmt: skip
    of_calls({name: values[:10] for name, values in calls.items()}, 5_000)
    tracemalloc.start()
    found = of_calls(calls, 5_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * n
    assert len(found.possible)


def told(share: float, start: int, end: int) -> Busy:
    return Busy(np.array([[T0 + start * MS, T0 + end * MS]]), np.array([int(share * busy.SCALE)]))


def of(start: int, end: int) -> intervals.Intervals:
    return intervals.single(T0 + start * MS, T0 + end * MS)


def stall(
    told: Busy, time: intervals.Intervals, mixed: intervals.Intervals = intervals.EMPTY, end_s: int = 10
) -> Stall:
    return Stall(told, time, intervals.union(time, mixed), T0, T0 + end_s * S)


def test_half_busy_and_a_fifth_blocked() -> None:
    m = stall(told(0.5, 0, 1000), of(0, 200), of(300, 400)).whole
    assert [m.busy_ns, m.stalled_ns, m.observed_ns] == [500 * MS, 200 * MS, S]
    assert m.ratio == F(5, 7)
    assert m.lowest == F(5, 8)
    assert m.highest == 1
    assert m.verdict == "mixed"


def test_what_was_blocked_beside_kernels_is_no_stall() -> None:
    """Kernels ran for 0.9 s of a second in which somebody was blocked throughout: 0.1 s had no kernel."""
    m = stall(told(0.9, 0, 1000), of(0, 1000)).whole
    assert m.stalled_ns == 100 * MS
    assert m.ratio == F(9, 10)
    assert m.verdict == "mixed", "0.9 is not above 0.9"
    assert m.highest == F(9, 10), "100 ms cannot have been beside kernels"


@pytest.mark.parametrize(
    ("share", "blocked_ms", "verdict"),
    [
        (0.95, 50, "compute-bound"),
        (0.1, 900, "capital trapped in the memory wall"),
        (0.3, 300, "capital trapped in the memory wall, unless copies overlapped kernels"),
        (0.8, 200, "mixed"),
        (0.0, 0, ""),
    ],
)
def test_readings(share: float, blocked_ms: int, verdict: str) -> None:
    assert stall(told(share, 0, 1000), of(0, blocked_ms)).whole.verdict == verdict


def test_nothing_ran_and_nothing_waited_is_no_ratio() -> None:
    assert stall(told(0.0, 0, 5000), intervals.EMPTY).whole.ratio is None


def test_overlap_in_one_second_excuses_no_stall_in_another() -> None:
    """1 s fully busy and fully blocked, then 1 s idle: over both the ratio stays 1."""
    both = Busy(
        np.array([[T0, T0 + S], [T0 + S, T0 + 2 * S]]), np.array([busy.SCALE, 0])
    )  # fmt: skip
    assert stall(both, of(0, 1000)).whole.ratio == 1


def test_time_that_is_not_told_of_counts_nowhere() -> None:
    m = stall(told(0.5, 0, 500), of(400, 2000)).whole
    assert [m.observed_ns, m.stalled_ns] == [500 * MS, 100 * MS]


def test_windows_of_a_second_and_of_a_minute() -> None:
    made = stall(told(0.5, 0, 90_000), of(30_000, 60_000), end_s=90)
    seconds, minutes = made.seconds, made.minutes
    assert len(seconds.starts) == 4 * 89 + 1
    assert seconds.ratios[0] == busy.SCALE
    at = {int(t): int(r) for t, r in zip((seconds.starts - T0) // MS, seconds.ratios, strict=True)}
    assert at[29_000] == busy.SCALE
    assert at[29_500] == 5_000, "0.5 s blocked: as long as no kernel ran in that second"
    assert at[30_000] == 5_000
    assert at[29_250] == 6_666, "0.25 s blocked beside 0.5 s of kernels"
    assert len(minutes.starts) == 31
    assert minutes.ratios[0] == 6_666, "30 s of kernels, 15 s stalled in 30 s"
    assert minutes.ratios[30] == 6_666


def test_a_window_that_was_hardly_observed_has_no_ratio() -> None:
    seconds = stall(told(0.5, 0, 499), of(0, 100), end_s=2).seconds
    assert list(seconds.ratios) == [-1] * 5
    assert stall(told(0.5, 0, 500), of(0, 100), end_s=2).seconds.ratios[0] != -1


def test_a_capture_of_ten_days_is_not_cut_into_seconds() -> None:
    with pytest.raises(ValueError, match="864000 s"):
        stall(told(0.5, 0, 1), intervals.EMPTY, end_s=864_000)


def test_gpm_is_preferred_and_rounded_to_a_hundredth() -> None:
    scene = Scene().clock().process(7).samples(T0, T0 + 10 * S, pids=[7], gpu_utilization_percent=100)
    for i in range(10):
        scene.add(
            "gpm_samples", start_ns=T0 + i * S, duration_ns=S, gpu_index=0, gpu_uuid="GPU-0",
            sm_activity_percent=12.345678, unavailable="",
        )  # fmt: skip
    context = scene.context()
    found = busy.of_gpu(context, context.gpus[0])
    assert (found.source, set(found.share.tolist())) == (busy.GPM, {1235})
    assert busy.of_process(context, context.gpus[0], 7).source == busy.GPM


@pytest.mark.parametrize(
    ("graphics", "activity", "reach"),
    [(None, 10.0, 10_000), (None, 0.0, 0), (60.0, 10.0, 6_000), (5.0, 10.0, 1_000), (float("nan"), 10.0, 10_000)],
)
def test_a_kernel_that_does_not_fill_the_gpu_may_run_beside_a_copy(
    graphics: float | None, activity: float, reach: int
) -> None:
    """SM activity of 10 % may be a kernel on a tenth of the SMs all the time: copies beside it need not be stalls."""
    scene = Scene().clock().process(7).samples(T0, T0 + 2 * S, pids=[7])
    scene.add("gpm_samples", start_ns=T0, duration_ns=2 * S, gpu_index=0, gpu_uuid="GPU-0", unavailable="",
              sm_activity_percent=activity, graphics_percent=graphics)  # fmt: skip
    context = scene.context()
    found = busy.of_gpu(context, context.gpus[0])
    assert found.most.tolist() == [reach]
    assert found.within(of(0, 500)).most.tolist() == [reach]
    m = Stall(found, of(0, 1000), of(0, 1000), T0, T0 + S).whole
    assert m.stalled_ns == (10_000 - int(activity * 100)) * S // 10_000
    assert m.highest == (
        F(int(activity * 100), int(activity * 100) + 10_000 - reach) if activity or not reach else None
    )
    assert m.verdict.startswith("capital trapped in the memory wall")
    assert m.verdict.endswith("overlapped kernels") == (m.highest is not None and m.highest >= F(7, 10))


def test_a_process_has_its_own_utilisation_or_the_gpu_to_itself() -> None:
    scene = Scene().clock().samples(T0, T0 + 5 * S, pids=[7, 8]).samples(T0 + 5 * S, T0 + 10 * S, pids=[7])
    context = scene.context()
    assert spans(busy.of_process(context, context.gpus[0], 7).covered) == [(5000, 10000)]
    alone = busy.of_process(context, context.gpus[0], 8)
    assert not len(alone.spans)
    assert "never had the GPU to itself" in alone.reason
    for row in scene.rows["nvml_processes"]:
        row["sm_utilization_percent"] = 30
    context = scene.context()
    own = busy.of_process(context, context.gpus[0], 8)
    assert (own.source, set(own.share.tolist())) == (busy.PROCESS, {3000})
    assert spans(own.covered) == [(0, 5000)]


def test_calls_are_seen_from_the_probe_on_and_not_in_gaps() -> None:
    scene = Scene().clock().samples(T0, T0 + 10 * S, pids=[7])
    library = {"library": "cudart", "path": "libcudart.so", "device": 0, "inode": 1, "probes": 9, "not_observed": ""}
    scene.add("libraries", start_ns=T0 + S, duration_ns=S, pid=7, op="attached", **library)
    scene.add("libraries", start_ns=T0 + S, duration_ns=None, pid=8, op="not observable", reason="static", **library)
    scene.add("gaps", start_ns=T0 + 4 * S, duration_ns=S, source="cuda", table_name="cuda_calls", pid=None, reason="x")
    scene.cuda(9, "cudaMemcpy", T0 + 3 * S, MS)
    context = scene.context()
    assert spans(calls_seen(context, 7)[0]) == [(2000, 4000), (5000, 60_000)]
    assert calls_seen(context, 8)[1] == "process 8: its CUDA runtime was not observable: static"
    assert spans(calls_seen(context, 9)[0]) == [(3000, 4000), (5000, 60_000)]
    assert calls_seen(context, 10)[1] == "process 10: no call of it was recorded"


def test_a_shard_is_the_rank_in_the_communicator() -> None:
    context = collectives("asynchronous", steps=3).context()
    shard = shard_of(context, 102)
    assert shard is not None
    assert (shard.rank, shard.nranks, shard.comm_id) == (2, 4, COMM)
    assert shard_of(context, 999) is None
