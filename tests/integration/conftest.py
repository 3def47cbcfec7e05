"""Fixtures for tests with real BPF: they run as root where the kernel has what is needed, and skip elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture.attach import Programs
from tests.doubles.build import build, compiler


@pytest.fixture(scope="session")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every double and workload program, built once."""
    if compiler() is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("doubles")
    for name in ("cudart", "nccl", "ranks", "calls", "sleeper", "spin"):
        build(name, folder)
    return folder


@pytest.fixture(scope="session")
def bpf() -> None:
    """Skip unless BPF programs load on this host, and say why not."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    programs = Programs()
    try:
        programs.load()
    except HostUnfit as e:
        pytest.skip(f"BPF is not usable here: {e}")
    programs.close()
