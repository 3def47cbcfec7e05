"""Sockets of another network namespace, made by a process that can do nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuaudit.capture.capabilities import NONE, CapabilitySets
from gpuaudit.capture.keeper_child import KEPT, REPLY
from gpuaudit.capture.namespace_desk import NamespaceDesk
from gpuaudit.capture.namespace_main import REQUEST

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: enters network namespaces")

SERVER = (
    "import ctypes, fcntl, socket, struct\n"
    "assert ctypes.CDLL(None).unshare(0x40000000) == 0\n"  # CLONE_NEWNET
    "s = socket.socket()\n"
    "fcntl.ioctl(s, 0x8914, struct.pack('16sH14x', b'lo', 0x1))\n"  # SIOCSIFFLAGS, IFF_UP
    "s.bind(('127.0.0.1', 0)); s.listen(1)\n"
    "print(s.getsockname()[1], flush=True)\n"
    "s.accept()[0].sendall(b'from inside')\n"
    "input()\n"
)


@pytest.fixture
def desk() -> Iterator[NamespaceDesk]:
    desk = NamespaceDesk()
    yield desk
    desk.close()


def test_a_socket_connects_where_it_was_made(desk: NamespaceDesk) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        fd = os.open(f"/proc/{server.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        with desk.socket_in(fd, socket.AF_INET) as inside:
            assert not inside.getblocking()
            assert not os.get_inheritable(inside.fileno())
            inside.settimeout(60)
            inside.connect(("127.0.0.1", port))
            assert inside.recv(64) == b"from inside"
        os.close(fd)
        with socket.socket() as outside, pytest.raises(OSError, match="refused"):
            outside.connect(("127.0.0.1", port))
    finally:
        server.kill()
        server.communicate()


def test_it_holds_one_capability_and_gains_none(desk: NamespaceDesk) -> None:
    fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    desk.socket_in(fd, socket.AF_UNIX).close()  # it has begun to serve
    os.close(fd)
    assert CapabilitySets.of(desk.pid) == CapabilitySets(KEPT, KEPT, NONE, NONE, KEPT)
    assert "NoNewPrivs:\t1" in Path(f"/proc/{desk.pid}/status").read_text()


def test_what_is_no_request_is_refused_and_the_next_one_served(desk: NamespaceDesk) -> None:
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    for family, path in ((socket.AF_PACKET, "/proc/self/ns/net"), (socket.AF_INET, "/proc/self/ns/pid"),
                         (socket.AF_INET, "/dev/null")):  # fmt: skip
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with pytest.raises(OSError, match="Invalid argument"):
            desk.socket_in(fd, family)
        os.close(fd)
    pipe = desk._ours
    pipe.send(b"x" * 100)
    assert REPLY.unpack(pipe.recv(REPLY.size))[0] != 0
    pipe.send(REQUEST.pack(socket.AF_INET))  # without a namespace
    assert REPLY.unpack(pipe.recv(REPLY.size))[0] != 0
    desk.socket_in(own, socket.AF_INET6).close()
    os.close(own)


def test_it_ends_with_the_desk() -> None:
    desk = NamespaceDesk()
    desk.close()
    assert not Path(f"/proc/{desk.pid}").exists()
    with pytest.raises(OSError, match="descriptor"):
        desk.socket_in(0, socket.AF_INET)
