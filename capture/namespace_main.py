"""The process that makes sockets in other network namespaces, and can do nothing else.

``python -m gpuaudit.capture.namespace_main FD``. Entering a namespace takes CAP_SYS_ADMIN, the widest capability there
is; so the attacher gives it up, and this process keeps it and nothing else. On FD it gets the family of a socket and a
descriptor of a namespace, and sends back errno, and the unconnected socket where that is 0. It ends with the attacher.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import sys

from gpuaudit.capture import capabilities

REQUEST = struct.Struct("<i")
"""Family of the socket; a descriptor of the network namespace comes with it."""

REPLY = struct.Struct("<i")
"""errno; 0: the socket comes with it."""

FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
KEPT = frozenset({"CAP_SYS_ADMIN"})
CLONE_NEWNET = 0x40000000
"""include/uapi/linux/sched.h."""

_libc = ctypes.CDLL(None, use_errno=True)


def main(argv: list[str]) -> int:
    """Answer until the other side is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the attacher decides when it ends
    capabilities.keep_only(KEPT, bounding=KEPT)
    capabilities.no_new_privileges()
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with socket.socket(fileno=int(argv[1])) as pipe:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(pipe, REQUEST.size + 1, 1)
            except OSError:
                return 0
            if not data:
                return 0
            try:
                made = _make(data, fds, home)
            except OSError as e:
                pipe.send(REPLY.pack(e.errno or errno.EIO))
            else:
                with made:
                    socket.send_fds(pipe, [REPLY.pack(0)], [made.fileno()])
            finally:
                for fd in fds:
                    os.close(fd)


def _make(data: bytes, fds: list[int], home: int) -> socket.socket:
    if len(data) != REQUEST.size or not fds or REQUEST.unpack(data)[0] not in FAMILIES:
        raise OSError(errno.EINVAL, "not a request")
    _enter(fds[0])
    try:
        flags = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        return socket.socket(REQUEST.unpack(data)[0], flags)
    finally:
        _enter(home)


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
