"""The attacher's side of :mod:`gpuaudit.capture.namespace_main`: sockets that live in other network namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import threading

from gpuaudit.capture.child import child_command, child_environment, end_signals_blocked
from gpuaudit.capture.namespace_main import REPLY, REQUEST

REPLY_DEADLINE_S = 5.0
"""Making a socket waits for nothing; this ends the wait for a process that was stopped."""


class NamespaceDesk:
    """Starts the process; it must hold CAP_SYS_ADMIN then, and needs no longer once it runs."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(REPLY_DEADLINE_S)
        self._lock = threading.Lock()
        with theirs, end_signals_blocked():
            self._process = subprocess.Popen(
                child_command("gpuaudit.capture.namespace_main", str(theirs.fileno())),
                pass_fds=[theirs.fileno()], env=child_environment(), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def socket_in(self, netns_fd: int, family: int) -> socket.socket:
        """An unconnected, non-blocking stream socket of that namespace; OSError as the kernel says."""
        with self._lock:
            socket.send_fds(self._ours, [REQUEST.pack(family)], [netns_fd])
            data, fds, _, _ = socket.recv_fds(self._ours, REPLY.size, 1)
        failure = REPLY.unpack(data)[0] if len(data) == REPLY.size else 0
        if failure or not fds:
            number = failure or errno.EPIPE
            raise OSError(number, os.strerror(number))
        os.set_inheritable(fds[0], False)
        made = socket.socket(fileno=fds[0])
        made.setblocking(False)
        return made

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self._ours.close()
        try:
            self._process.wait(REPLY_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
