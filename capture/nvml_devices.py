"""GPUs and MIG devices as NVML lists them, and how rows name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml  # type: ignore[import-untyped]

from gpuaudit.capture.nvml_read import NOT_SUPPORTED, Row, code_of, text
from gpuaudit.capture.source import boottime_ns

LIST_AGAIN_NS = 5_000_000_000
"""MIG devices come and go by an administrator's command; a list of them is at most this old."""


@dataclass(frozen=True)
class Gpu:
    """One physical GPU as leaf 0 tells of it; ``handle`` is NVML's."""

    index: int
    uuid: str
    name: str
    driver: str
    handle: Any = field(repr=False, compare=False)

    def to_json(self) -> dict[str, object]:
        """The row of the ``open`` leaf's ``gpus``."""
        return {"index": self.index, "uuid": self.uuid, "name": self.name, "driver": self.driver}

    def identity(self) -> Row:
        """The columns that say whose row it is."""
        return {"gpu_index": self.index, "gpu_uuid": self.uuid}


@dataclass(frozen=True)
class MigDevice:
    """One MIG device: a compute instance within a GPU instance of a physical GPU."""

    parent: Gpu
    uuid: str
    name: str
    gpu_instance: int
    compute_instance: int
    handle: Any = field(repr=False, compare=False)

    def identity(self) -> Row:
        """The columns that say whose row it is; ``gpu_index`` is the physical GPU's."""
        of_parent = {"gpu_index": self.parent.index, "parent_uuid": self.parent.uuid}
        return {**of_parent, "gpu_uuid": self.uuid, **self.instances()}

    def instances(self) -> Row:
        """Its place within the physical GPU."""
        return {"gpu_instance": self.gpu_instance, "compute_instance": self.compute_instance}


Device = Gpu | MigDevice


def list_gpus() -> tuple[list[Gpu], dict[int, int]]:
    """The GPUs that can be asked, and index → NVML code of those that cannot; NVMLError when none can be counted."""
    driver = text(pynvml.nvmlSystemGetDriverVersion())
    gpus, refused = [], {}
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = text(pynvml.nvmlDeviceGetUUID(handle))
        except Exception as e:
            refused[index] = code_of(e)
        else:
            gpus.append(Gpu(index, uuid, _name(handle), driver, handle))
    return gpus, refused


def _name(handle: Any) -> str:
    """The product's name, which only serves to be read: a GPU without one is recorded all the same."""
    try:
        return text(pynvml.nvmlDeviceGetName(handle))
    except Exception as e:
        return f"name not told (NVML code {code_of(e)})"


def list_mig(gpu: Gpu) -> tuple[list[MigDevice], int]:
    """The MIG devices of a GPU now, and 0; or what there is of them and NVML's code. No MIG mode: none, and 0."""
    try:
        mode, _ = pynvml.nvmlDeviceGetMigMode(gpu.handle)
        places = pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu.handle) if mode == pynvml.NVML_DEVICE_MIG_ENABLE else 0
    except Exception as e:
        code = code_of(e)
        return [], 0 if code == NOT_SUPPORTED else code
    found: list[MigDevice] = []
    for place in range(places):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu.handle, place)
            found.append(
                MigDevice(
                    gpu, text(pynvml.nvmlDeviceGetUUID(handle)), text(pynvml.nvmlDeviceGetName(handle)),
                    int(pynvml.nvmlDeviceGetGpuInstanceId(handle)), int(pynvml.nvmlDeviceGetComputeInstanceId(handle)),
                    handle,
                )
            )  # fmt: skip
        except Exception as e:
            code = code_of(e)
            if code != pynvml.NVML_ERROR_NOT_FOUND:  # an empty place
                return found, code
    return found, 0


class MigList:
    """The MIG devices of one GPU, listed again when the list is older than :data:`LIST_AGAIN_NS`."""

    def __init__(self, gpu: Gpu, now_ns: Callable[[], int] = boottime_ns) -> None:
        self._gpu = gpu
        self._now_ns = now_ns
        self._listed_ns: int | None = None
        self.devices: list[MigDevice] = []
        self.code = 0

    def fresh(self) -> list[MigDevice]:
        """The devices, as of a few seconds ago at most."""
        now = self._now_ns()
        if self._listed_ns is None or now - self._listed_ns >= LIST_AGAIN_NS:
            self.devices, self.code = list_mig(self._gpu)
            self._listed_ns = now
        return self.devices
