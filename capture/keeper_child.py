"""What the processes that keep one capability have in common: requests in, descriptors out, nothing else.

A request is a few bytes and one descriptor; the reply is errno and, where that is 0, the descriptor that was made. The
process ends with whoever started it. What is asked for is decided by the module that calls :func:`serve`.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections.abc import Callable

from gpuaudit.capture import capabilities

REPLY = struct.Struct("<i")
"""errno; 0: a descriptor comes with it."""

MAX_REQUEST_BYTES = 64
KEPT = frozenset({"CAP_SYS_ADMIN"})


def serve(pipe_fd: int, make: Callable[[bytes, int], int]) -> int:
    """Answer until the other side is gone. ``make`` gets a request and its descriptor; OSError is the answer, too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the attacher decides when it ends
    capabilities.keep_only(KEPT, bounding=KEPT)
    capabilities.no_new_privileges()
    with socket.socket(fileno=pipe_fd) as pipe:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(pipe, MAX_REQUEST_BYTES, 1)
            except OSError:
                return 0
            if not data:
                return 0
            try:
                if not fds:
                    raise OSError(errno.EINVAL, "a request without a descriptor")
                made = make(data, fds[0])
            except OSError as e:
                pipe.send(REPLY.pack(e.errno or errno.EIO))
            else:
                socket.send_fds(pipe, [REPLY.pack(0)], [made])
                os.close(made)
            finally:
                for fd in fds:
                    os.close(fd)
