"""What is asked of a process that keeps a capability, where it does not answer, or no descriptor can be taken."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuaudit.capture.namespace_desk import NamespaceDesk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: keeps CAP_SYS_ADMIN")


@pytest.fixture
def desk() -> Iterator[NamespaceDesk]:
    desk = NamespaceDesk()
    yield desk
    desk.close()


@pytest.fixture
def own() -> Iterator[int]:
    """The network namespace of this process."""
    fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_its_death_is_told_as_such(desk: NamespaceDesk, own: int) -> None:
    desk.socket_in(own, socket.AF_INET).close()
    os.kill(desk.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(BrokenPipeError, match=f"process {desk.pid}, which keeps CAP_SYS_ADMIN for that, has ended"):
            desk.socket_in(own, socket.AF_INET)


def test_an_answer_that_comes_late_is_none_to_the_next_request(desk: NamespaceDesk, own: int) -> None:
    os.kill(desk.pid, signal.SIGSTOP)
    os.waitpid(desk.pid, os.WUNTRACED)
    desk._ours.settimeout(0.01)
    with pytest.raises(TimeoutError, match=f"process {desk.pid} did not answer"):
        desk.socket_in(own, socket.AF_INET)
    os.kill(desk.pid, signal.SIGCONT)
    with pytest.raises(BrokenPipeError, match="has ended"):
        desk.socket_in(own, socket.AF_INET6)


def test_a_descriptor_for_which_there_is_no_room(desk: NamespaceDesk, own: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = set(map(str, Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, before[1]))  # poll(2) takes no more than that
    try:
        with pytest.raises(OSError, match="Too many open files") as refused:
            desk.socket_in(own, socket.AF_INET)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert refused.value.errno == errno.EMFILE
    assert set(map(str, Path("/proc/self/fd").iterdir())) == open_files
    desk.socket_in(own, socket.AF_INET).close()
