"""What this host can capture, found out by doing it: every program is loaded, every probe attached, and hit.

A check that only asked for version numbers could be green where the capture then fails.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture import libbpf, obstacles, processes
from gpuaudit.capture.attach import MECHANISMS, Mechanism, Place, Programs, cookie
from gpuaudit.capture.capabilities import CapabilitySets
from gpuaudit.capture.capability_needs import without
from gpuaudit.capture.discovery import LIBRARY_FILES, Scanner
from gpuaudit.capture.engine_check import ask_engines
from gpuaudit.capture.host_samples import HostSamples
from gpuaudit.capture.loading import LoadedPart
from gpuaudit.capture.map_events import MapEvents
from gpuaudit.capture.nvml_check import try_everything
from gpuaudit.capture.nvml_source import NvmlSource
from gpuaudit.capture.parts import PARTS
from gpuaudit.capture.privileges import foreign_namespace, missing_for_bpf
from gpuaudit.capture.probed_files import ProbedFiles
from gpuaudit.capture.ring import LossCounters, RingReader
from gpuaudit.capture.system_calls import IOCTL, SystemCalls, watched_now

BTF = Path("/sys/kernel/btf/vmlinux")

_HITS = 3
_FUNCTION = bytes.fromhex("554889e55dc3")
"""push rbp; mov rbp, rsp; pop rbp; ret"""


@dataclass(frozen=True)
class CheckResult:
    """One thing that was tried. ``hint``: what to do when it failed."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def check_host() -> list[CheckResult]:
    """Try everything a capture does. Never raises; what depends on something that failed is left out."""
    results = [*_nvml(), *_engines(), *_files(), _privileges(), _btf(), _libbpf()]
    return results + _bpf() if results[-1].ok else results


def _nvml() -> list[CheckResult]:
    source = NvmlSource()
    capability = source.probe()
    if not capability.available:
        hint = capability.hint or "install the NVIDIA driver"
        return [CheckResult("NVML", False, capability.reason, hint)]
    lacking = "what NVML refuses will be missing, with the reason, in the evidence"
    lines = [CheckResult(line.name, line.ok, line.detail, lacking) for line in try_everything(source.gpus)]
    return [CheckResult("NVML", True, f"{len(source.gpus)} GPUs"), *lines]


def _engines() -> Iterator[CheckResult]:
    """Every inference engine that runs now, really asked for its metrics."""
    found = False
    for answer in ask_engines():
        found = True
        hint = "" if answer.ok else "its own numbers will not be in the evidence; name where it listens with --engine"
        yield CheckResult(f"engine in {answer.where}", answer.ok, answer.detail, hint)
    if not found:
        yield CheckResult("engines", True, "no inference engine is found now; they are scraped when one listens")


def _files() -> Iterator[CheckResult]:
    """What the kernel counts by itself and is only read."""
    samples = HostSamples(lambda _table, _row: None)
    for table, what in (("pressure", "pressure stall information"), ("cgroup_cpu", "CPU accounting of cgroups")):
        reason = samples.missing.get(table, "")
        found = samples.note if table == "pressure" and samples.note else "can be read"
        yield CheckResult(what, not reason, reason or found, f"the table {table} will have no rows, and a gap says so")


def _bpf() -> list[CheckResult]:
    results: list[CheckResult] = []
    programs = Programs(stacks=True)
    try:
        programs.load()
        results.append(CheckResult("BPF programs", True, f"loaded on {platform.release()}, {platform.machine()}"))
        results.append(_stacks(programs))
        parts = [LoadedPart(p, programs) for p in PARTS if p.source]
        try:
            results += [r for part in (programs, *parts) for r in _part(part)]
        finally:
            for part in parts:
                part.close()
        results += _mechanisms()
        results.append(_mappings())
        results += _libraries(programs)
    except HostUnfit as e:
        results.append(CheckResult("BPF programs", False, e.message, e.hint))
    finally:
        programs.close()
    return results


