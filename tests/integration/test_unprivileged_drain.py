"""The process that drains needs no privilege: descriptors are all it gets."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

import pytest

from gpuaudit.capture.ring import LossCounters, RingReader
from tests.integration.recording import recording, start, truth

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

NOBODY = 65534
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38


def drained_as_nobody(fd: int, size_bytes: int, counters_fd: int) -> dict[str, int]:
    """Fork, give up everything, drain, and tell what was found."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            libc = ctypes.CDLL(None)
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
            records = RingReader(fd, size_bytes, "cuda_calls").drain()
            counts = [c for (t, _), c in LossCounters(counters_fd).read().items() if t == "cuda_calls"]
            told = {"rows": len(records), "seen": sum(c.seen for c in counts), "lost": sum(c.lost for c in counts)}
            os.write(writing, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    found: dict[str, int] = json.loads(text)
    return found


def test_drain_without_privileges(doubles: Path, tmp_path: Path) -> None:
    cudart = doubles / "libcudart.so.13"
    with recording() as r:
        r.capture.prepare([str(cudart)])
        process = start(doubles / "calls", "--cudart", cudart, "--out", tmp_path / "t", "--rounds", "10")
        process.communicate()
        ring = next(x for x in r.capture.rings if x.table == "cuda_calls")
        found = drained_as_nobody(ring.fd, ring.size_bytes, r.capture.counters_fd)
        assert found["lost"] == 0
        assert found["rows"] == found["seen"] >= len(truth(tmp_path / "t"))
