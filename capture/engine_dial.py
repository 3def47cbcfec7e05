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
import stat
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from gpuaudit.capture import processes
from gpuaudit.capture.engine_endpoint import Address, Endpoint
from gpuaudit.capture.engine_rights import Rights, taken_on
from gpuaudit.capture.http_local import ExchangeFailed
from gpuaudit.capture.namespace_desk import NamespaceDesk

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
    """How one engine is reached: in which network namespace and under which root its address is; None for our own.

    ``rights``: whose the search for the path of its Unix socket has; None for our own.
    """

    endpoint: Endpoint
    netns_fd: int | None = None
    root_fd: int | None = None
    open_file: OpenFile | None = None
    rights: Rights | None = None


class DialDesk:
    """The attacher's end: a thread that answers, because entering a namespace is a matter of one thread."""

    def __init__(self, namespaces: NamespaceDesk | None = None, *, waits: bool = False) -> None:
        """``namespaces`` makes the sockets of other network namespaces; without one this process enters them.

        ``waits``: no thread before :meth:`serve`, because it would keep what capabilities there are at that moment.
        """
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._namespaces = namespaces
        self._lines: dict[int, Line] = {}
        self._thread = threading.Thread(target=self._serve, name="dial-desk", daemon=True)
        self._waits = waits
        self._home_fd = -1
        self._busy: set[int] = set()
        """Engines whose file system is being asked: it may hang, and is asked one thing at a time."""

    def add(self, engine: int, line: Line) -> None:
        """From now on the recorder may ask for this engine."""
        self._lines[engine] = line
        if not self._waits:
            self.serve()

    def serve(self) -> None:
        """Answer from now on."""
        self._waits = False
        if self._lines and self._thread.ident is None:
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
        line = self._lines.get(engine)
        if line is None:
            self._ours.send(REPLY.pack(number, errno.ENOENT))
        elif 0 <= address < len(line.endpoint.addresses) and line.endpoint.addresses[address].port:
            self._send(number, *self._open(line, address, name))
        elif engine in self._busy:
            self._ours.send(REPLY.pack(number, errno.EBUSY))
        else:
            self._busy.add(engine)
            threading.Thread(target=self._aside, args=(engine, number, line, address, name), daemon=True).start()

    def _aside(self, engine: int, number: int, line: Line, address: int, name: bytes) -> None:
        """What a file system has to say, in a thread of its own: one that hangs keeps no other engine waiting."""
        failure, fd = self._open(line, address, name)
        self._busy.discard(engine)  # before the answer, after which the next question may come
        with contextlib.suppress(OSError):  # the recorder is gone
            self._send(number, failure, fd)

    def _open(self, line: Line, address: int, name: bytes) -> tuple[int, int]:
        """errno and −1, or 0 and a descriptor."""
        try:
            return 0, self._fd(line, address, name)
        except OSError as e:
            return e.errno or errno.EIO, -1
        except Exception:  # a defect met with one engine must not end the desk of all
            return errno.EIO, -1

    def _send(self, number: int, failure: int, fd: int) -> None:
        if failure:
            self._ours.send(REPLY.pack(number, failure))
            return
        try:
            socket.send_fds(self._ours, [REPLY.pack(number, 0)], [fd])
        finally:
            os.close(fd)

    def _fd(self, line: Line, address: int, name: bytes) -> int:
        if address < 0:
            if line.open_file is None:
                raise OSError(errno.ENOENT, "no model folder")
            return line.open_file(name.rstrip(b"\0").decode("ascii", "replace"))
        if address >= len(line.endpoint.addresses):
            raise OSError(errno.EDESTADDRREQ, "no such address")
        return self._connect(line, line.endpoint.addresses[address])

    def _connect(self, line: Line, address: Address) -> int:
        if line.netns_fd is None:
            return _connected(address, line)
        if self._namespaces is not None:
            return _connected(address, line, self._namespaces.socket_in(line.netns_fd, address.family))
        if _libc.setns(line.netns_fd, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        try:
            return _connected(address, line)
        finally:
            if _libc.setns(self._home_fd, _CLONE_NEWNET):  # a thread that cannot come home must serve no one
                self._ours.close()


def _connected(address: Address, line: Line, made: socket.socket | None = None) -> int:
    """A socket (the one that was ``made``) that is connected, or about to be: nothing waits here."""
    sock = made or socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if address.port:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = sock.connect_ex((address.host, address.port))
        else:
            number = _connect_unix(sock, address.host, line)
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
    except BaseException:
        sock.close()
        raise
    return sock.detach()


def _connect_unix(sock: socket.socket, path: str, line: Line) -> int:
    """Connect to a socket as the process sees its path; the path may be longer than an address can be.

    Where the process named the path, it is looked for with the process's rights. Where the user did, its last part must
    not be a link, which somebody else could have put there.
    """
    if path.startswith("\0"):
        return sock.connect_ex(os.fsencode(path))
    with taken_on(line.rights) if line.rights else contextlib.nullcontext():
        if line.root_fd is None:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        else:
            fd = processes.open_inside(line.root_fd, path, flags=os.O_PATH)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISSOCK(mode):
                return errno.ELOOP if stat.S_ISLNK(mode) else errno.ENOTSOCK
            return sock.connect_ex(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)


class DialClient:
    """The recorder's end. Its threads may ask at once, and none waits for what another asked."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(fileno=fd)
        self._lock = threading.Lock()
        self._number = 0
        self._waiting: dict[int, SimpleQueue[tuple[int, list[int]]]] = {}
        self._reader = threading.Thread(target=self._read, name="dial-client", daemon=True)
        self._reads = self._gone = False

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
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
        if self._reads:
            self._reader.join()
        self._sock.close()

    def open_file(self, engine: int, name: str) -> int:
        """A descriptor of a file of the engine's model folder; OSError where there is none."""
        return self._ask(engine, -1, name.encode("ascii"), REPLY_DEADLINE_S)

    def _ask(self, engine: int, address: int, name: bytes, deadline_s: float) -> int:
        if len(name) > 128:
            raise OSError(errno.ENAMETOOLONG, "the name is too long")
        answer: SimpleQueue[tuple[int, list[int]]] = SimpleQueue()
        with self._lock:
            if self._gone:
                raise OSError(errno.EPIPE, "the attacher is gone")
            if not self._reads:
                self._reads = True
                self._reader.start()
            self._number = number = (self._number + 1) & 0xFFFFFFFF
            self._waiting[number] = answer
        try:
            self._sock.send(ASK.pack(number, engine, address, name), socket.MSG_DONTWAIT)
            failure, fds = answer.get(timeout=deadline_s)
        except (Empty, OSError) as e:
            with self._lock:  # from here on no answer comes
                self._waiting.pop(number, None)
            if answer.empty():
                raise TimeoutError if isinstance(e, Empty) else e from None
            failure, fds = answer.get()
        if failure or not fds:
            raise OSError(failure or errno.EIO, os.strerror(failure or errno.EIO))
        os.set_inheritable(fds[0], False)
        return fds[0]

    def _read(self) -> None:
        """Hand each answer to who waits for it; one that comes too late is passed over."""
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._sock, REPLY.size, 1)
                if len(data) != REPLY.size:
                    break
                number, failure = REPLY.unpack(data)
                with self._lock:
                    waiting = self._waiting.pop(number, None)
                    if waiting is not None:
                        waiting.put((failure, fds))
                        continue
                for fd in fds:
                    os.close(fd)
        with self._lock:
            self._gone = True
            for answer in self._waiting.values():
                answer.put((errno.EPIPE, []))
            self._waiting.clear()


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
