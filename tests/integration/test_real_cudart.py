"""NVIDIA's own CUDA runtimes, from their wheels: probes fire, arguments and return codes are read.

There is no driver here, so nearly every call returns 35 (cudaErrorInsufficientDriver); that is what must be recorded.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from gpuaudit.capture.probes import CUDART
from tests.integration.recording import recording, start, truth
from tests.integration.test_calls_exact import check_calls

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

WHEELS = {
    "nvidia-cuda-runtime-cu12": ("libcudart.so.12", "nvidia-cuda-runtime-cu12==12.9.79"),
    "nvidia-cuda-runtime": ("libcudart.so.13", "nvidia-cuda-runtime==13.5.37"),
}


@pytest.mark.parametrize("wheel", WHEELS)
def test_real_runtime(wheel: str, doubles: Path, tmp_path: Path) -> None:
    file, requirement = WHEELS[wheel]
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"pip install {requirement}")
    cudart = next(Path(str(f.locate())).resolve() for f in files if f.name == file)
    with recording() as r:
        assert r.capture.prepare([str(cudart)]) == []
        assert {p["instruction"] for p in r.of("probes", path=str(cudart))} == {"push"}
        r.run(start(doubles / "calls", "--cudart", cudart, "--out", tmp_path / "truth", "--rounds", "5"))
        r.finish()
        check_calls(r, tmp_path / "truth")
        ops = {call["op"] for call in truth(tmp_path / "truth")}
        assert ops <= {p.op for p in CUDART.probes}
        refused = {row["op"] for row in r.of("cuda_calls", return_code=35)}
        assert {"cudaMalloc", "cudaMemcpy", "cudaMemcpyAsync", "cudaStreamSynchronize"} <= refused
        assert {row["device_pointer"] for row in r.of("cuda_calls", op="cudaMalloc", return_code=35)} == {None}
