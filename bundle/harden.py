"""What a process does to itself before it holds keys, or before it decodes bytes of unknown origin."""

from __future__ import annotations

import ctypes
import resource
from dataclasses import dataclass

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
"""Numbers of include/uapi/linux/prctl.h."""
_MCL_CURRENT = 1
_MCL_FUTURE = 2
_MCL_ONFAULT = 4
"""Flags of mlockall(2)."""


@dataclass(frozen=True)
class Hardening:
    """What took effect. Memory is locked only where the limit allows all of it: a partial limit would break malloc."""

    not_dumpable: bool
    no_core: bool
    memory_locked: bool


def harden_process() -> Hardening:
    """For a process that holds epoch or identity keys: not dumpable or traceable, no core, memory never swapped.

    Call it before the first key is made, and before privileges are dropped: raising the lock limit may need them.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return Hardening(_prctl(_PR_SET_DUMPABLE, 0), True, _lock_memory())


def limit_decoder(address_space_bytes: int, cpu_s: int) -> None:
    """For a process that decodes hostile bytes: no new privileges, files, processes or cores, and bounded memory."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_AS, address_space_bytes),
        (resource.RLIMIT_CPU, cpu_s),
    ):
        _, hard = resource.getrlimit(what)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))


def _prctl(option: int, value: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(option, ctypes.c_ulong(value), *([ctypes.c_ulong(0)] * 3)) == 0)


def _lock_memory() -> bool:
    unlimited = resource.RLIM_INFINITY
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != unlimited:
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, unlimited))
        except (ValueError, OSError):  # raising it needs CAP_SYS_RESOURCE
            return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)
