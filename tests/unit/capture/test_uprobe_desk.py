"""Perf events of function probes, made by a process that can do nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuaudit.capture.attach import Programs
from gpuaudit.capture.bpf_capture import BpfCapture
from gpuaudit.capture.capabilities import NONE, CapabilitySets
from gpuaudit.capture.keeper_child import KEPT, REPLY
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.uprobe_desk import UprobeDesk
from gpuaudit.capture.uprobe_main import REQUEST

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes perf events"),
    pytest.mark.skipif(not Path("/sys/bus/event_source/devices/uprobe").exists(), reason="no uprobes in this kernel"),
]

OFFSET = 0x1000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Whatever is executable could be probed; nothing is executed here."""
    path = tmp_path / "code"
    path.write_bytes(b"\x90" * 8192)
    return path


@pytest.fixture
def desk() -> Iterator[UprobeDesk]:
    desk = UprobeDesk()
    yield desk
    desk.close()


@pytest.mark.parametrize("at_return", [False, True], ids=["entry", "return"])
def test_the_event_is_ours_and_outlives_who_made_it(file: Path, at_return: bool) -> None:
    desk = UprobeDesk()
    fd = desk.open_event(str(file), OFFSET, at_return=at_return)
    desk.close()
    assert not Path(f"/proc/{desk.pid}").exists()
    assert str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[perf_event]"
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_it_holds_one_capability_and_gains_none(desk: UprobeDesk, file: Path) -> None:
    os.close(desk.open_event(str(file), OFFSET, at_return=False))  # it has begun to serve
    assert CapabilitySets.of(desk.pid) == CapabilitySets(KEPT, KEPT, NONE, NONE, KEPT)
    assert "NoNewPrivs:\t1" in Path(f"/proc/{desk.pid}/status").read_text()


def test_the_kernels_refusal_is_told_and_the_next_one_is_served(desk: UprobeDesk, file: Path) -> None:
    with pytest.raises(OSError, match=r"probe /dev/null\+0x1000: Invalid argument"):
        desk.open_event("/dev/null", OFFSET, at_return=False)
    with pytest.raises(FileNotFoundError):
        desk.open_event(str(file.with_name("none")), OFFSET, at_return=False)
    desk._ours.send(b"x" * REQUEST.size)  # without a file
    assert REPLY.unpack(desk._ours.recv(REPLY.size))[0] != 0
    with file.open("rb") as f, pytest.raises(OSError, match="Invalid argument"):
        desk.ask(b"x" * 100, f.fileno())
    os.close(desk.open_event(str(file), OFFSET, at_return=False))


@pytest.mark.parametrize(("source", "kept"), [("off_cpu", False), ("cuda", True)])
def test_the_capability_is_kept_only_where_functions_are_probed(source: str, kept: bool) -> None:
    capture = BpfCapture(lambda *_: None, Selection(sources=frozenset({source})), mechanism="perf uprobe")
    helper = capture.keep_probing()
    alive = helper is not None and Path(f"/proc/{helper}").exists()
    capture.close()
    assert (helper is not None, alive) == (kept, kept)


def test_a_refusal_is_not_laid_to_a_capability_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs(mechanism="perf uprobe")
    helper = programs.keep_probing()
    assert helper is not None
    none = CapabilitySets(NONE, NONE, NONE, NONE, NONE)
    monkeypatch.setattr(CapabilitySets, "of", lambda: none)  # this process has given it up
    assert "CAP_SYS_ADMIN" not in programs.why_not_permitted()
    programs.close()
    assert "CAP_SYS_ADMIN is lacking" in programs.why_not_permitted()


def test_a_keeper_that_is_gone_is_no_refusal_of_the_kernel(file: Path) -> None:
    programs = Programs(mechanism="perf uprobe")
    helper = programs.keep_probing()
    assert helper is not None
    with pytest.raises(OSError, match="Invalid argument") as refused:
        programs._open_event("/", OFFSET, at_return=False)
    os.kill(helper, signal.SIGKILL)
    with pytest.raises(BrokenPipeError) as gone:
        programs._open_event(str(file), OFFSET, at_return=False)
    programs.close()
    assert programs.refusal(refused.value).startswith("the kernel refused the probes: probe /+0x1000: Invalid argument")
    assert programs.refusal(gone.value) == (
        f"the probes could not be attached: probe {file}+{OFFSET:#x}: the process {helper}, which keeps CAP_SYS_ADMIN "
        "for that, has ended"
    )
