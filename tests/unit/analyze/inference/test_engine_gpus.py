"""Which GPUs an engine is given, and what of NVML's polls lands in its windows."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from tests.engine_scene import EngineScene, gpu_rows, holder_row, process_row

POLL: Mapping[str, int | None] = {
    "gpu_utilization_percent": 50, "memory_utilization_percent": 20, "power_mw": 300_000, "temperature_c": 60,
    "memory_used_bytes": 70 << 30, "memory_total_bytes": 80 << 30, "clock_sm_mhz": 1_900,
}  # fmt: skip


def _served(scene: EngineScene, end_s: int = 4) -> EngineScene:
    """A poll every half second, with two tokens each."""
    for i in range(2 * end_s + 1):
        scene.scrape(i / 2, {"vllm:num_requests_running": 1, "vllm:generation_tokens_total": 2 * i})
    return scene


def _polls(uuid: str, index: int, until_s: int = 4, **changes: int | None) -> list[dict[str, object]]:
    return gpu_rows(uuid, index, [(i / 2 + 0.1, {**POLL, **changes}) for i in range(2 * until_s)])


def test_the_gpu_of_the_process_and_of_what_it_started() -> None:
    """vLLM's listener holds no GPU; the engine core that it started does, and its workers below that."""
    scene = _served(EngineScene(pid=7)).rows("nvml_samples", _polls("GPU-a", 0) + _polls("GPU-b", 1))
    scene.rows("processes", [process_row(7, 1), process_row(8, 7), process_row(9, 8), process_row(10, 1)])
    scene.rows("nvml_processes", [holder_row(9, "GPU-b"), holder_row(10, "GPU-a")])
    run = scene.run()
    assert run.gpus == ("GPU-b",)
    assert "its process" in run.gpu_join or "engine's process" in run.gpu_join


def test_a_lone_engine_without_a_process_takes_the_host() -> None:
    scene = _served(EngineScene(pid=None)).rows("nvml_samples", _polls("GPU-a", 0) + _polls("GPU-b", 1))
    run = scene.run()
    assert run.gpus == ("GPU-a", "GPU-b")
    assert "only engine" in run.gpu_join


def test_two_engines_without_processes_share_nothing_out() -> None:
    scene = _served(EngineScene(pid=None)).rows("nvml_samples", _polls("GPU-a", 0))
    _served(EngineScene(engine=1, pid=None, sink=scene.sink))
    run = scene.run()
    assert run.gpus == ()
    assert "cannot be assigned" in run.gpu_join
    assert run.windows[0].gpu.gpus == 0


def test_a_mig_device_is_not_a_gpu_of_the_host() -> None:
    scene = _served(EngineScene(pid=None)).rows("nvml_samples", _polls("GPU-a", 0))
    mig = [{**r, "parent_uuid": "GPU-a", "gpu_instance": 1} for r in _polls("MIG-1", 0)]
    assert scene.rows("nvml_samples", mig).run().gpus == ("GPU-a",)


def test_sums_means_and_peaks_over_gpus() -> None:
    scene = _served(EngineScene())
    scene.rows("nvml_samples", _polls("GPU-a", 0) + _polls("GPU-b", 1, gpu_utilization_percent=100, temperature_c=80))
    first = scene.run().windows[0].gpu
    assert first.gpus == 2
    assert first.utilization_percent == 75
    assert first.power_mw == 600_000
    assert first.temperature_c == 80
    assert (first.vram_used_bytes, first.vram_total_bytes) == (140 << 30, 160 << 30)
    assert first.clock_sm_mhz == 1_900
    assert first.skew_ns == 400_000_000


def test_a_sum_with_a_gap_is_no_sum() -> None:
    """Half of the power of two GPUs would halve the energy per token."""
    scene = _served(EngineScene()).rows("nvml_samples", _polls("GPU-a", 0) + _polls("GPU-b", 1, power_mw=None))
    run = scene.run()
    assert run.windows[0].gpu.power_mw is None
    assert run.totals.power_mw is None
    assert run.totals.energy_windows == 0


def test_utilisation_counts_with_both_of_the_pair() -> None:
    rows = gpu_rows("GPU-a", 0, [
        (0.1, {**POLL, "gpu_utilization_percent": 10, "memory_utilization_percent": None}),
        (0.6, {**POLL, "gpu_utilization_percent": 90}),
    ])  # fmt: skip
    window = _served(EngineScene()).rows("nvml_samples", rows).run().windows[0]
    assert window.gpu.utilization_percent == 90
    assert window.gpu.memory_utilization_percent == 20


def test_power_of_another_time_is_left_out() -> None:
    """NVML stopped a second and more before the window's last scrape: no energy per token of that window."""
    scene = _served(EngineScene()).rows("nvml_samples", _polls("GPU-a", 0, until_s=1))
    run = scene.run()
    assert [w.gpu.power_mw for w in run.windows] == [300_000, None]
    assert [w.gpu.skew_ns for w in run.windows] == [1_400_000_000, None]
    assert [w.energy_pair for w in run.windows] == [False, False]
    assert run.totals.power_mw is None


def test_energy_windows_have_their_own_tokens() -> None:
    scene = EngineScene()
    for i in range(9):
        tokens = 8 * i if i <= 4 else 32
        scene.scrape(i / 2, {"vllm:num_requests_running": 1, "vllm:generation_tokens_total": tokens})
    run = scene.rows("nvml_samples", _polls("GPU-a", 0)).run()
    assert [w.energy_pair for w in run.windows] == [True, False]
    assert run.totals.energy_windows == 1
    assert run.totals.power_mw == 300_000
    assert run.totals.energy_generation_tps == 16
    assert run.totals.generation_tps == 8


def test_an_engine_on_a_known_gpu_with_a_known_model_has_a_ceiling() -> None:
    scene = _served(EngineScene()).rows("nvml_samples", _polls("GPU-a", 0))
    scene.setting("model", "meta-llama/Llama-3.1-8B-Instruct", "/v1/models").setting(
        "dtype", "bfloat16", "/server_info"
    )
    gpus = [{"index": 0, "uuid": "GPU-a", "name": "NVIDIA H100 80GB HBM3", "driver": "570"}]
    (run,) = scene.context(gpus=gpus).engine_runs
    assert run.gpu_name == "NVIDIA H100 80GB HBM3"
    assert run.ceiling is not None
    assert run.ceiling.tp == 1
    assert run.ceiling.vram_gb == Fraction(80 * (1 << 30), 10**9)
    assert run.ceiling.ridge > 290
