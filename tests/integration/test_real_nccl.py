"""NVIDIA's own NCCL, from its wheel: 300 MB, so this runs only where somebody has installed it.

Without a driver ncclGetUniqueId succeeds, ncclCommInitRank returns 1 (unhandled CUDA error) and a collective on no
communicator 4 (invalid argument): arguments, identities and return codes are real.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

from gpuaudit.capture.probes import NCCL
from tests.integration.recording import recording, start
from tests.integration.test_calls_exact import check_calls
from tests.integration.test_real_cudart import exported

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

WHEELS = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")


def installed() -> Path:
    for wheel in WHEELS:
        try:
            files = importlib.metadata.files(wheel) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        return next(Path(str(f.locate())).resolve() for f in files if f.name == "libnccl.so.2")
    pytest.skip("pip install nvidia-nccl-cu13==2.32.3")


def test_real_nccl(doubles: Path, tmp_path: Path) -> None:
    nccl = installed()
    with recording() as r:
        assert r.capture.prepare([str(nccl)]) == []
        process = start(doubles / "calls", "--nccl", nccl, "--out", tmp_path / "truth", "--rounds", "3")
        r.run(process)
        r.finish()
        check_calls(r, tmp_path / "truth")
        inits = [row for row in r.of("nccl_comms", pid=process.pid) if row["op"].startswith("ncclCommInitRank")]
        assert {(row["return_code"], row["comm_handle"]) for row in inits} == {(1, None)}
        assert len({row["comm_id"] for row in inits}) == 3
        assert {row["return_code"] for row in r.of("nccl_calls", pid=process.pid)} == {4}
    names = exported(nccl)
    attached = {p["op"] for p in r.of("probes", path=str(nccl)) if p["hits"] is not None}
    assert attached == {p.op for p in NCCL.probes if p.op in names}
    left = sorted(n for n in names - attached if re.fullmatch(r"nccl[A-Z]\w*", n))
    print(f"{nccl.name}: {len(attached)} functions probed, {len(left)} exported but not observed: {', '.join(left)}")
    assert [n for n in left if re.match(r"nccl(All|Reduce|Broadcast|Gather|Scatter|Send|Recv|Group|CommInit)", n)] == []
