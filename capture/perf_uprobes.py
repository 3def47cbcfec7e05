"""Probes through perf events, for kernels without uprobe_multi links: one event and one link per place.

Closing a link and its event takes the kernel up to a tenth of a second, one after the other: minutes for a CUDA
runtime and driver. So at the end of a capture the programs are told to do nothing, and all links are left to a process
that only ends; nobody waits for that. Until it has ended, calls of the probed functions still enter the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes as C
import os
import resource
import struct
import sys
from functools import cache
from pathlib import Path

from gpuaudit.capture import libbpf

NR_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_DEVICE = Path("/sys/bus/event_source/devices/uprobe")
_ATTRIBUTES_BYTES = 112
"""PERF_ATTR_SIZE_VER5 (include/uapi/linux/perf_event.h)."""

_FLAG_FD_CLOEXEC = 8
_IOC_ENABLE = 0x2400
BPF_PERF_EVENT = 41
"""Attach type of a link to a perf event, which since Linux 5.15 carries a cookie."""

ENOUGH_FILES = 65_536
"""Two descriptors for each of two probes of a function: 640 functions need 2,560, more than the usual limit. ours"""

_LIBC = C.CDLL(None, use_errno=True)


class EventLink(libbpf.Link):
    """A link, and the event that it hangs on."""

    def __init__(self, link_fd: int, event_fd: int) -> None:
        super().__init__()
        self._fds = [link_fd, event_fd]

    def close(self) -> None:
        """End the probe. Twice does no harm."""
        while self._fds:
            os.close(self._fds.pop(0))

    def leave(self) -> None:
        """Have :func:`close_left` end it, later: its program must have been silenced."""
        _LEFT.extend(self._fds)
        self._fds.clear()


_LEFT: list[int] = []
_ENDING: list[int] = []
"""Processes that close what was left before."""


def attach(program_fd: int, event_fd: int, cookie: int) -> EventLink:
    """Have a program run where the event of :func:`open_event` is, in every process; takes the event over.

    OSError when the kernel refuses.
    """
    _allow_files()
    try:
        # program, event, attach type, flags; cookie
        attributes = struct.pack("<IIIIQ", program_fd, event_fd, BPF_PERF_EVENT, 0, cookie)
        link_fd, _ = libbpf.bpf(libbpf.BPF_LINK_CREATE, attributes)
    except OSError:
        os.close(event_fd)
        raise
    if _LIBC.ioctl(event_fd, C.c_ulong(_IOC_ENABLE), 0) < 0:
        number = C.get_errno()
        os.close(link_fd)
        os.close(event_fd)
        raise OSError(number, f"enable a probe: {os.strerror(number)}")
    return EventLink(link_fd, event_fd)


def close_left() -> None:
    """Give what was left to a process that ends at once, which closes it."""
    _ENDING[:] = [pid for pid in _ENDING if os.waitpid(pid, os.WNOHANG)[0] == 0]
    left, _LEFT[:] = _LEFT[:], []
    if not left:
        return
    with contextlib.suppress(OSError):  # without such a process, closing them takes as long as it takes
        for fd in left:
            os.set_inheritable(fd, True)
        _ENDING.append(os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", ""], {}))
    for fd in left:
        os.close(fd)


def open_event(path: str, offset: int, *, at_return: bool) -> int:
    """The event of one place of a file, by perf_event_open(2), which takes CAP_SYS_ADMIN. OSError when it refuses."""
    kind, return_bit = device()
    name = C.create_string_buffer(os.fsencode(path))
    # type, size, config; period, samples, format; flags; wakeup, breakpoint; config1: path, config2: offset
    attributes = struct.pack(
        "<IIQQQQQIIQQ", kind, _ATTRIBUTES_BYTES, at_return << return_bit, 0, 0, 0, 0, 0, 0, C.addressof(name), offset
    ).ljust(_ATTRIBUTES_BYTES, b"\0")
    buffer = C.create_string_buffer(attributes, len(attributes))
    fd = _LIBC.syscall(NR_PERF_EVENT_OPEN[os.uname().machine], buffer, -1, 0, -1, _FLAG_FD_CLOEXEC)
    if fd < 0:
        number = C.get_errno()
        raise OSError(number, f"probe {path}+{offset:#x}: {os.strerror(number)}")
    return int(fd)


@cache
def device() -> tuple[int, int]:
    """Number of the kernel's uprobe device, and the bit of its configuration that means a return probe."""
    kind = int((_DEVICE / "type").read_text("ascii"))
    form = (_DEVICE / "format" / "retprobe").read_text("ascii")  # config:0
    return kind, int(form.strip().removeprefix("config:"))


@cache
def _allow_files() -> None:
    """As many descriptors as the hard limit allows; a workload has had its own limits noted before."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
