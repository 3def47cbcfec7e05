"""The attacher's side of :mod:`gpuaudit.capture.keeper_child`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import threading

from gpuaudit.capture.child import child_command, child_environment, end_signals_blocked
from gpuaudit.capture.keeper_child import REPLY

REPLY_DEADLINE_S = 30.0
"""What is asked for waits for nothing but, the first time, Python's start; this ends the wait for a stopped process."""


class Keeper:
    """Starts ``module``; this process must hold CAP_SYS_ADMIN then, and needs it no longer once that runs."""

    def __init__(self, module: str) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(REPLY_DEADLINE_S)
        self._lock = threading.Lock()
        with theirs, end_signals_blocked():
            self._process = subprocess.Popen(
                child_command(module, str(theirs.fileno())),
                pass_fds=[theirs.fileno()], env=child_environment(), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, request: bytes, fd: int) -> int:
        """The descriptor that it made of this request, closed on exec; OSError as the kernel says, or that it ended."""
        with self._lock:
            data, fds, flags = self._exchange(request, fd)
        if len(data) != REPLY.size:
            raise OSError(errno.EPIPE, f"the process {self.pid}, which keeps CAP_SYS_ADMIN for that, has ended")
        failure = REPLY.unpack(data)[0]
        if not failure and not fds:
            failure = errno.EMFILE if flags & socket.MSG_CTRUNC else errno.EPROTO  # it made one: there is no room here
        if failure:
            raise OSError(failure, os.strerror(failure))
        os.set_inheritable(fds[0], False)
        return fds[0]

    def _exchange(self, request: bytes, fd: int) -> tuple[bytes, list[int], int]:
        """The answer, what came with it, and flags of recvmsg(2); nothing where the process is gone."""
        try:
            socket.send_fds(self._ours, [request], [fd])
            data, fds, flags, _ = socket.recv_fds(self._ours, REPLY.size, 1)
        except TimeoutError:
            self._ours.shutdown(socket.SHUT_RDWR)  # what comes late must not be taken for the answer to the next one
            raise OSError(errno.ETIMEDOUT, f"the process {self.pid} did not answer") from None
        except ConnectionError:
            return b"", [], 0
        return data, fds, flags

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
