"""The attacher's side of :mod:`gpuaudit.capture.namespace_main`: sockets that live in other network namespaces."""

from __future__ import annotations

import socket

from gpuaudit.capture.keeper import Keeper
from gpuaudit.capture.namespace_main import REQUEST


class NamespaceDesk(Keeper):
    """Starts the process; it must hold CAP_SYS_ADMIN then, and needs no longer once it runs."""

    def __init__(self) -> None:
        super().__init__("gpuaudit.capture.namespace_main")

    def socket_in(self, netns_fd: int, family: int) -> socket.socket:
        """An unconnected, non-blocking stream socket of that namespace; OSError as the kernel says."""
        made = socket.socket(fileno=self.ask(REQUEST.pack(family), netns_fd))
        made.setblocking(False)
        return made
