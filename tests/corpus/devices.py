"""GPUs that are slowed, shared, capped, badly linked or broken, and a process killed for want of memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.corpus.model import Host, Planted, Range
from tests.scenes import MS, T0, US, S

PID = 6_100
GPU = 5
HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x8, 0x20, 0x40, 0x80
"""Bits of nvmlClocksEventReasons (nvml.h)."""


@dataclass(frozen=True)
class Stretch:
    """A steady loop whose steps take ``factor`` percent of their time for a while in its middle, for a ``reason``:
    the GPU throttles, another process uses it, or nobody knows. ``elsewhere`` (the twin): the evidence of the reason
    lies on another GPU."""

    reason: Literal["throttled", "gpu_shared", None]
    bits: int = 0
    elsewhere: bool = False
    factor: Range = (200, 380)
    lasts: Range = (4_000 * MS, 7_000 * MS)
    step: Range = (15 * MS, 25 * MS)
    total: int = 20 * S

    def happen(self, host: Host) -> None:
        host.scene.process(PID, start_ns=T0 - 100 * S)
        begin = T0 + host.of((6 * S, 9 * S))
        end = begin + host.of(self.lasts)
        step, factor = host.of(self.step), host.of(self.factor)
        at = T0 + 10 * MS
        while at < T0 + self.total:
            for i in range(3):
                ns = host.around(6 * US)
                host.scene.cuda(PID, "cudaLaunchKernel", at, ns, stream=7, function=0x5555_0000 + 64 * i)
                at += ns + 5 * US
            ns = host.around(step, 0.04)
            if begin <= at < end:
                ns = ns * factor // 100
            host.scene.cuda(PID, "cudaStreamSynchronize", at, ns, stream=7)
            at += ns + host.of((100 * US, 400 * US))
        self._gpu(host, begin, end, at)
        if self.reason == "gpu_shared":
            self._neighbour(host, begin, end)
        host.reaches(at)
        if self.reason is not None and not self.elsewhere:
            host.planted.append(Planted(self.reason, PID))

    def _gpu(self, host: Host, begin: int, end: int, last: int) -> None:
        for at in range(T0, last, 250 * MS):
            slowed = self.reason == "throttled" and at + 250 * MS > begin and at < end
            for gpu, pids in ((GPU, [PID]), (GPU + 1, [])):
                here = slowed and (gpu == GPU + 1) == self.elsewhere
                host.scene.sample(
                    at, 250 * MS, gpu, pids, gpu_utilization_percent=97 if gpu == GPU else 35,
                    event_reasons=self.bits if here else 0, clock_sm_mhz=705 if here else 1_755,
                    clock_sm_max_mhz=1_980, temperature_c=91 if here else 66, power_mw=420_000,
                    power_limit_mw=700_000, performance_state=0,
                )  # fmt: skip

    def _neighbour(self, host: Host, begin: int, end: int) -> None:
        """Another process that launches kernels all the while, listed by NVML with the GPU that it uses."""
        pid, gpu = PID + 50, GPU + 1 if self.elsewhere else GPU
        host.scene.process(pid, "notebook", start_ns=T0 - 20 * S)
        at = begin
        while at < end:
            host.scene.cuda(pid, "cudaLaunchKernel", at, host.around(6 * US), stream=3, function=0x7777_0000)
            ns = host.around(14 * MS)
            host.scene.cuda(pid, "cudaStreamSynchronize", at + 20 * US, ns, stream=3)
            at += ns + 60 * US
        for at in range(begin - begin % (250 * MS), end, 250 * MS):
            for who, where in ((pid, gpu), (PID, GPU)):
                host.scene.add(
                    "nvml_processes", start_ns=at, duration_ns=250 * MS, gpu_index=where, gpu_uuid=f"GPU-{where}",
                    pid=who, op="compute", memory_used_bytes=1 << 30, sm_utilization_percent=48,
                )  # fmt: skip


State = Literal["clock_caps", "pcie_link", "xid", "memory_errors", "power_cap", "healthy"]


@dataclass(frozen=True)
class Device:
    """A GPU of which NVML tells that something is wrong with it, or (``healthy``) nothing."""

    state: State
    gpu: int = 7
    lasts: Range = (30_000 * MS, 60_000 * MS)
    extra: dict[str, Any] = field(default_factory=dict)

    def happen(self, host: Host) -> None:
        end = T0 + host.of(self.lasts)
        samples: dict[str, Any] = {
            "clock_sm_mhz": 1_965, "clock_sm_max_mhz": 1_980, "clock_sm_cap_mhz": 1_980, "pcie_generation": 5,
            "pcie_width": 16, "performance_state": 0, "power_mw": 430_000, "power_limit_mw": 700_000,
        }  # fmt: skip
        capped = host.draw.choice([990, 1_200, 1_395])
        changed: dict[State, dict[str, Any]] = {
            "clock_caps": {"clock_sm_mhz": capped, "clock_sm_cap_mhz": capped, "event_reasons": 0x2},
            "pcie_link": {
                "pcie_width": host.draw.choice([1, 2, 4]), "pcie_rx_kib_per_s": 3_400_000, "pcie_tx_kib_per_s": 900,
            },
            "power_cap": {
                "power_limit_mw": 400_000, "power_mw": 399_000, "event_reasons": 0x4, "clock_sm_mhz": 1_290,
            },
        }  # fmt: skip
        host.scene.samples(T0, end, self.gpu, **{**samples, **changed.get(self.state, {}), **self.extra})
        rate = host.of((4, 15)) * S
        for at in (*range(T0, end, 5 * S), end):
            errors = (at - T0) // rate if self.state == "memory_errors" else 0
            host.scene.add(
                "nvml_health", start_ns=at, duration_ns=0, gpu_index=self.gpu, gpu_uuid=f"GPU-{self.gpu}",
                unavailable="", pcie_generation_max=5, pcie_width_max=16, power_limit_default_mw=700_000, ecc_enabled=1,
                ecc_corrected_volatile=errors, ecc_uncorrected_volatile=errors // 3,
            )  # fmt: skip
        if self.state == "xid":
            host.scene.add(
                "nvml_events", start_ns=T0 + host.of((3 * S, 25 * S)), duration_ns=0, gpu_index=self.gpu,
                gpu_uuid=f"GPU-{self.gpu}", op="xid", event_type=8, event_data=host.draw.choice([79, 74, 48]),
            )  # fmt: skip
        host.reaches(end)
        if self.state != "healthy":
            host.planted.append(Planted(self.state, 0))
            host.also |= {(c, 0) for c in ("clock_capped", "pcie_degraded", "gpu_error", "throttled")}


@dataclass(frozen=True)
class Placed:
    """A process that gives its work to a GPU from CPUs that are far from it, or (the twin) near."""

    pid: int = 6_600
    near: str = "0-15"
    far: bool = True
    calls: Range = (250, 400)

    def happen(self, host: Host) -> None:
        host.scene.process(self.pid, start_ns=T0 - 60 * S)
        facts = {"gpus": [{"uuid": "GPU-0", "facts": {"cpu_affinity": {"value": self.near}}}]}
        host.scene.artefacts.append(("gpus", json.dumps(facts).encode()))
        at = T0 + 100 * MS
        for _ in range(host.of(self.calls)):
            cpu = host.of((16, 40) if self.far else (0, 15))
            ns = host.around(900 * US)
            host.scene.cuda(self.pid, "cudaLaunchKernel", at, ns, cpu=cpu, stream=7)
            at += ns + host.of((MS, 20 * MS))
        host.scene.samples(T0, at, 0, [self.pid])
        host.reaches(at)
        if self.far:
            host.planted.append(Planted("numa_misplacement", self.pid))


@dataclass(frozen=True)
class OutOfMemory:
    """The kernel kills a process for want of memory: one that uses a GPU, or (the twin) a bystander."""

    pid: int = 6_900
    uses_gpu: bool = True
    calls: Range = (200, 500)

    def happen(self, host: Host) -> None:
        at = T0 + 50 * MS
        name = "python3" if self.uses_gpu else "mysqld"
        for _ in range(host.of(self.calls)):
            if self.uses_gpu:
                host.scene.cuda(self.pid, "cudaLaunchKernel", at, host.around(6 * US), stream=7)
            at += host.of((2 * MS, 6 * MS))
        host.scene.process(
            self.pid, name, "traced" if self.uses_gpu else "workload", start_ns=T0 - 9 * S, op="exited",
            duration_ns=at + 12 * MS - T0 + 9 * S, exit_status=-9,
        )  # fmt: skip
        host.scene.add(
            "oom_kills", start_ns=at, pid=self.pid, comm=name, uid=1_000, resident_bytes=host.of((8, 60)) << 30,
            killer_pid=1_400, killer_comm="loader", cgroup_id=40,
        )  # fmt: skip
        host.scene.add(
            "lifecycle", start_ns=at + 10 * MS, pid=self.pid, tid=self.pid, op="exit", event=2, comm=name, signal=9
        )
        if self.uses_gpu:
            host.planted.append(Planted("oom_kill", self.pid))
        else:
            host.also.add(("oom_kill", self.pid))
        host.reaches(at + S)