def _mappings() -> CheckResult:
    """Whether the kernel tells of libraries as they are mapped."""
    events = MapEvents(LIBRARY_FILES)
    try:
        events.open()
    except HostUnfit as e:
        return CheckResult("executable mappings", True, f"found by passes over /proc only: {e.message}")
    events.close()
    return CheckResult("executable mappings", True, "told by the kernel as they happen")


def _stacks(programs: Programs) -> CheckResult:
    refused = programs.why_no_stacks
    if refused is None:
        return CheckResult("stacks", True, "the programs that take native and Python stacks are loaded")
    return CheckResult("stacks", False, refused.message, "calls are recorded without their stacks")


def _privileges() -> CheckResult:
    missing = missing_for_bpf()
    if not missing and (foreign := foreign_namespace()):
        return CheckResult("privileges", False, *foreign)
    if not missing:
        lacking = without(CapabilitySets.of().effective)
        detail = "; ".join(["CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE are there", *lacking])
        return CheckResult("privileges", True, detail)
    told = ", ".join(f"{name}={value}" for name, value in obstacles.settings())
    detail = f"this process lacks {' and '.join(missing)}{f' ({told})' if told else ''}"
    return CheckResult("privileges", False, detail, "run as root: sudo audit check")


def _btf() -> CheckResult:
    if BTF.exists():
        return CheckResult("kernel BTF", True, f"{BTF}, {BTF.stat().st_size} bytes")
    return CheckResult("kernel BTF", False, f"{BTF} is not there", "use a kernel built with CONFIG_DEBUG_INFO_BTF=y")


def _libbpf() -> CheckResult:
    try:
        return CheckResult("libbpf", True, libbpf.version())
    except HostUnfit as e:
        return CheckResult("libbpf", False, e.message, e.hint)


def _part(part: LoadedPart) -> Iterator[CheckResult]:
    """Load one object, attach each of its tracepoints, map its rings."""
    source = part.part.source
    try:
        if source:
            part.load()
    except HostUnfit as e:
        yield CheckResult(f"source {source}", False, e.message, e.hint)
        return
    for program in part.tracepoints:
        name = f"tracepoint {part.part.tracepoints[program]}"
        try:
            part.attach_tracepoint(program).close()
        except HostUnfit as e:
            yield CheckResult(name, False, e.message, e.hint)
        else:
            yield CheckResult(name, True, "attached and detached")
    if source == "off_cpu":
        yield _wakers(part)
        yield _sleepers(part)
    if source == IOCTL:
        yield _watched_devices()
    yield _rings(part)


def _wakers(part: LoadedPart) -> CheckResult:
    wakers = any(part.part.tracepoints[p] == "sched_waking" for p in part.tracepoints)
    detail = (
        "told apart from interrupts" if wakers else "not recorded: interrupts cannot be told apart from wakers here"
    )
    return CheckResult("wakers", True, detail)


def _sleepers(part: LoadedPart) -> CheckResult:
    """The iterator over threads, run once: no process is traced here, so it finds nothing."""
    try:
        part.look_at_threads()
    except HostUnfit as e:
        return CheckResult("sleeping threads", False, e.message, e.hint)
    return CheckResult("sleeping threads", True, "those of before the capture can be found")


def _watched_devices() -> CheckResult:
    refused = SystemCalls({IOCTL}).refused
    majors = ", ".join(str(major) for major in sorted({major for major, _ in watched_now(())}))
    detail = f"not recorded: {refused.message}" if refused else f"watched on character devices of major number {majors}"
    return CheckResult("ioctls", True, detail)


