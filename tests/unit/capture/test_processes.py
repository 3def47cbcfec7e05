"""What is read of /proc, on this very process and on names chosen to confuse."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.tables import PROCESSES
from gpuaudit.capture import processes
from gpuaudit.capture.address_space import read_address_space
from gpuaudit.capture.discovery import Scanner
from gpuaudit.capture.map_events import MapEvent
from gpuaudit.capture.process_memory import ProcessMemory
from gpuaudit.capture.process_samples import sample
from gpuaudit.capture.processes import CannotOpen, Ended, Mapping, open_mapping
from gpuaudit.capture.source import boottime_ns


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Path]:
    """A file called like a CUDA runtime, mapped executable by this process. Its name tries to look like two lines."""
    folder = tmp_path / "a\nb c (deleted)"
    folder.mkdir()
    path = folder / "libcudart.so.99"
    path.write_bytes(bytes(mmap.PAGESIZE))
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC):
        yield path


def mapping_of(path: Path) -> Mapping:
    (found,) = [m for m in processes.mappings(os.getpid()) if m.file_name == path.name]
    return found


def test_who_this_process_is() -> None:
    info = processes.read_process(os.getpid())
    assert info is not None
    assert (info.pid, info.parent_pid, info.uid) == (os.getpid(), os.getppid(), os.getuid())
    assert info.exe == os.path.realpath(sys.executable)
    assert 0 < info.start_ns < boottime_ns()
    from_records(PROCESSES, [info.row("found", "traced", boottime_ns())])


@pytest.mark.parametrize("name", ["a) S 1 (b", "x\ny z", "))) 1 2 3", "=cmd|"])
def test_names_with_brackets_and_newlines(name: str) -> None:
    code = f"open('/proc/self/comm','w').write({name!r}); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        info = processes.read_process(process.pid)
        assert info is not None
        assert (info.comm, info.parent_pid) == (name, os.getpid())
    finally:
        process.communicate(b"\n")


def test_a_process_that_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    assert processes.start_ns(process.pid) is not None
    process.wait()
    assert processes.read_process(process.pid) is None
    assert processes.start_ns(process.pid) is None
    assert processes.size_hint(process.pid) is None
    assert list(processes.mappings(process.pid)) == []
    assert not processes.is_alive(process.pid)


def test_mapping_with_an_awkward_path(mapped: Path) -> None:
    mapping = mapping_of(mapped)
    assert mapping.path == str(mapped)
    fd = open_mapping(os.getpid(), mapping)
    assert (os.fstat(fd).st_dev, os.fstat(fd).st_ino) == (mapped.stat().st_dev, mapped.stat().st_ino)
    os.close(fd)


def test_the_mapping_where_probes_can_be_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel passes over what is shared or writable: such a mapping is only told of where a file has no other."""
    monkeypatch.setattr(processes, "PROC", str(tmp_path))
    lines = {7: "r-xs rwxp r-xp r-xs", 8: "rwxp r-xs", 9: "r--p r-xs"}
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "maps").write_text("".join(
        f"{i}000-{i + 1}000 {permissions} 00000000 08:01 {inode} /x/libcuda.so.1\n"
        for inode, text in lines.items()
        for i, permissions in enumerate(text.split())
    ))  # fmt: skip
    found = [(m.inode, m.address_range, m.is_shared, m.is_writable) for m in processes.mappings(1)]
    assert found == [(7, "2000-3000", False, False), (8, "0000-1000", False, True), (9, "1000-2000", True, False)]


def without_map_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a process that may not follow /proc/PID/map_files."""
    real = os.open

    def refuse(path: str, *rest: int) -> int:
        if "map_files" in str(path):
            raise PermissionError(1, "Operation not permitted")
        return real(path, *rest)

    monkeypatch.setattr(os, "open", refuse)


def test_opened_by_path_where_map_files_is_not_permitted(mapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = mapping_of(mapped)
    without_map_files(monkeypatch)
    fd = open_mapping(os.getpid(), mapping)
    assert os.fstat(fd).st_ino == mapped.stat().st_ino
    os.close(fd)


def test_another_file_at_the_path_is_refused(mapped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mapping = mapping_of(mapped)
    without_map_files(monkeypatch)
    shutil.copy(mapped, tmp_path / "copy")
    (tmp_path / "copy").rename(mapped)
    with pytest.raises(CannotOpen, match="another file now"):
        open_mapping(os.getpid(), mapping)


def test_a_link_out_of_the_root_is_followed_inside_it(tmp_path: Path) -> None:
    """A container's absolute link means the container's file, not the host's."""
    (tmp_path / "inside").write_bytes(b"inside")
    (tmp_path / "link").symlink_to("/inside")
    (tmp_path / "escape").symlink_to("../../../../../../etc/passwd")
    root = os.open(tmp_path, os.O_PATH)
    try:
        fd = processes.open_inside(root, "/link")
        assert os.read(fd, 10) == b"inside"
        os.close(fd)
        with pytest.raises(FileNotFoundError):
            processes.open_inside(root, "/escape")
    finally:
        os.close(root)


def test_scanner_reports_a_library_once(mapped: Path) -> None:
    scanner = Scanner()
    only = {os.getpid()}
    found = [f for f in scanner.scan(only) if f.mapping.path == str(mapped)]
    assert [(f.library.name, f.pid) for f in found] == [("cudart", os.getpid())]
    assert found[0].not_before_ns == processes.start_ns(os.getpid())
    assert [pid for pid, _ in scanner.mapping_processes()] == [os.getpid()]
    for _ in range(25):
        assert [f for f in scanner.scan(only) if f.mapping.path == str(mapped)] == []


