"""What does not change while a capture runs: the artefact ``gpus``, canonical JSON.

``{"system": FACTS, "gpus": [{"index", "uuid", "answered", "facts": FACTS, "others": {UUID: FACTS}, "mig": [{"uuid",
"facts": FACTS}]}]}``. FACTS maps a name to ``{"value": …}``, ``{"not_supported": true}`` or ``{"error": NVML code}``;
``answered`` is false, and FACTS empty, for a GPU that had not answered when the capture ended. Units stand last in the
names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pynvml  # type: ignore[import-untyped]

from gpuaudit.capture.nvml_devices import Gpu, MigDevice, list_mig
from gpuaudit.capture.nvml_read import NOT_AVAILABLE, NOT_SUPPORTED, code_of, field_value, text

Fact = dict[str, object]
Call = Callable[[Any], object]

_SENTINEL_32 = (1 << 32) - 1
_MAX_JSON_INTEGER = (1 << 53) - 1
"""What canonical JSON holds exactly (RFC 8785); no fact that NVML tells comes near, but its 64-bit sentinel is past."""
_MAX_NUMA_NODES = 64
"""Bits asked for in a set of NUMA nodes: one word, as many nodes as the largest servers have."""

ARCHITECTURES = {
    2: "Kepler", 3: "Maxwell", 4: "Pascal", 5: "Volta", 6: "Turing", 7: "Ampere", 8: "Ada", 9: "Hopper",
    10: "Blackwell", 13: "Rubin",
}  # fmt: skip
"""NVML_DEVICE_ARCH_* of nvml.h."""

TOPOLOGY_LEVELS = {0: "internal", 10: "single", 20: "multiple", 30: "hostbridge", 40: "node", 50: "system"}
"""nvmlGpuTopologyLevel_t: same board, one PCIe switch, several, same host bridge, same NUMA node, across the system."""


def fact(call: Callable[[], object]) -> Fact:
    """One field: what the call says, that it is not supported, or with which code NVML refused."""
    try:
        value = call()
    except Exception as e:
        code = code_of(e)
        return {"not_supported": True} if code == NOT_SUPPORTED else {"error": code}
    if value == _SENTINEL_32 or (isinstance(value, int) and abs(value) > _MAX_JSON_INTEGER):
        return {"error": NOT_AVAILABLE}
    return {"value": text(value) if isinstance(value, bytes) else value}


def bits(words: Iterable[int]) -> list[int]:
    """Numbers of the bits that are set in a row of 64-bit words."""
    return [64 * i + bit for i, word in enumerate(words) for bit in range(64) if word >> bit & 1]


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as the kernel writes sets of CPUs: ``0-31,64-95``."""
    out: list[list[int]] = []
    for n in numbers:
        if out and n == out[-1][1] + 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


