"""The workload of ``audit capture -- command``: started as the invoking user, with its own limits and environment.

Under sudo those are not ours: sudo scrubs the environment, and what audit raises for itself must not reach the
workload. The process is held (:mod:`gpuaudit.capture.launch_child`) until the libraries it is linked with are probed,
so that its first call is seen.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpuaudit.bundle.errors import HostUnfit, UsageError
from gpuaudit.capture.child import child_command, child_environment, end_signals_blocked
from gpuaudit.capture.privileges import Credentials

HELD_DEADLINE_S = 30.0
"""How long a new process may take until it is held."""

_ANCESTORS = 16
_LIMITS = tuple(name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE")
"""Every limit once: RLIMIT_OFILE is another name of RLIMIT_NOFILE."""

_SUDO_VARIABLES = ("SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND", "SUDO_HOME")


Limits = dict[str, tuple[int, int]]
"""Name of a resource limit → soft and hard value."""


@dataclass(frozen=True)
class InvokingUser:
    """Who called sudo. ``environment`` and ``limits`` are those of that user's shell where they can be read."""

    credentials: Credentials
    groups: tuple[int, ...]
    environment: dict[str, str]
    limits: Limits = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A command that was found: what to execute, and the arguments as given."""

    executable: Path
    arguments: tuple[str, ...]


def own_limits() -> Limits:
    """This process's resource limits, by name. Read them before changing any."""
    return {name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS}


def invoking_user() -> InvokingUser | None:
    """The user who called ``sudo``; None when nobody did. UsageError for a SUDO_UID that is no user id."""
    if os.geteuid() != 0 or "SUDO_UID" not in os.environ:
        return None
    numbers = {}
    for name in ("SUDO_UID", "SUDO_GID"):
        text = os.environ.get(name, "")
        if not (text.isascii() and text.isdecimal() and int(text) < 1 << 32):
            raise UsageError(f"{name} is {text!r:.40}, expected a number", hint="run audit through sudo, or as root")
        numbers[name] = int(text)
    uid, gid = numbers["SUDO_UID"], numbers["SUDO_GID"]
    if uid == 0:
        return None
    try:
        entry = pwd.getpwuid(uid)
        groups = tuple(os.getgrouplist(entry.pw_name, gid))
        login = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name, "SHELL": entry.pw_shell}
    except KeyError:  # a user of the network that this host cannot look up
        groups, login = (gid,), {}
    sudo = _sudo_process()
    environment = _environment_of(sudo) if sudo else None
    if environment is None:
        kept = {k: v for k, v in os.environ.items() if k not in _SUDO_VARIABLES}
        environment = {**kept, **login}
    limits = _limits_of(_parent(sudo)) if sudo else own_limits()
    return InvokingUser(Credentials(uid, gid), groups, environment, limits)


def resolve_command(arguments: Sequence[str], user: InvokingUser | None) -> Command:
    """Find the program in the user's PATH; UsageError when it is not there."""
    environment = user.environment if user else dict(os.environ)
    name = arguments[0]
    found = shutil.which(name, path=environment.get("PATH", os.defpath))
    if found is None:
        where = "is not an executable file" if "/" in name else "was not found in PATH"
        raise UsageError(f"workload: {name!r:.200} {where}", hint="give its full path after --")
    return Command(Path(found).absolute(), tuple(arguments))


class Workload:
    """A process that was started and is held until :meth:`release`."""

    def __init__(self, command: Command, user: InvokingUser | None, limits: Limits) -> None:
        ours, theirs = socket.socketpair()
        with theirs, end_signals_blocked():
            self._process = subprocess.Popen(
                child_command("gpuaudit.capture.launch_child", str(theirs.fileno())),
                pass_fds=[theirs.fileno()], env=child_environment(),
            )  # fmt: skip
        self._pipe = ours
        self.is_held = True
        self._pipe.settimeout(HELD_DEADLINE_S)
        environment = user.environment if user else dict(os.environ)
        order = {
            "executable": str(command.executable), "arguments": list(command.arguments), "environment": environment,
            "limits": user.limits if user else limits,
            "uid": user.credentials.uid if user else None, "gid": user.credentials.gid if user else None,
            "groups": list(user.groups) if user else None,
        }  # fmt: skip
        self._pipe.sendall(json.dumps(order).encode("ascii") + b"\n")
        answer = self._receive_line()
        if answer != b"held\n":
            self._process.kill()
            self._process.wait()
            raise HostUnfit(
                f"workload could not be prepared: {answer.decode('utf-8', 'replace').strip() or 'it ended'}"
            )

    @property
    def pid(self) -> int:
        """Its process id, which stays the same when it is released."""
        return self._process.pid

    def release(self) -> None:
        """Let it execute the program; UsageError when the kernel refuses to, HostUnfit when somebody ended it."""
        try:
            self._pipe.sendall(b"go\n")
        except OSError:
            self.kill_held()
            raise HostUnfit(f"workload ended while it was held: {describe_status(self.wait())}") from None
        self.is_held = False
        failure = self._receive_line()  # empty: the pipe was closed by a successful execve
        self._pipe.close()
        if failure:
            self._process.wait()
            why = failure.decode("utf-8", "replace").strip()
            raise UsageError(f"workload could not be executed: {why}", hint="run the command without audit first")

    def poll(self) -> int | None:
        """Exit code, or −signal; None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait until it has ended."""
        return self._process.wait()

    def send_signal(self, number: int) -> None:
        """Pass a signal on."""
        self._process.send_signal(number)

    def kill_held(self) -> None:
        """End a process that never was released."""
        self._pipe.close()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _receive_line(self) -> bytes:
        data = b""
        try:
            while not data.endswith(b"\n") and len(data) < 4096:
                part = self._pipe.recv(4096)
                if not part:
                    break
                data += part
        except OSError as e:
            return f"{e}\n".encode()
        return data


def typed_at_terminal() -> bool:
    """Whether a Ctrl-C at our terminal reached the workload too: both are in its foreground process group."""
    try:
        with open("/dev/tty", "rb") as terminal:  # noqa: PTH123 - a device
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def describe_status(status: int) -> str:
    """``exit code 3``, or ``signal 9 (SIGKILL)``."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"signal {-status}"


def _sudo_process() -> int:
    """The nearest ancestor called sudo; 0 when there is none."""
    pid = os.getppid()
    for _ in range(_ANCESTORS):
        if pid <= 1:
            return 0
        try:
            if Path(f"/proc/{pid}/comm").read_bytes().strip() == b"sudo":
                outer = _parent(pid)  # with use_pty sudo is two processes
                is_outer = Path(f"/proc/{outer}/comm").read_bytes().strip() != b"sudo"
                return pid if is_outer else outer
        except OSError:
            return 0
        pid = _parent(pid)
    return 0


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return int(stat.rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _environment_of(pid: int) -> dict[str, str] | None:
    """The environment a process was started with; for sudo that is the invoking shell's, unscrubbed."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    pairs = (os.fsdecode(item).partition("=") for item in raw.split(b"\0") if b"=" in item)
    return {name: value for name, _, value in pairs} or None


def _limits_of(pid: int) -> Limits:
    if pid <= 1:
        return own_limits()
    try:
        return {name: resource.prlimit(pid, getattr(resource, name)) for name in _LIMITS}
    except OSError:
        return own_limits()
