"""Memory, disks and sockets in a whole capture: through both processes into the sealed bundle."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from gpuaudit.bundle.reader import Bundle
from tests.integration.disks import has_disk
from tests.integration.sessions import capture, environment, rows

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

WORKLOAD = """
import ctypes, json, mmap, os, resource, sys, time
ctypes.CDLL(sys.argv[1])
with open(sys.argv[2], "wb") as f:
    f.write(os.urandom(1 << 20))
    os.fsync(f.fileno())
began, rounds = time.monotonic(), []
while time.monotonic() - began < 2.5:  # the files of the kernel are read once a second
    rounds.append(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    with mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_NOHUGEPAGE)
        for i in range(0, len(area), 4096):
            area[i] = 1
    time.sleep(0.01)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with open(sys.argv[3], "w") as f:
    json.dump({"began_ns": rounds, "faults": faults}, f)
"""


PAGES = 256
"""Of one round."""


def test_what_the_host_tells_is_sealed(doubles: Path, tmp_path: Path) -> None:
    out, truth = tmp_path / "a.db", tmp_path / "truth"
    sources = [x for name in ("memory", "block_io", "tcp") for x in ("--source", name)]
    command: list[str | Path] = [sys.executable, "-c", WORKLOAD, doubles / "libcudart.so.13", tmp_path / "file", truth]
    done = capture(["--out", out, *sources, "--", *command], environment(tmp_path / "keys"))
    assert done.returncode == 0, done.stderr
    said = json.loads(truth.read_text("ascii"))
    (pid,) = {r["pid"] for r in rows(out, "processes") if r["role"] == "workload"}
    allocated = [r for r in rows(out, "page_allocations") if r["pid"] == pid]
    first_ns = min(r["start_ns"] for r in allocated)  # from when on it is a traced process, every page is counted
    after = [ns for ns in said["began_ns"] if ns > first_ns]
    assert after
    assert sum(r["count"] for r in allocated if r["order"] == 0) >= len(after) * PAGES
    assert len({r["start_ns"] // 10**9 for r in allocated}) > 1  # window by window, not only at the end
    assert all(r["duration_ns"] < 10**10 for r in allocated)
    samples = sorted((r for r in rows(out, "process_samples") if r["pid"] == pid), key=lambda r: r["start_ns"])
    assert samples
    grown = [r["minor_faults"] for r in samples]
    assert grown == sorted(grown)
    assert 0 < grown[-1] <= said["faults"]
    on_disk = [r for r in rows(out, "block_io") if r["for_pid"] == pid and r["op"] == "write"]
    assert sum(r["size_bytes"] for r in on_disk) >= 1 << 20 or not has_disk(tmp_path)
    device = tmp_path.stat().st_dev
    mounted = {(r["major"], r["minor"]) for r in rows(out, "mounts") if r["op"] == "mounted"}
    assert (os.major(device), os.minor(device)) in mounted or not has_disk(tmp_path)
    assert {r["lost"] for r in rows(out, "losses")} <= {0}
    with Bundle.open(out) as bundle:
        told = next(json.loads(data) for _, name, data in bundle.artefacts() if name == "sources")
    states = {s["source"]: (s["state"], s["reason"]) for s in told}
    assert {states[s][0] for s in ("block_io", "tcp")} == {"recorded"}
    pressure = {r["resource"] for r in rows(out, "pressure")}
    for resource in ("cpu", "memory", "io", "irq"):
        assert resource in pressure or resource in states["memory"][1]
