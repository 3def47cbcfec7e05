"""The libraries that the probe table has rows for, each with a file name and the header it was written from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

from gpuaudit.capture.probe_rows.cudart import CUDART
from gpuaudit.capture.probe_rows.driver import DRIVER
from gpuaudit.capture.probe_rows.hip import HIP
from gpuaudit.capture.probe_rows.nccl import NCCL, RCCL
from gpuaudit.capture.probe_types import Library, Probe
from tests.doubles.prototypes import Header

HERE = Path(__file__).resolve().parent
CUDA_12, CUDA_13 = "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime"


@dataclass(frozen=True)
class Interface:
    """One library as one file. ``wheel``: where its header comes from, empty for tests/doubles."""

    file: str
    library: Library
    include: str
    wheel: str = ""

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Rows for this file, in the order of the table."""
        return tuple(p for p in self.library.probes if p.is_of(self.file))

    @cached_property
    def header(self) -> Header:
        """Its header; PackageNotFoundError where the wheel is not installed."""
        includes = [HERE / "real", HERE / "include"]
        if self.wheel:
            includes = [HERE / "real", wheel_folder(self.wheel, "cuda.h")]
        return Header(f'#include "{self.include}"\n', includes, {p.op for p in self.probes})


def wheel_folder(wheel: str, name: str) -> Path:
    """The folder of a file of an installed wheel."""
    for file in metadata.files(wheel) or ():
        if file.name == name:
            return Path(str(file.locate())).resolve().parent
    raise FileNotFoundError(f"{wheel} is installed and has no {name}")


INTERFACES: tuple[Interface, ...] = (
    Interface("libcudart.so.11.0", CUDART, "cudart11.h"),
    Interface("libcudart.so.12", CUDART, "cudart.h", CUDA_12),
    Interface("libcudart.so.13", CUDART, "cudart.h", CUDA_13),
    Interface("libcuda.so.1", DRIVER, "driver.h", CUDA_13),
    Interface("libnccl.so.2", NCCL, "nccl.h"),
    Interface("librccl.so.1", RCCL, "rccl.h"),
    Interface("libamdhip64.so.6", HIP, "hip.h"),
)
