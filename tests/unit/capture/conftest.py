"""What tests of sources share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.build import build, compiler


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The NVML double, compiled on NVIDIA's nvml.h."""
    if compiler() is None:
        pytest.skip("gcc is not installed")
    return build("nvml", tmp_path_factory.mktemp("nvml"))