def _rings(part: LoadedPart) -> CheckResult:
    name = f"rings of {part.part.source or part.part.name}"
    try:
        for table, size in part.ring_sizes_bytes.items():
            RingReader(part.map_fd(f"ring_{table}"), size, table).drain()
        cpus = LossCounters(part.map_fd("counters")).cpus
    except HostUnfit as e:
        return CheckResult(name, False, e.message, e.hint)
    total = sum(part.ring_sizes_bytes.values())
    tables = ", ".join(part.ring_sizes_bytes)
    return CheckResult(name, True, f"mapped: {tables}; {total >> 10} KiB, counters of {cpus} CPUs")


def _mechanisms() -> list[CheckResult]:
    """Each way to probe functions. One is enough: then the other is told of, and is no failure."""
    results = [_functions_probed(mechanism) for mechanism in MECHANISMS]
    if any(r.ok for r in results):
        return [r if r.ok else CheckResult(r.name, True, f"not available, and not needed: {r.detail}") for r in results]
    return results


def _functions_probed(mechanism: Mechanism) -> CheckResult:
    """Probe a function of our own and call it: entry and return must both be seen."""
    name = f"function probes by {mechanism}"
    hint = {
        "uprobe_multi": "needs Linux 6.6 with CONFIG_UPROBE_EVENTS, and CAP_BPF and CAP_PERFMON",
        "perf uprobe": "needs CONFIG_UPROBE_EVENTS, and CAP_SYS_ADMIN",
    }[mechanism]
    programs = Programs(mechanism=mechanism)
    try:
        programs.load()
        hits = _probe_own_function(programs)
    except HostUnfit as e:
        return CheckResult(name, False, e.message, hint)
    except OSError as e:
        found = obstacles.obstacles(programs.step)
        words = obstacles.in_words(found)
        return CheckResult(name, False, f"the kernel refused: {e.strerror}{words and '; ' + words}", hint)
    finally:
        programs.close()
    if hits != _HITS:
        return CheckResult(name, False, f"{_HITS} calls were made and {hits} were seen", hint)
    return CheckResult(name, True, f"attached to a function of our own and hit {hits} times")


def _probe_own_function(programs: Programs) -> int:
    fd = os.memfd_create("gpuaudit-check", os.MFD_CLOEXEC)
    try:
        os.write(fd, _FUNCTION.ljust(mmap.PAGESIZE, b"\xcc"))
        with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC) as code:
            function: Callable[[], None] = ctypes.CFUNCTYPE(None)(np.frombuffer(code, "u1").ctypes.data)
            attachment = programs.attach_functions(f"/proc/self/fd/{fd}", [Place(0, cookie(0, 0))])
            for _ in range(_HITS):
                function()
            attachment.detach_entries()
            attachment.detach_returns()
    finally:
        os.close(fd)
    raw = libbpf.map_lookup(programs.map_fd("probe_counts"), struct.pack("<I", 0), 16)
    hits, returns = struct.unpack("<QQ", raw or bytes(16))
    return int(min(hits, returns))


def _libraries(programs: Programs) -> Iterator[CheckResult]:
    """Attach every function of the probe table in every library that some process maps now, and detach again."""
    files = ProbedFiles(programs, frozenset({"cuda", "nccl"}), {})
    found = 0
    try:
        for f in Scanner({os.getpid()}).scan():
            found += 1
            name = f"{f.library.name} in process {f.pid}"
            try:
                fd = processes.open_mapping(f.pid, f.mapping)
            except processes.CannotOpen as e:
                yield CheckResult(name, False, f"{f.mapping.path}: {e}", "its calls will not be in the evidence")
                continue
            try:
                file, _ = files.add(fd, f.library, f.mapping.path)
            finally:
                os.close(fd)
            if file.attached:
                yield CheckResult(
                    name, True, f"{len(file.attached)} functions of {f.mapping.path} attached and detached"
                )
            else:
                yield CheckResult(
                    name, False, f"{f.mapping.path}: {file.reason}", "its calls will not be in the evidence"
                )
    finally:
        files.detach()
    if not found:
        yield CheckResult("libraries", True, "no process maps libcudart or libnccl now; they are probed when one does")
