"""Privileges: which a capture needs, and how the recorder gives up all of them.

The recorder runs as a user of its own, ``gpu-audit`` if the host has it, else ``nobody``, and not as the invoking user:
the workload runs as that one, and must not be able to signal, trace or rewrite what records it. It also gets a network
namespace without interfaces, and sees the directory it writes to at a place it can reach even when that directory lies
under a home directory closed to others.
"""

from __future__ import annotations

import ctypes
import os
import platform
import pwd
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.bundle.errors import HostUnfit

RECORDER_USERS = ("gpu-audit", "nobody")
"""Users the recorder may run as, first found wins."""

CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 6, 7, 19, 21, 38, 39
"""Numbers of include/uapi/linux/capability.h."""

CAPABILITY_NAMES = {
    CAP_SETGID: "CAP_SETGID", CAP_SETUID: "CAP_SETUID", CAP_SYS_PTRACE: "CAP_SYS_PTRACE",
    CAP_SYS_ADMIN: "CAP_SYS_ADMIN", CAP_PERFMON: "CAP_PERFMON", CAP_BPF: "CAP_BPF",
}  # fmt: skip

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""include/linux/proc_ns.h: PROC_PID_INIT_INO."""

FOREIGN_PIDS = "process ids here are a container's own, BPF programs see the host's, and the two cannot be matched"
FOREIGN_PIDS_HINT = "run audit on the host, or with its process ids: docker --pid=host, Kubernetes hostPID: true"

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_LAST_CAPABILITY = 63
_MOUNT_POINTS = ("/mnt", "/media", "/srv")
"""Directories that the Filesystem Hierarchy Standard promises and that no library is loaded from."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Credentials:
    """The user a process runs as after a drop."""

    uid: int
    gid: int


def effective_capabilities() -> frozenset[int]:
    """Capability numbers this process can use now (CapEff of /proc/self/status)."""
    return _capability_set(_status_fields()["CapEff"])


def missing_for_bpf(have: Iterable[int] | None = None) -> list[str]:
    """Names of the capabilities a BPF capture lacks. For the kernel CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON."""
    got = frozenset(effective_capabilities() if have is None else have)
    needed = [CAP_SYS_PTRACE] if CAP_SYS_ADMIN in got else [CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE]
    return [CAPABILITY_NAMES[c] for c in needed if c not in got]


def in_initial_pid_namespace() -> bool:
    """Whether process ids here are the ones that BPF programs see; in a container they usually are not."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE
    except OSError:  # a kernel without PID namespaces
        return True


def recorder_credentials() -> Credentials | None:
    """Whom the recorder shall run as; None when this process may not change users, or is nobody special already."""
    if not {CAP_SETUID, CAP_SETGID} <= effective_capabilities():
        return None
    for name in RECORDER_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Credentials(entry.pw_uid, entry.pw_gid)
    raise HostUnfit(
        f"no unprivileged user for the recorder: looked for {' and '.join(RECORDER_USERS)}",
        hint="make one: useradd --system --no-create-home --shell /usr/sbin/nologin gpu-audit",
    )


def protect_memory() -> None:
    """No core dump and no tracing by the same user: keys live in this process.

    The hard limit stays: the workload gets its own back, and raising a hard limit needs a privilege.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    _prctl(_PR_SET_DUMPABLE, 0)


def private_view(directory: Path) -> Path:
    """Enter a mount and a network namespace of our own; returns where ``directory`` can now be reached.

    Without the privilege for it (CAP_SYS_ADMIN) nothing changes and ``directory`` itself is returned. Call it before
    :func:`drop`, and before any thread is started.
    """
    if CAP_SYS_ADMIN not in effective_capabilities():
        return directory
    _libc.unshare(_CLONE_NEWNET)  # best effort: no socket is opened anyway
    if _libc.unshare(_CLONE_NEWNS) or _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        return directory
    in_use = [Path(p).resolve() for p in (sys.prefix, sys.base_prefix, str(Path(__file__).parent), *sys.path) if p]
    for place in map(Path, _MOUNT_POINTS):
        if not place.is_dir() or place.is_symlink() or any(p.is_relative_to(place) for p in in_use):
            continue
        if _libc.mount(os.fsencode(directory), os.fsencode(place), None, _MS_BIND, None) == 0:
            os.chdir(place)
            return place
    return directory


def drop(credentials: Credentials | None) -> None:
    """Give up every privilege for good, and check that it is so; HostUnfit when the kernel says otherwise.

    ``credentials`` None keeps the user (an ordinary user's capture) but no capability. Call it before any thread is
    started: capabilities are per thread.
    """
    protect_memory()
    if credentials is not None:
        for capability in range(_LAST_CAPABILITY + 1):
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # EINVAL past the kernel's last capability
        os.setgroups([])
        os.setresgid(credentials.gid, credentials.gid, credentials.gid)
        os.setresuid(credentials.uid, credentials.uid, credentials.uid)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _clear_capabilities()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)  # again: a change of user sets it from /proc/sys/fs/suid_dumpable
    _check_dropped(credentials)


def _check_dropped(credentials: Credentials | None) -> None:
    fields = _status_fields()
    held = {name: fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(fields[name], 16)}
    if held:
        raise HostUnfit(f"the recorder still holds capabilities after dropping them: {held}, expected none")
    if fields.get("NoNewPrivs") != "1":
        raise HostUnfit(f"no_new_privs is {fields.get('NoNewPrivs')} after setting it, expected 1")
    if credentials is not None:
        uids = set(fields["Uid"].split())
        if uids != {str(credentials.uid)} or fields["Groups"].split():
            raise HostUnfit(
                f"the recorder runs as {sorted(uids)}, groups {fields['Groups']!r}, expected {credentials.uid} alone"
            )


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def _clear_capabilities() -> None:
    empty = (ctypes.c_uint32 * 6)()  # struct __user_cap_data_struct[2]: effective, permitted, inheritable
    if _libc.capset(ctypes.byref(_CapHeader(_LINUX_CAPABILITY_VERSION_3, 0)), ctypes.byref(empty)):
        raise HostUnfit(f"capset: {os.strerror(ctypes.get_errno())}; the recorder could not give up its capabilities")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise HostUnfit(f"prctl({option}, {value}): {os.strerror(ctypes.get_errno())} on {platform.release()}")


def _status_fields() -> dict[str, str]:
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as f:
        pairs = (line.rstrip("\n").partition(":") for line in f)
        return {name: value.strip() for name, _, value in pairs}


def _capability_set(hexadecimal: str) -> frozenset[int]:
    bits = int(hexadecimal, 16)
    return frozenset(i for i in range(_LAST_CAPABILITY + 1) if bits >> i & 1)
