"""Sections on evidence at the ends of its types: an answer or a reason, never a traceback, and exact JSON."""

from __future__ import annotations

import math
from pathlib import Path

from gpuaudit.analyze.finding import Document
from gpuaudit.analyze.load import load_document
from gpuaudit.analyze.prometheus import exposition
from gpuaudit.analyze.run import document_bytes
from gpuaudit.analyze.store import MAX_TIME_NS
from gpuaudit.capture.exposition import parse
from tests.scenes import MS, T0, S, Scene

U64, U32 = 2**64 - 1, 2**32 - 1
H100 = "NVIDIA H100 80GB HBM3"


def through(scene: Scene, tmp_path: Path) -> Document:
    """Written, and loaded as a stranger's."""
    scene.open_body["gpus"] = [{"index": 0, "uuid": "GPU-0", "name": H100, "driver": "1"}]
    path = tmp_path / "x.findings.json"
    path.write_bytes(document_bytes(scene.document()))
    document = load_document(path)
    ids = [s.id for s in document.sections]
    assert {"roofline", "compute_stall", "residency", "vram", "quantisation"} <= set(ids)
    if any(s.state == "evaluated" for s in document.sections if s.id in {"compute_stall", "vram"}):
        assert parse(exposition(document)).samples
    return document


def gpm(scene: Scene, value: float, gpu: int = 0) -> Scene:
    names = ("sm_activity_percent", "tensor_half_percent", "dram_bandwidth_percent")
    return scene.add(
        "gpm_samples", start_ns=T0, duration_ns=S, gpu_index=gpu, gpu_uuid=f"GPU-{gpu}", unavailable="",
        **dict.fromkeys(names, value),
    )  # fmt: skip


def test_percentages_of_gpm(tmp_path: Path) -> None:
    """A GPU for each value: what one of them does to its own numbers it does beside the others too."""
    scene = Scene().clock().process(7).cuda(7, "cudaMalloc", T0, MS)
    for gpu, value in enumerate((math.nan, math.inf, -math.inf, -5.0, 1e300, 5e-324)):
        gpm(scene.samples(T0, T0 + 2 * S, gpu, pids=[7]), value, gpu)
    through(scene, tmp_path)


def test_sizes_and_addresses(tmp_path: Path) -> None:
    scene = Scene().clock().process(7, start_ns=T0 + 1).samples(T0, T0 + 2 * S, pids=[7], memory_used_bytes=U64)
    for op in ("cudaMalloc", "cudaFree", "cudaMemcpy", "cudaMemcpyAsync", "cudaLaunchKernel", "cudaStreamSynchronize"):
        for at in range(3):
            scene.cuda(
                7, op, T0 + at * MS, None if at == 2 else MS, size_bytes=U64, device_pointer=U64 - at, direction=1,
                stream=U64 - at, source_pointer=U64,
            )  # fmt: skip
            scene.cuda(7, op, T0 + S + at, 1, size_bytes=U64, device_pointer=(1 << 61) + at, direction=at, stream=0)
    for row in scene.rows["nvml_processes"]:
        row["memory_used_bytes"] = U64
        row["sm_utilization_percent"] = U32
    for row in scene.rows["nvml_samples"]:
        row |= {"pcie_generation": U32, "pcie_width": U32, "gpu_utilization_percent": U32, "memory_reserved_bytes": U64}
    through(scene, tmp_path)


def test_a_capture_of_146_years(tmp_path: Path) -> None:
    scene = Scene().clock().process(7).sample(T0, MAX_TIME_NS - T0 - 1, 0, [7], memory_used_bytes=5)
    document = through(scene.cuda(7, "cudaMemcpy", T0, MAX_TIME_NS - T0 - 1, size_bytes=1, direction=1), tmp_path)
    stall = next(s for s in document.sections if s.id == "compute_stall")
    assert (stall.state, "longer than" in stall.reason) == ("not evaluated", True)


def test_collectives(tmp_path: Path) -> None:
    scene = Scene().clock().samples(T0, T0 + S, pids=[7])
    for at in range(40):
        scene.add(
            "nccl_calls", start_ns=T0 + at, duration_ns=1, pid=7, tid=7, op="ncclAllReduce", return_code=0,
            comm_handle=U64, comm_id=U64, rank=2**31 - 1, nranks=2**31 - 1, datatype=-(2**31), reduce_op=0,
            count=U64 - at // 8, size_bytes=U64, stream=U64,
        )  # fmt: skip
    through(scene, tmp_path)
