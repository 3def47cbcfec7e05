"""NVML through the double: every field, what is refused, and a GPU that hangs. In a process of its own, because the
library is found through LD_LIBRARY_PATH when it starts."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.bundle.tables_nvml import NVML_PROCESSES, NVML_SAMPLES
from gpuaudit.capture.child import child_environment
from gpuaudit.capture.nvml_source import READINGS
from tests.doubles.build import build, compiler

PROGRAM = """
import json, sys, time
from gpuaudit.capture.nvml_source import NvmlSource
from tests.unit.capture.sinks import ListSink
seconds, polls = float(sys.argv[1]), int(sys.argv[2])
sink, source = ListSink(), NvmlSource()
capability = source.probe()
if capability.available:
    source.start(sink)
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(sink.rows["nvml_samples"]) < polls:
        source.poll(sink)
        time.sleep(0.01)
    source.stop(sink)
json.dump({"capability": vars(capability), "gpus": [g.to_json() for g in source.gpus], "rows": sink.rows,
           "gaps": sink.gaps}, sys.stdout)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("gcc is not installed")
    return build("nvml", tmp_path_factory.mktemp("nvml"))


def sample(library: Path | None, script: str = "", *, seconds: float = 20, polls: int = 4) -> dict[str, Any]:
    environment = child_environment()
    environment.pop("LD_LIBRARY_PATH", None)
    if library is not None:
        path = library.parent / "script.txt"
        path.write_text(script)
        environment |= {"LD_LIBRARY_PATH": str(library.parent), "DOUBLE_NVML_SCRIPT": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seconds), str(polls)], env=environment, capture_output=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_every_field_is_recorded(library: Path) -> None:
    script = """gpus 2
0 1 utilization 93
0 1 memory_utilization 41
0 1 memory_used 123456789
0 1 memory_reserved 777
0 1 power_mw 699000
0 1 power_limit_mw 650000
0 1 temperature 71
0 1 clock_sm 1410
0 1 clock_memory 2000
0 1 clock_sm_max 1900
0 1 event_reasons 4      # power cap
0 1 pcie_tx 11
0 1 pcie_rx 22
0 1 pcie_generation 4
0 1 pcie_width 8
0 1 ecc_corrected 3
0 1 ecc_uncorrected 1
0 1 process 4242 1000000
0 1 process 4243 -1
"""
    out = sample(library, script)
    assert [g["index"] for g in out["gpus"]] == [0, 1]
    row = next(r for r in out["rows"]["nvml_samples"] if r["gpu_index"] == 1)
    assert {k: v for k, v in row.items() if k not in ("start_ns", "duration_ns", "gpu_uuid")} == {
        "gpu_index": 1, "gpu_utilization_percent": 93, "memory_utilization_percent": 41, "memory_total_bytes": 80 << 30,
        "memory_used_bytes": 123456789, "memory_reserved_bytes": 777, "power_mw": 699000, "power_limit_mw": 650000,
        "temperature_c": 71, "clock_sm_mhz": 1410, "clock_memory_mhz": 2000, "clock_sm_max_mhz": 1900,
        "event_reasons": 4, "pcie_tx_kib_per_s": 11, "pcie_rx_kib_per_s": 22, "pcie_generation": 4, "pcie_width": 8,
        "ecc_corrected": 3, "ecc_uncorrected": 1, "unavailable": "",
    }  # fmt: skip
    assert set(row) == {c.name for c in NVML_SAMPLES.columns}
    held = {(r["pid"], r["memory_used_bytes"]) for r in out["rows"]["nvml_processes"]}
    assert held == {(4242, 1000000), (4243, None)}
    assert set(out["rows"]["nvml_processes"][0]) == {c.name for c in NVML_PROCESSES.columns}
    assert out["gaps"] == []


def test_samples_of_a_gpu_follow_each_other_without_a_hole(library: Path) -> None:
    rows = sample(library, "gpus 1", polls=5)["rows"]["nvml_samples"]
    assert len(rows) >= 5
    for before, after in itertools.pairwise(rows):
        assert before["start_ns"] + before["duration_ns"] == after["start_ns"]


def test_what_nvml_refuses_is_null_with_its_code(library: Path) -> None:
    refused = ["utilization", "memory_reserved", "memory_used", "power_mw", "pcie_tx", "ecc_corrected", "processes"]
    script = "gpus 1\n" + "".join(f"0 0 refuse {name} 3\n" for name in refused)
    row = sample(library, script, polls=1)["rows"]["nvml_samples"][0]
    assert set(row["unavailable"].split(",")) == {
        "gpu_utilization_percent=3", "memory_utilization_percent=3", "memory_reserved_bytes=3", "memory_total_bytes=3",
        "memory_used_bytes=3", "power_mw=3", "pcie_tx_kib_per_s=3", "ecc_corrected=3", "compute_processes=3",
    }  # fmt: skip
    assert "power_mw" not in row
    assert row["pcie_rx_kib_per_s"] == 200


def test_an_old_driver_without_memory_version_2(library: Path) -> None:
    row = sample(library, "gpus 1\n0 0 refuse memory_reserved 25\n", polls=1)["rows"]["nvml_samples"][0]
    assert row["memory_used_bytes"] == 1 << 30
    assert row["unavailable"] == "memory_reserved_bytes=25"


def test_a_gpu_that_hangs_is_a_gap_and_delays_no_other(library: Path) -> None:
    out = sample(library, "gpus 2\n300 1 hang 3000\n", seconds=30, polls=32)
    gaps = out["gaps"]
    assert [g["source"] for g in gaps] == ["nvml"]
    assert "GPU 1" in gaps[0]["reason"]
    assert gaps[0]["end_ns"] - gaps[0]["start_ns"] >= 2_000_000_000
    during = [
        r for r in out["rows"]["nvml_samples"]
        if r["gpu_index"] == 0 and gaps[0]["start_ns"] <= r["start_ns"] <= gaps[0]["end_ns"]
    ]  # fmt: skip
    assert len(during) >= 3


def test_a_gpu_that_never_answers_again_does_not_hold_up_the_end(library: Path) -> None:
    out = sample(library, "gpus 2\n0 1 hang 3600000\n", seconds=20, polls=2)
    assert any("GPU 1 until the end" in g["reason"] for g in out["gaps"])
    assert {r["gpu_index"] for r in out["rows"]["nvml_samples"]} == {0}


def test_no_driver_is_a_reason_not_an_error() -> None:
    out = sample(None)
    if out["capability"]["available"]:
        pytest.skip("this host has an NVIDIA driver")
    assert "libnvidia-ml.so.1 was not found" in out["capability"]["reason"]


def test_a_driver_that_refuses(library: Path) -> None:
    assert "code 9" in sample(library, "init 9\n")["capability"]["reason"]
    assert sample(library, "gpus 0\n")["capability"]["reason"] == "NVML lists no GPU"


def test_every_reading_names_a_column() -> None:
    assert {r.column for r in READINGS} <= {c.name for c in NVML_SAMPLES.columns}
