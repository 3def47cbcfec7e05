"""What a probe costs on this host: a tiny function of our own, called in a loop with and without a probe pair.

The function is machine code in an anonymous file (memfd), so that nothing has to be compiled or installed. One variant
per way in which the kernel executes the probed instruction, because that decides the cost: emulated (push, nop) or
single-stepped. The same BPF programs and the same attachment are used as in a capture, and each call writes a record.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import time

import numpy as np

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture.attach import Place, Programs, cookie
from gpuaudit.capture.probes import OP_IDS
from gpuaudit.capture.symbols import SINGLE_STEPPED

CALLS = 1_000
ROUNDS = 5
"""The fastest of the rounds counts: whatever disturbs a round makes it slower."""

_RING_BYTES = 4 << 20
"""20,900 records: all the calls below, so that no record finds the ring full, which would be cheaper."""

_OP = "cudaStreamSynchronize"
_SLOT_BYTES = 64
_FUNCTIONS: tuple[tuple[str, bytes], ...] = (
    ("push", bytes.fromhex("55 4889e5 5d c3")),  # push rbp; mov rbp, rsp; pop rbp; ret
    ("nop5", bytes.fromhex("0f1f440000 c3")),  # nopl 0(rax, rax, 1); ret
    ("nop", bytes.fromhex("90 c3")),  # nop; ret
    (SINGLE_STEPPED, bytes.fromhex("488d07 c3")),  # lea rax, [rdi]; ret
)
_LOOP = bytes.fromhex("53 4154 4883ec08 4889fb 4989f4 31ff 41ffd4 48ffcb 75f6 4883c408 415c 5b c3")
"""push rbx; push r12; sub rsp, 8; mov rbx, rdi; mov r12, rsi; again: xor edi, edi; call r12; dec rbx; jnz again;
add rsp, 8; pop r12; pop rbx; ret — called as void (*)(long calls, void *function)."""


def probe_costs_ns() -> dict[str, int]:
    """Kind of first instruction → ns that a pair of probes adds to a call; empty where it cannot be measured."""
    if platform.machine() != "x86_64":
        return {}
    programs = Programs(ring_sizes_bytes={"cuda_calls": _RING_BYTES})
    try:
        programs.load()
        return _measure_all(programs)
    except (OSError, HostUnfit):
        return {}
    finally:
        programs.close()


def _measure_all(programs: Programs) -> dict[str, int]:
    fd = os.memfd_create("gpuaudit-calibration", os.MFD_CLOEXEC)
    costs: dict[str, int] = {}
    try:
        os.write(fd, b"".join(code.ljust(_SLOT_BYTES, b"\xcc") for code in (*(c for _, c in _FUNCTIONS), _LOOP)))
        with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC) as code:
            base = np.frombuffer(code, "u1").ctypes.data
            loop = ctypes.CFUNCTYPE(None, ctypes.c_long, ctypes.c_void_p)(base + len(_FUNCTIONS) * _SLOT_BYTES)
            for slot, (kind, _) in enumerate(_FUNCTIONS):
                at = slot * _SLOT_BYTES
                plain = _fastest(loop, base + at)
                attachment = programs.attach_functions(f"/proc/self/fd/{fd}", [Place(at, cookie(1, OP_IDS[_OP]))])
                probed = _fastest(loop, base + at)
                attachment.detach_entries()
                attachment.detach_returns()
                costs[kind] = costs[f"{kind} after endbr64"] = max(0, probed - plain)
    finally:
        os.close(fd)
    return costs


def _fastest(loop: object, function: int) -> int:
    """ns per call."""
    assert callable(loop)  # noqa: S101 - a ctypes function
    best = 1 << 62
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        loop(CALLS, function)
        best = min(best, time.perf_counter_ns() - start)
    return best // CALLS
