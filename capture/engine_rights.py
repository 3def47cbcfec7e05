"""The rights of an engine's process, taken on for a moment by one thread of the attacher.

What somebody wrote on a command line (a folder, the path of a socket) must not become reachable because root looks for
it: the kernel judges by the user and groups of the process itself, which reaches nothing that it could not reach alone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.capture.capabilities import FILE_CAPABILITIES, CapabilitySets, set_effective
from gpuaudit.capture.processes import PROC

_MAX_GROUPS = 65_536
_SETGROUPS = {"x86_64": 116, "aarch64": 159}.get(os.uname().machine, 0)
"""Number of the system call (asm/unistd_64.h, asm-generic/unistd.h). glibc's own setgroups() changes every thread."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Rights:
    """Whom the kernel judges by when files are opened."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def of(cls, pid: int) -> Rights:
        """Those of ``pid``. OSError where it is gone, and where it runs with other rights than who started it.

        Anybody can start a program that is setuid root, with any arguments: it must lend nobody root's rights.
        """
        text = Path(f"{PROC}/{pid}/status").read_text("utf-8", "replace")
        found = re.search(r"^Uid:([\t\d]+)\nGid:([\t\d]+)\n(?:.*\n)*?Groups:([ \t\d]*)$", text, re.MULTILINE)
        if found is None:
            raise OSError(errno.ESRCH, "the process ended")
        uids, gids, groups = (tuple(map(int, part.split())) for part in found.groups())
        if len(set(uids)) != 1 or len(set(gids)) != 1:
            raise OSError(errno.EPERM, "the process runs with other rights than who started it")
        return cls(uids[0], gids[0], groups)


@contextmanager
def taken_on(rights: Rights) -> Iterator[None]:
    """This thread, and no other, opens files with ``rights`` (setfsuid(2), setgroups(2)), and no capability over files.

    Nothing changes for a process that has neither: it cannot open what is not its own. OSError where the rights could
    not be taken on. A thread that cannot get its own groups back goes on without them.
    """
    effective = CapabilitySets.of().effective
    if os.geteuid() != 0 and not effective & FILE_CAPABILITIES:
        yield
        return
    own = os.getgroups()
    try:
        _set_groups(rights.groups)
        _libc.setfsgid(rights.gid)
        _libc.setfsuid(rights.uid)
        if _libc.setfsuid(-1) != rights.uid or _libc.setfsgid(-1) != rights.gid:
            raise OSError(errno.EPERM, "the user could not be taken on")
        set_effective(effective - FILE_CAPABILITIES)  # the kernel does so only where fsuid was root's
        yield
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())
        set_effective(effective)
        _set_groups(tuple(own))


def _set_groups(groups: tuple[int, ...]) -> None:
    if not _SETGROUPS or len(groups) > _MAX_GROUPS:
        raise OSError(errno.ENOSYS, "groups cannot be taken on")
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if _libc.syscall(_SETGROUPS, len(groups), array):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
