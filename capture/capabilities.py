"""Linux capabilities of this thread: read, named, and given up for good.

A set is a frozenset of names like ``CAP_BPF``. Numbers are those of include/uapi/linux/capability.h.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.bundle.errors import HostUnfit

NAMES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
"""By number, as of Linux 5.9; no kernel has added one since."""

FILE_CAPABILITIES = frozenset(NAMES[:5]) | {"CAP_MKNOD", "CAP_LINUX_IMMUTABLE", "CAP_MAC_OVERRIDE"}
"""CAP_FS_MASK of include/linux/capability.h: what the kernel itself takes from root when fsuid is another's."""

NONE: frozenset[str] = frozenset()
_LAST = 63
"""A set is 64 bits wide."""

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 38, 47
_PR_CAP_AMBIENT_LOWER, _PR_CAP_AMBIENT_CLEAR_ALL = 3, 4
"""include/uapi/linux/prctl.h."""
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class CapabilitySets:
    """The five sets of a thread."""

    effective: frozenset[str]
    permitted: frozenset[str]
    inheritable: frozenset[str]
    ambient: frozenset[str]
    bounding: frozenset[str]

    @classmethod
    def of(cls, process: int | str = "thread-self") -> CapabilitySets:
        """Those of a thread, as /proc/PID/status (or ``PID/task/TID``) has them."""
        fields = {}
        with Path(f"/proc/{process}/status").open("rb") as f:
            for line in f:
                name, _, value = line.partition(b":")
                if name.startswith(b"Cap"):
                    fields[name] = names_of(int(value, 16))
        return cls(fields[b"CapEff"], fields[b"CapPrm"], fields[b"CapInh"], fields[b"CapAmb"], fields[b"CapBnd"])


def names_of(bits: int) -> frozenset[str]:
    """The names of the bits of a set."""
    return frozenset(name_of(i) for i in range(_LAST + 1) if bits >> i & 1)


def name_of(number: int) -> str:
    """``CAP_…``; ``CAP_41`` for one that is newer than this table."""
    return NAMES[number] if number < len(NAMES) else f"CAP_{number}"


def number_of(name: str) -> int:
    """The inverse of :func:`name_of`."""
    return NAMES.index(name) if name in NAMES else int(name.removeprefix("CAP_"))


def in_order(names: Iterable[str]) -> list[str]:
    """By number: the order in which the kernel has them."""
    return sorted(names, key=number_of)


def keep_only(
    names: frozenset[str], *, bounding: frozenset[str] | None = None, for_children: bool = False
) -> CapabilitySets:
    """Give up every other capability in this thread for good; returns what is held afterwards. HostUnfit if more is.

    ``bounding``: what programs that are executed later may still get at most (a setuid root one, or any at all for user
    0); None leaves that set as it is, and so does a thread without CAP_SETPCAP. ``for_children``: what is kept stays
    inheritable and ambient where it was, for a child that needs it; otherwise both of those sets are emptied.
    Capabilities are per thread: call it while there is one.
    """
    before = CapabilitySets.of()
    limited = bounding is not None and "CAP_SETPCAP" in before.effective
    if bounding is not None and limited:
        for name in before.bounding - bounding:
            _libc.prctl(_PR_CAPBSET_DROP, number_of(name), 0, 0, 0)
    passed_on = names if for_children else NONE
    for name in before.ambient - passed_on:
        _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_LOWER, number_of(name), 0, 0)
    _capset(before.effective & names, before.permitted & names, before.inheritable & passed_on)
    after = CapabilitySets.of()
    more = (after.effective | after.permitted) - names | (after.inheritable | after.ambient) - passed_on
    if bounding is not None and limited:
        more |= after.bounding - bounding
    if more:
        raise HostUnfit(f"{' and '.join(in_order(more))} could not be given up, on {os.uname().release}")
    return after


def no_new_privileges() -> None:
    """From now on no program that is executed gives this process, or a child of it, more than it has."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise HostUnfit(f"prctl(PR_SET_NO_NEW_PRIVS): {os.strerror(ctypes.get_errno())}")


def pass_nothing_on() -> None:
    """A service's ambient capabilities are its own: a program that is executed next gets none of them."""
    held = CapabilitySets.of()
    if held.ambient:
        _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        _capset(held.effective, held.permitted, NONE)


def set_effective(names: frozenset[str]) -> None:
    """Of those permitted, use these; the others can be taken up again. OSError where one is not permitted."""
    held = CapabilitySets.of()
    _capset(names, held.permitted, held.inheritable)


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def _capset(effective: frozenset[str], permitted: frozenset[str], inheritable: frozenset[str]) -> None:
    """capset(2); struct __user_cap_data_struct[2]: effective, permitted, inheritable, 32 bits each."""
    sets = [sum(1 << number_of(n) for n in names) for names in (effective, permitted, inheritable)]
    words = (ctypes.c_uint32 * 6)(*(s >> shift & 0xFFFFFFFF for shift in (0, 32) for s in sets))
    if _libc.capset(ctypes.byref(_CapHeader(_LINUX_CAPABILITY_VERSION_3, 0)), ctypes.byref(words)):
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")
