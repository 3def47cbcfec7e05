"""The process that makes perf events of function probes, and can do nothing else.

``python -m gpuaudit.capture.uprobe_main FD``. Kernels without uprobe_multi probe through perf events, and those take
CAP_SYS_ADMIN, whatever kernel.perf_event_paranoid is (perf_uprobe_event_init, tried on 6.1 and 6.18). Libraries are
loaded late, too: so the attacher, which gives that capability up, asks this process, which keeps it and nothing else.
On FD it gets a place of a file and a descriptor of the file, and sends back errno, and the event where that is 0; the
event does nothing until the attacher links its program to it. It ends with the attacher.
"""

from __future__ import annotations

import contextlib
import errno
import struct
import sys

from gpuaudit.capture.keeper_child import serve
from gpuaudit.capture.perf_uprobes import device, open_event

REQUEST = struct.Struct("<Q?")
"""Offset in the file, whether at return; a descriptor of the file comes with it."""


def main(argv: list[str]) -> int:
    """Answer until the other side is gone."""
    with contextlib.suppress(OSError):  # asked now, and kept: later not even a module of Python may be readable
        device()
    return serve(int(argv[1]), _make)


def _make(data: bytes, file: int) -> int:
    if len(data) != REQUEST.size:
        raise OSError(errno.EINVAL, "not a request")
    offset, at_return = REQUEST.unpack(data)
    return open_event(f"/proc/self/fd/{file}", offset, at_return=at_return)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