def _cpu_affinity(handle: Any) -> str:
    words = -(-(os.cpu_count() or 1) // 64)
    return ranges(bits(pynvml.nvmlDeviceGetCpuAffinity(handle, words)))


def _numa_affinity(handle: Any) -> str:
    words = _MAX_NUMA_NODES // 64
    return ranges(bits(pynvml.nvmlDeviceGetMemoryAffinity(handle, words, pynvml.NVML_AFFINITY_SCOPE_NODE)))


def _architecture(handle: Any) -> object:
    number = int(pynvml.nvmlDeviceGetArchitecture(handle))
    return number if number == _SENTINEL_32 else ARCHITECTURES.get(number, f"NVML architecture {number}")


def _compute_capability(handle: Any) -> str:
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return f"{major}.{minor}"


def _pci(member: str) -> Call:
    return lambda h: getattr(pynvml.nvmlDeviceGetPciInfo_v3(h), member)


_SM, _MEMORY = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM

GPU_FACTS: Mapping[str, Call] = {
    "name": pynvml.nvmlDeviceGetName,
    "serial": pynvml.nvmlDeviceGetSerial,
    "board_part_number": pynvml.nvmlDeviceGetBoardPartNumber,
    "vbios_version": pynvml.nvmlDeviceGetVbiosVersion,
    "pci_bus_id": _pci("busId"),
    "pci_device_id": _pci("pciDeviceId"),
    "pci_subsystem_id": _pci("pciSubSystemId"),
    "architecture": _architecture,
    "compute_capability": _compute_capability,
    "cuda_cores": pynvml.nvmlDeviceGetNumGpuCores,
    "memory_total_bytes": lambda h: int(pynvml.nvmlDeviceGetMemoryInfo(h).total),
    "memory_bus_width_bits": pynvml.nvmlDeviceGetMemoryBusWidth,
    "pcie_generation_max": pynvml.nvmlDeviceGetMaxPcieLinkGeneration,
    "pcie_width_max": pynvml.nvmlDeviceGetMaxPcieLinkWidth,
    "clock_sm_max_mhz": lambda h: pynvml.nvmlDeviceGetMaxClockInfo(h, _SM),
    "clock_memory_max_mhz": lambda h: pynvml.nvmlDeviceGetMaxClockInfo(h, _MEMORY),
    "clock_sm_default_mhz": lambda h: pynvml.nvmlDeviceGetDefaultApplicationsClock(h, _SM),
    "clock_memory_default_mhz": lambda h: pynvml.nvmlDeviceGetDefaultApplicationsClock(h, _MEMORY),
    "clock_sm_boost_max_mhz": lambda h: pynvml.nvmlDeviceGetMaxCustomerBoostClock(h, _SM),
    "power_limit_enforced_mw": pynvml.nvmlDeviceGetEnforcedPowerLimit,
    "power_limit_set_mw": pynvml.nvmlDeviceGetPowerManagementLimit,
    "power_limit_default_mw": pynvml.nvmlDeviceGetPowerManagementDefaultLimit,
    "power_limit_min_mw": lambda h: pynvml.nvmlDeviceGetPowerManagementLimitConstraints(h)[0],
    "power_limit_max_mw": lambda h: pynvml.nvmlDeviceGetPowerManagementLimitConstraints(h)[1],
    "temperature_slowdown_c": lambda h: pynvml.nvmlDeviceGetTemperatureThreshold(
        h, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
    ),
    "persistence_mode": pynvml.nvmlDeviceGetPersistenceMode,
    "compute_mode": pynvml.nvmlDeviceGetComputeMode,
    "ecc_mode": lambda h: pynvml.nvmlDeviceGetEccMode(h)[0],
    "mig_mode": lambda h: pynvml.nvmlDeviceGetMigMode(h)[0],
    "accounting_mode": pynvml.nvmlDeviceGetAccountingMode,
    "cpu_affinity": _cpu_affinity,
    "numa_affinity": _numa_affinity,
    "numa_node": pynvml.nvmlDeviceGetNumaNodeId,
    "event_types": pynvml.nvmlDeviceGetSupportedEventTypes,
    "nvlinks": lambda h: field_value(h, pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT),
    "gpm": lambda h: int(pynvml.nvmlGpmQueryDeviceSupport(h).isSupportedDevice),
}
"""Fields of a GPU. ``compute_mode`` and ``event_types`` are NVML's numbers, modes are 1 for on; ``cpu_affinity`` and
``numa_affinity`` name CPUs and NUMA nodes near the GPU, ``numa_node`` its own memory's node on coherent platforms."""

_MIG_MEMBERS = ("multiprocessorCount", "gpuInstanceSliceCount", "computeInstanceSliceCount", "memorySizeMB")
_MIG_NAMES = ("multiprocessors", "gpu_instance_slices", "compute_instance_slices", "memory_mib")

_P2P = {"p2p_read": 0, "p2p_write": 1, "p2p_nvlink": 2}
"""nvmlGpuP2PCapsIndex_t of nvml.h; the answer is an nvmlGpuP2PStatus_t, 0 is that it works."""


def read_facts(gpu: Gpu, gpus: Sequence[Gpu]) -> dict[str, Any]:
    """The entry of one GPU; ``gpus`` are all, for the topology."""
    return {
        "index": gpu.index, "uuid": gpu.uuid, "answered": True,
        "facts": {name: fact(partial(call, gpu.handle)) for name, call in GPU_FACTS.items()},
        "others": {other.uuid: _between(gpu, other) for other in gpus if other.uuid != gpu.uuid},
        "mig": [_mig(device) for device in list_mig(gpu)[0]],
    }  # fmt: skip


def unanswered(gpu: Gpu) -> dict[str, Any]:
    """The entry of a GPU that has not answered."""
    return {"index": gpu.index, "uuid": gpu.uuid, "answered": False, "facts": {}, "others": {}, "mig": []}


def read_system() -> dict[str, Fact]:
    """Versions of driver, NVML and the newest CUDA that the driver can do."""

    def cuda() -> str:
        version = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        return f"{version // 1000}.{version % 1000 // 10}"  # nvml.h, NVML_CUDA_DRIVER_VERSION_MAJOR and _MINOR

    return {
        "driver_version": fact(pynvml.nvmlSystemGetDriverVersion),
        "nvml_version": fact(pynvml.nvmlSystemGetNVMLVersion),
        "cuda_driver_version": fact(cuda),
    }


def _between(gpu: Gpu, other: Gpu) -> dict[str, Fact]:
    def ancestor() -> str:
        level = int(pynvml.nvmlDeviceGetTopologyCommonAncestor(gpu.handle, other.handle))
        return TOPOLOGY_LEVELS.get(level, f"NVML level {level}")

    def p2p(index: int) -> Callable[[], object]:
        return lambda: pynvml.nvmlDeviceGetP2PStatus(gpu.handle, other.handle, index)

    return {"common_ancestor": fact(ancestor), **{name: fact(p2p(index)) for name, index in _P2P.items()}}


def _mig(device: MigDevice) -> dict[str, Any]:
    try:
        attributes = pynvml.nvmlDeviceGetAttributes_v2(device.handle)
    except Exception as e:
        code = code_of(e)
        told: dict[str, Fact] = {name: {"error": code} for name in _MIG_NAMES}
    else:
        pairs = zip(_MIG_NAMES, _MIG_MEMBERS, strict=True)
        told = {name: fact(partial(getattr, attributes, member)) for name, member in pairs}
    own: dict[str, Fact] = {name: {"value": int(str(value))} for name, value in device.instances().items()}
    return {"uuid": device.uuid, "facts": {"name": {"value": device.name}, **own, **told}}
