"""The dial desk: the attacher connects to engines and opens their model's files, the recorder reads and parses.

The recorder has no network and no right to open anything; what it gets from here are connected sockets and open files,
one at a time, over a socket pair (SCM_RIGHTS). It names an engine by number and a file by its name: where that leads is
decided here, so a recorder that was taken over reaches nothing that was not already being scraped. Not one byte of what
an engine says is read in this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gpuaudit.capture import processes
from gpuaudit.capture.engine_endpoint import Address, Endpoint
from gpuaudit.capture.http_local import ExchangeFailed

ASK = struct.Struct("<IIi128s")
"""Request number, engine, address to try (−1: a file), name of the file."""

REPLY = struct.Struct("<Ii")
"""Request number, errno (0: a descriptor comes with it)."""

REPLY_DEADLINE_S = 5.0
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

OpenFile = Callable[[str], int]
"""Opens one file of a model's folder by its name; OSError where it may not be."""


@dataclass(frozen=True)
class Line:
    """How one engine is reached: in which network namespace and under which root its address is; None for our own."""

    endpoint: Endpoint
    netns_fd: int | None = None
    root_fd: int | None = None
    open_file: OpenFile | None = None


class DialDesk:
    """The attacher's end: a thread that answers, because entering a namespace is a matter of one thread."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lines: dict[int, Line] = {}
        self._thread = threading.Thread(target=self._serve, name="dial-desk", daemon=True)
        self._started = False
        self._home_fd = -1

    def add(self, engine: int, line: Line) -> None:
        """From now on the recorder may ask for this engine."""
        self._lines[engine] = line
        if not self._started:
            self._started = True
            self._thread.start()

    def close(self) -> None:
        """No more requests are answered."""
        self.theirs.close()
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(REPLY_DEADLINE_S)
        self._ours.close()
        for fd in {fd for line in self._lines.values() for fd in (line.netns_fd, line.root_fd) if fd is not None}:
            os.close(fd)
        self._lines.clear()

    def _serve(self) -> None:
        self._home_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while True:
                data = self._ours.recv(ASK.size + 1)
                if not data:
                    return
                self._answer(data)
        except OSError:  # the recorder is gone
            return
        finally:
            os.close(self._home_fd)

    def _answer(self, data: bytes) -> None:
        if len(data) != ASK.size:
            return
        number, engine, address, name = ASK.unpack(data)
        try:
            fd = self._fd(engine, address, name)
        except OSError as e:
            self._ours.send(REPLY.pack(number, e.errno or errno.EIO))
            return
        try:
            socket.send_fds(self._ours, [REPLY.pack(number, 0)], [fd])
        finally:
            os.close(fd)

    def _fd(self, engine: int, address: int, name: bytes) -> int:
        line = self._lines.get(engine)
        if line is None:
            raise OSError(errno.ENOENT, "no such engine")
        if address < 0:
            if line.open_file is None:
                raise OSError(errno.ENOENT, "no model folder")
            return line.open_file(name.rstrip(b"\0").decode("ascii", "replace"))
        if address >= len(line.endpoint.addresses):
            raise OSError(errno.EDESTADDRREQ, "no such address")
        return self._connect(line, line.endpoint.addresses[address])

    def _connect(self, line: Line, address: Address) -> int:
        if line.netns_fd is None:
            return _connected(address, line.root_fd)
        if _libc.setns(line.netns_fd, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        try:
            return _connected(address, line.root_fd)
        finally:
            if _libc.setns(self._home_fd, _CLONE_NEWNET):  # a thread that cannot come home must serve no one
                self._ours.close()


def _connected(address: Address, root_fd: int | None) -> int:
    """A socket that is connected, or about to be: nothing waits here."""
    sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if address.port:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = sock.connect_ex((address.host, address.port))
        else:
            number = _connect_unix(sock, address.host, root_fd)
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
    except BaseException:
        sock.close()
        raise
    return sock.detach()


def _connect_unix(sock: socket.socket, path: str, root_fd: int | None) -> int:
    """Connect to a socket as the process sees its path; the path may be longer than an address can be."""
    if path.startswith("\0"):
        return sock.connect_ex(os.fsencode(path))
    if root_fd is None:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    else:
        fd = processes.open_inside(root_fd, path, flags=os.O_PATH)
    try:
        return sock.connect_ex(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


class DialClient:
    """The recorder's end; any of its threads may ask."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(fileno=fd)
        self._sock.settimeout(REPLY_DEADLINE_S)
        self._lock = threading.Lock()
        self._number = 0

    def connect(self, engine: int, addresses: int, deadline_s: float) -> socket.socket:
        """A connected socket to the first of the engine's addresses that answers. ExchangeFailed where none does."""
        end_s = time.monotonic() + deadline_s
        last = "no address"
        for address in range(addresses):
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            try:
                return _wait_connected(self._ask(engine, address, b"", left_s), left_s)
            except TimeoutError:
                raise
            except OSError as e:
                last = e.strerror or str(e)
        raise ExchangeFailed("failed", f"cannot connect: {last}")

    def close(self) -> None:
        """Ask no more."""
        self._sock.close()

    def open_file(self, engine: int, name: str) -> int:
        """A descriptor of a file of the engine's model folder; OSError where there is none."""
        return self._ask(engine, -1, name.encode("ascii"), REPLY_DEADLINE_S)

    def _ask(self, engine: int, address: int, name: bytes, deadline_s: float) -> int:
        if len(name) > 128:
            raise OSError(errno.ENAMETOOLONG, "the name is too long")
        if not self._lock.acquire(timeout=deadline_s):
            raise TimeoutError
        try:
            self._number = (self._number + 1) & 0xFFFFFFFF
            self._sock.settimeout(deadline_s)
            self._sock.send(ASK.pack(self._number, engine, address, name))
            while True:  # an answer that came too late for an earlier request is passed over
                data, fds, _, _ = socket.recv_fds(self._sock, REPLY.size, 1)
                if len(data) != REPLY.size:
                    raise OSError(errno.EPIPE, "the attacher is gone")
                number, failure = REPLY.unpack(data)
                if number == self._number:
                    break
                for fd in fds:
                    os.close(fd)
        finally:
            self._lock.release()
        if failure or not fds:
            raise OSError(failure or errno.EIO, os.strerror(failure or errno.EIO))
        os.set_inheritable(fds[0], False)
        return fds[0]


def _wait_connected(fd: int, deadline_s: float) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.settimeout(deadline_s)
    try:
        sock.getpeername()
    except OSError:  # still under way
        try:
            _await_writable(sock, deadline_s)
        except BaseException:
            sock.close()
            raise
    return sock


def _await_writable(sock: socket.socket, deadline_s: float) -> None:
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    if not poller.poll(deadline_s * 1000):
        raise TimeoutError
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))
