"""Readers of NVML on answers that no script of the double gives: a crowd of processes, clocks that step, defects."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pynvml  # type: ignore[import-untyped]
import pytest

from gpuaudit.capture import nvml_check, nvml_events, nvml_samples, nvml_source
from gpuaudit.capture.nvml_devices import Gpu, MigList

GPU = Gpu(0, "GPU-0", "a GPU", "575.1", None)
NOW_US = 1_000_000_000


def process(pid: int) -> Any:
    return SimpleNamespace(pid=pid, usedGpuMemory=1, gpuInstanceId=0, computeInstanceId=0)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without MIG, whose sample has nothing."""
    monkeypatch.setattr(MigList, "fresh", lambda *_: [])
    monkeypatch.setattr(nvml_samples, "read_sample", lambda gpu: {**gpu.identity(), "unavailable": ""})
    monkeypatch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", lambda *_: [])


@pytest.mark.usefixtures("quiet")
def test_a_crowd_of_processes_is_cut_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = [process(pid) for pid in range(nvml_samples.MAX_PROCESSES + 1)]
    monkeypatch.setattr(nvml_samples, "_PROCESS_KINDS", (("compute", lambda *_: crowd),))
    reader = nvml_samples.SampleReader(GPU)
    for _ in range(2):
        assert len(reader()["nvml_processes"]) == nvml_samples.MAX_PROCESSES
    assert [reason for reason, _, _ in reader.notes] == [
        "NVML listed 10001 processes on GPU 0: 10000 of a poll are recorded"
    ]


@pytest.mark.usefixtures("quiet")
def test_use_is_asked_for_since_a_time_that_is_never_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A garbled time of one sample, or a wall clock set back, must not silence all later samples."""
    clock = {"us": NOW_US}
    asked = []

    def use(handle: object, since: int) -> list[Any]:
        asked.append(since)
        return [SimpleNamespace(pid=7, timeStamp=(1 << 64) - 1, smUtil=1, memUtil=1)]

    monkeypatch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", use)
    monkeypatch.setattr(nvml_samples, "_PROCESS_KINDS", (("compute", lambda *_: [process(7)]),))
    monkeypatch.setattr(time, "clock_gettime_ns", lambda *_: clock["us"] * 1000)
    reader = nvml_samples.SampleReader(GPU, now_ns=lambda: 0)
    for step in (0, 250_000, -5_000_000, 0):
        clock["us"] += step
        assert reader()["nvml_processes"][0]["sm_utilization_percent"] == 1
    assert asked == [NOW_US - 1_000_000, NOW_US, NOW_US + 250_000, NOW_US - 4_750_000]


def test_a_storm_of_events_of_an_unknown_gpu_is_one_note() -> None:
    reader = nvml_events.EventReader([], now_ns=lambda: 5)
    for number in range(1000):
        data = SimpleNamespace(device=None, eventType=0x8, eventData=number, gpuInstanceId=0, computeInstanceId=0)
        assert reader._row(data) is None
    assert list(reader.notes) == [("events of a GPU that was not registered, the first of type 0x8", 5, None)]


def test_an_init_that_hangs_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(pynvml, "nvmlInit", answers.wait)
    monkeypatch.setattr(nvml_source, "INIT_DEADLINE_S", 0.05)
    capability = nvml_source.NvmlSource().probe()
    answers.set()
    assert (capability.available, capability.reason) == (False, "nvmlInit did not return within 0 s")


def test_a_defect_is_not_called_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(gpus: object) -> nvml_check.Line:
        raise TypeError("a binding of another version")

    line = nvml_check._line("NVML GPM", broken, [])
    assert (line.ok, line.detail) == (False, "could not be tried: TypeError: a binding of another version")
