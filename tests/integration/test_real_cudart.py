"""NVIDIA's own CUDA runtimes 12 and 13, from their wheels, in two processes at once: every row of the table for each of
them is attached, called, and recorded with its arguments and return code.

There is no driver here, so every call returns 35 (cudaErrorInsufficientDriver); that is what must be recorded.
"""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from gpuaudit.capture.selection import Selection
from gpuaudit.capture.settings import Settings
from tests.doubles.build import build
from tests.doubles.generate import build_caller
from tests.doubles.interfaces import INTERFACES, Interface, wheel_folder
from tests.integration.recording import Recording, recording, start, truth, wait_for_line
from tests.integration.test_every_row import CALL_TABLES, check

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

INSUFFICIENT_DRIVER = 35
RUNTIMES = tuple(i for i in INTERFACES if i.file in ("libcudart.so.12", "libcudart.so.13"))

MATTERS = re.compile(
    r"(__)?cuda(Malloc|Free(?!MipmappedArrayLevel)|Memcpy|Memset|Launch|Stream(Wait|Create|Destroy|Query|Begin|End)|"
    r"Event(?!CreateFromEGLSync)|Graph(Instantiate|Launch|Upload|Create|Destroy|Exec(Update|Destroy))|SetDevice|"
    r"\w*Synchronize|DeviceReset|MemPrefetch|HostAlloc|HostRegister)\w*"
)
"""What the issue of this table asks for: nothing of it may be among the names that nobody probes."""


def exported(library: Path) -> set[str]:
    """Functions that the library exports, as nm tells them."""
    told = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    lines = (line.split() for line in told.splitlines())
    return {name.split("@")[0] for _, kind, name in lines if kind in "TtWi"}


def check_attached(r: Recording, interface: Interface, library: Path, pid: int) -> None:
    """Every row that the library has a function for is attached; what it exports besides is counted and listed."""
    names = exported(library)
    probes = [p for p in r.of("probes", path=str(library)) if p["hits"] is not None]
    assert {p["op"] for p in probes} == {p.op for p in interface.probes if p.op in names}
    assert {p["instruction"] for p in probes} == {"push"}
    (row,) = r.of("libraries", pid=pid, path=str(library))
    not_observed = set(row["not_observed"].split(","))
    assert not_observed == {n for n in names if re.fullmatch(r"(__)?cuda[A-Z]\w*", n)} - {p["op"] for p in probes}
    assert (row["op"], row["not_observed_count"]) == ("shared", len(not_observed))
    assert [name for name in not_observed if MATTERS.fullmatch(name)] == []
    print(f"{library.name}: {len(probes)} functions probed, {len(not_observed)} exported but not observed")


def test_two_versions_at_once(doubles: Path, tmp_path: Path) -> None:
    processes = []
    for interface in RUNTIMES:
        try:
            library = wheel_folder(interface.wheel, interface.file) / interface.file
        except PackageNotFoundError:
            pytest.skip(f"pip install {interface.wheel}")
        folder = tmp_path / interface.file
        folder.mkdir()
        (folder / "stay").touch()
        names = exported(library)
        probes = [p for p in interface.probes if p.op in interface.header.prototypes and p.op in names]
        caller = build_caller(interface, probes, folder)
        process = start(build("every_row", folder), folder, library, caller)
        wait_for_line(process, "at start")
        processes.append((interface, library, caller, process))
    with recording(Selection(frozenset(p.pid for *_, p in processes)), settings=Settings(budget_per_s=0)) as r:
        assert r.capture.prepare([str(library) for _, library, _, _ in processes]) == []
        for _, _, caller, _ in processes:
            (caller.parent / "go").touch()
        for *_, process in processes:
            wait_for_line(process, "at end")
        r.step()
        for _, _, caller, process in processes:
            (caller.parent / "leave").touch()
            r.run(process)
        r.finish()
    assert r.lost() == 0
    for interface, library, caller, process in processes:
        check_attached(r, interface, library, process.pid)
        rows = {table: r.of(table, pid=process.pid, parent_ns=None) for table in CALL_TABLES}
        inner = [row for row in r.of("cuda_calls", pid=process.pid) if row["parent_ns"] is not None]
        # the runtime calls itself here: one launch, told twice and linked
        assert {(row["parent_op"], row["op"]) for row in inner} == {
            (f"__cudaLaunchKernel{twin}", f"cudaLaunchKernel{twin}") for twin in ("", "_ptsz")
        }
        starts = {(row["op"], row["start_ns"]) for row in rows["cuda_calls"]}
        assert all((row["parent_op"], row["parent_ns"]) in starts for row in inner)
        assert {row["return_code"] for row in rows["cuda_calls"]} == {INSUFFICIENT_DRIVER}
        calls = truth(caller.parent / f"{caller.name}.jsonl")
        assert {call["op"] for call in calls} >= {p.op for p in interface.probes if p.versions}
        check(interface, calls, rows, driver=False)
        assert rows == {table: [] for table in CALL_TABLES}
