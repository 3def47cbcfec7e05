"""What ``audit check`` says of NVML: it asks for everything once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.nvml_double import environment, named

PROGRAM = """
import json, os, sys
from gpuaudit.capture.check import check_host
lines = [r for r in check_host() if r.name.startswith("NVML")]
json.dump({r.name: [r.ok, r.detail] for r in lines}, sys.stdout)
sys.stdout.flush()
os._exit(0)
"""


def check(library: Path | None, script: str | Path) -> dict[str, list[object]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment(library, script), capture_output=True, check=True
    )
    told: dict[str, list[object]] = json.loads(done.stdout)
    return told


def test_everything_is_there_and_mig_is_told(nvml_library: Path) -> None:
    told = check(nvml_library, named("mig"))
    assert told["NVML"] == [True, "2 GPUs"]
    assert told["NVML GPM"] == [True, "GPU 0: 16 of 16 metrics | GPU 1: 16 of 16 metrics"]
    assert told["NVML MIG"] == [True, "GPU 0: 3 devices | GPU 1: 0 devices"]
    assert told["NVML accounting"][0] is True
    ok, detail = told["NVML events"]
    assert ok
    assert "GPU 0: ecc_single_bit, ecc_double_bit" in str(detail)
    assert "xid" in str(detail)
    assert told["NVML fields"] == [True, "GPU 0: 50 values | GPU 1: 50 values"]


def test_what_the_gpu_does_not_have_is_no_failure(nvml_library: Path) -> None:
    told = check(nvml_library, named("unsupported"))
    assert told["NVML GPM"] == [True, "GPU 0: not supported, it needs Hopper or a later architecture"]
    assert told["NVML events"] == [True, "GPU 0: not supported"]
    assert told["NVML accounting"] == [True, "GPU 0: not supported"]
    ok, detail = told["NVML fields"]
    assert ok
    assert "energy_mj" in str(detail)
    assert "performance_state" in str(detail)


def test_what_is_refused_is_a_failure(nvml_library: Path) -> None:
    refused = ("gpm", "events", "mig_mode", "power_mw")
    told = check(nvml_library, "gpus 1\n" + "".join(f"0 0 refuse {name} 4\n" for name in refused))
    assert told["NVML GPM"] == [False, "GPM of GPU 0: NVML refused with code 4"]
    assert told["NVML events"] == [False, "events of GPU 0 are not heard: NVML code 4"]
    assert told["NVML MIG"] == [False, "GPU 0: refused with code 4"]
    ok, detail = told["NVML fields"]
    assert not ok
    assert "refused: mig_mode (code 4), power_mw (code 4)" in str(detail)


def test_driver_and_library_of_different_versions(nvml_library: Path) -> None:
    told = check(nvml_library, named("driver_mismatch"))
    assert set(told) == {"NVML"}
    assert told["NVML"][0] is False
