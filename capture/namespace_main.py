"""The process that makes sockets in other network namespaces, and can do nothing else.

``python -m gpuaudit.capture.namespace_main FD``. Entering a namespace takes CAP_SYS_ADMIN, the widest capability there
is; so the attacher gives it up, and this process keeps it and nothing else. On FD it gets the family of a socket and a
descriptor of a namespace, and sends back errno, and the unconnected socket where that is 0. It ends with the attacher.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from functools import partial

from gpuaudit.capture.keeper_child import serve

REQUEST = struct.Struct("<i")
"""Family of the socket; a descriptor of the network namespace comes with it."""

FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
CLONE_NEWNET = 0x40000000
"""include/uapi/linux/sched.h."""

_libc = ctypes.CDLL(None, use_errno=True)


def main(argv: list[str]) -> int:
    """Answer until the other side is gone."""
    return serve(int(argv[1]), partial(_make, os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)))


def _make(home: int, data: bytes, namespace: int) -> int:
    if len(data) != REQUEST.size or REQUEST.unpack(data)[0] not in FAMILIES:
        raise OSError(errno.EINVAL, "not a request")
    _enter(namespace)
    try:
        flags = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        return socket.socket(REQUEST.unpack(data)[0], flags).detach()
    finally:
        _enter(home)


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
