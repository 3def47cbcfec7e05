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
from gpuaudit.capture import capabilities
from gpuaudit.capture.capabilities import CapabilitySets
from gpuaudit.capture.capability_needs import NEEDS

RECORDER_USERS = ("gpu-audit-recorder", "gpu-audit", "nobody")
"""Users the recorder may run as; the first that there is, and that is not the attacher's own, wins."""

FOR_ANOTHER_USER = frozenset({"CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE"})
"""What it takes to run the recorder as a user of its own, and to take from it what it wrote."""

FOR_A_COMMAND = frozenset({"CAP_SETUID", "CAP_SETGID"})
"""What it takes to start the command as the user who called sudo."""

_INITIAL_PID_NAMESPACE, _INITIAL_TIME_NAMESPACE = 0xEFFFFFFC, 0xEFFFFFFA
"""include/linux/proc_ns.h: PROC_PID_INIT_INO, PROC_TIME_INIT_INO."""

FOREIGN_PIDS = "process ids here are a container's own, BPF programs see the host's, and the two cannot be matched"
FOREIGN_PIDS_HINT = "run audit on the host, or with its process ids: docker --pid=host, Kubernetes hostPID: true"
FOREIGN_CLOCK = "the clock here is a time namespace's own, BPF programs see the host's, and the two cannot be matched"
FOREIGN_CLOCK_HINT = "run audit on the host, or in a container without a time namespace"

_PR_SET_DUMPABLE = 4
"""include/uapi/linux/prctl.h."""
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MOUNT_POINTS = ("/mnt", "/media", "/srv")
"""Directories that the Filesystem Hierarchy Standard promises and that no library is loaded from."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Credentials:
    """The user a process runs as after a drop."""

    uid: int
    gid: int


def missing_for_bpf(have: Iterable[str] | None = None) -> list[str]:
    """Names of the capabilities a BPF capture lacks. For the kernel CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON."""
    got = frozenset(CapabilitySets.of().effective if have is None else have)
    needed = dict.fromkeys(need.capability for need in NEEDS if need.required)
    if "CAP_SYS_ADMIN" in got:
        needed = {"CAP_SYS_PTRACE": None}
    return [name for name in needed if name not in got]


def check_command_of_another_user() -> None:
    """HostUnfit, which names it, where a capability is lacking to start a command as the user who called sudo."""
    missing = FOR_A_COMMAND - CapabilitySets.of().effective
    if missing:
        raise HostUnfit(
            f"the command cannot be started as the user who called sudo: this process lacks "
            f"{' and '.join(capabilities.in_order(missing))}",
            hint="give it these too, or capture a process that runs: --pid",
        )


def limit_to(names: frozenset[str], *, final: bool) -> None:
    """Keep these capabilities of the attacher's and no other. HostUnfit when the kernel leaves more, in any thread.

    ``final``: nothing is started any more that needs others, so they leave the bounding set as well, and no program
    executed from now on gains any. Before that the bounding set stays: a command that is recorded gets its own.
    """
    if final:
        capabilities.no_new_privileges()
    held = capabilities.keep_only(names, bounding=names if final else None, for_children=not final).permitted
    for task in Path("/proc/self/task").iterdir():
        more = CapabilitySets.of(f"self/task/{task.name}").permitted - held
        if more:
            raise HostUnfit(
                f"thread {task.name} of this process still holds {', '.join(capabilities.in_order(more))}",
                hint="capabilities are a thread's own: none may be started before they are given up",
            )


def import_numpy_without_threads() -> None:
    """numpy's BLAS starts a thread per CPU when it is imported, each with the capabilities of that moment."""
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        import numpy  # noqa: F401, PLC0415 - for its effect, here and now
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def foreign_namespace() -> tuple[str, str] | None:
    """Why numbers or times of BPF programs are not those of this process, and what to do; None where they are."""
    if not _in_namespace("pid", _INITIAL_PID_NAMESPACE):
        return FOREIGN_PIDS, FOREIGN_PIDS_HINT
    if not _in_namespace("time", _INITIAL_TIME_NAMESPACE):
        return FOREIGN_CLOCK, FOREIGN_CLOCK_HINT
    return None


def _in_namespace(kind: str, number: int) -> bool:
    try:
        return Path(f"/proc/self/ns/{kind}").stat().st_ino == number
    except OSError:  # a kernel without namespaces of this kind
        return True


def recorder_credentials() -> Credentials | None:
    """Whom the recorder shall run as; None when this process may not change users, or not give them files."""
    if FOR_ANOTHER_USER - CapabilitySets.of().effective:
        return None
    for name in RECORDER_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid not in (0, os.geteuid()):
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
    _set_dumpable_off()


def private_view(directory: Path) -> Path:
    """Enter a mount and a network namespace of our own; returns where ``directory`` can now be reached.

    Without the privilege for it (CAP_SYS_ADMIN) nothing changes and ``directory`` itself is returned. Call it before
    :func:`drop`, and before any thread is started.
    """
    if "CAP_SYS_ADMIN" not in CapabilitySets.of().effective:
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
        capabilities.keep_only(frozenset({"CAP_SETUID", "CAP_SETGID"}), bounding=capabilities.NONE)
        os.setgroups([])
        os.setresgid(credentials.gid, credentials.gid, credentials.gid)
        os.setresuid(credentials.uid, credentials.uid, credentials.uid)
    capabilities.keep_only(capabilities.NONE)
    capabilities.no_new_privileges()
    _set_dumpable_off()  # again: a change of user sets it from /proc/sys/fs/suid_dumpable
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


def _set_dumpable_off() -> None:
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise HostUnfit(f"prctl(PR_SET_DUMPABLE, 0): {os.strerror(ctypes.get_errno())} on {platform.release()}")


def _status_fields() -> dict[str, str]:
    # Decoded here and not by open(): after the drop the codec's module may lie in a folder closed to this user.
    text = Path("/proc/self/status").read_bytes().decode("ascii", "replace")
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}