def test_scanner_leaves_out_what_it_is_told_to(mapped: Path) -> None:
    assert Scanner({os.getpid()}).scan({os.getpid()}) == []


def test_a_mapping_of_a_process_that_is_gone_is_told_once(mapped: Path) -> None:
    """All there is of it is what the kernel told; a process that lives is asked instead."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    event = MapEvent(process.pid, 4711, "/opt/libcudart.so.13 (deleted)", 8, 15)
    (found,) = Scanner().look_at(
        [event, event, MapEvent(os.getpid(), 4712, "/opt/libcudart.so.13", 8, 15)], {process.pid}
    )
    assert (found.pid, found.start_ns, found.library.name, found.not_before_ns) == (process.pid, 0, "cudart", 4711)
    assert (found.mapping.device, found.mapping.inode, found.mapping.path) == (8, 15, event.path)
    alive = Scanner().look_at([MapEvent(os.getpid(), 4712, "/opt/libcudart.so.13", 8, 15)])
    assert str(mapped) in {f.mapping.path for f in alive}
    assert "/opt/libcudart.so.13" not in {f.mapping.path for f in alive}
    assert Scanner({process.pid}).look_at([event]) == []
    assert Scanner().look_at([MapEvent(process.pid, 4711, "/opt/libc.so.6", 8, 15)]) == []


def test_library_loaded_later_is_dated_from_the_pass_before(tmp_path: Path) -> None:
    """It cannot have been mapped before the last time it was seen not to be."""
    scanner = Scanner()
    only = {os.getpid()}
    scanner.scan(only)
    between = boottime_ns()
    path = tmp_path / "libcudart.so.99"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC):
        (found,) = [f for f in scanner.scan(only) if f.mapping.path == str(path)]
    started = processes.start_ns(os.getpid())
    assert started is not None
    assert started < found.not_before_ns <= between <= found.found_ns


def test_children_are_found() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert {os.getpid(), process.pid} <= processes.children({os.getpid()})
        assert os.getpid() not in processes.children({process.pid})
    finally:
        process.communicate(b"\n")


def test_a_mapping_that_was_split_meanwhile_is_found_again(mapped: Path) -> None:
    """Its address range is no longer one; the file is still mapped, and still the same."""
    mapping = mapping_of(mapped)
    first, last = mapping.address_range.split("-")
    wider = Mapping(f"{first}-{int(last, 16) + mmap.PAGESIZE:x}", mapping.device, mapping.inode, "/nowhere")
    fd = open_mapping(os.getpid(), wider)
    assert os.fstat(fd).st_ino == mapped.stat().st_ino
    os.close(fd)


def test_a_process_that_ended_is_not_a_file_that_cannot_be_opened() -> None:
    """As a zombie, and when it is gone: what was there to look at ended, the file did nothing wrong."""
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1)
    assert process.stdout is not None
    process.stdout.readline()
    mapping = next(processes.mappings(process.pid))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(2):
        with pytest.raises(Ended, match="the process ended before it could be looked at"):
            open_mapping(process.pid, mapping)
        process.wait()


def test_a_process_whose_first_thread_has_ended() -> None:
    """It looks like a zombie that maps nothing, and goes on."""
    code = (
        "import ctypes, threading; libc = ctypes.CDLL(None)\n"
        "threading.Thread(target=lambda: libc.sleep(3600), daemon=True).start()\n"
        "libc.pthread_exit(None)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "RANK": "3"})
    try:
        while (fields := processes._fields(process.pid)) is None or fields[1][0] != "Z":
            assert process.poll() is None
            time.sleep(0.01)
        assert processes.size_hint(process.pid) is not None
        assert processes.why_not_followed(process.pid) == ""
        mapping = next(m for m in processes.mappings(process.pid) if m.file_name.startswith("libc"))
        fd = open_mapping(process.pid, mapping)
        assert os.fstat(fd).st_ino == mapping.inode
        space = read_address_space(process.pid)
        assert space is not None
        region = next(r for r in space.regions if r.inode == mapping.inode)
        assert ProcessMemory(process.pid).read(region.start, 64) == os.pread(fd, 64, region.offset)
        os.close(fd)
        info = processes.read_process(process.pid)
        assert info is not None
        assert info.exe == os.path.realpath(sys.executable)
        assert info.command_line is not None
        assert info.command_line.startswith(f"{sys.executable} -c")
        assert info.ranks.rank == 3
        counted = sample(process.pid, 1)
        assert counted is not None
        assert counted["threads"] == 2
        assert isinstance(counted["resident_bytes"], int)
        assert counted["resident_bytes"] > mmap.PAGESIZE
    finally:
        process.kill()
        process.wait()


def test_only_a_process_can_be_followed() -> None:
    """A thread's number is in /proc too, and following it would record nothing without a word."""
    ready, over = threading.Event(), threading.Event()
    numbers: list[int] = []

    def work() -> None:
        numbers.append(threading.get_native_id())
        ready.set()
        over.wait()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    try:
        assert processes.why_not_followed(os.getpid()) == ""
        assert processes.why_not_followed(numbers[0]) == f"that is a thread of process {os.getpid()}"
    finally:
        over.set()
        thread.join()
    assert processes.why_not_followed(2**31 - 1) == "there is no such process"
    assert processes.why_not_followed(0) == "there is no such process"
    if Path("/proc/2/comm").exists() and Path("/proc/2/comm").read_text() == "kthreadd\n":
        assert "thread of the kernel" in processes.why_not_followed(2)
