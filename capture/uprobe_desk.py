"""The attacher's side of :mod:`gpuaudit.capture.uprobe_main`: perf events of probes, once it may make none itself."""

from __future__ import annotations

import os

from gpuaudit.capture.keeper import Keeper
from gpuaudit.capture.uprobe_main import REQUEST


class UprobeDesk(Keeper):
    """Starts the process; it must hold CAP_SYS_ADMIN then, and needs no longer once it runs."""

    def __init__(self) -> None:
        super().__init__("gpuaudit.capture.uprobe_main")

    def open_event(self, path: str, offset: int, *, at_return: bool) -> int:
        """As :func:`gpuaudit.capture.perf_uprobes.open_event`."""
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self.ask(REQUEST.pack(offset, at_return), file)
        except OSError as e:
            raise OSError(e.errno, f"probe {path}+{offset:#x}: {e.strerror}") from None
        finally:
            os.close(file)
