"""The held process: becomes the invoking user, says so, waits for the word, and executes the workload.

``python -m gpuaudit.capture.launch_child FD``. On FD it reads one JSON line (see
:class:`gpuaudit.capture.launch.Workload`), answers ``held``, and executes on ``go``. When the other side goes away
first, nothing is executed.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from typing import Any

from gpuaudit.capture import capabilities
from gpuaudit.capture.child import END_SIGNALS

NOT_EXECUTED = 125
"""Exit code when the program was not executed, as env(1) and timeout(1) use it."""


def main(argv: list[str]) -> int:
    """Never returns when the program was executed."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # Python ignores the first two, and a program would inherit that
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
    pipe = socket.socket(fileno=int(argv[1]))
    pipe.set_inheritable(False)  # closed by execve: that is how the other side learns of it
    stream = pipe.makefile("rb")
    try:
        order = json.loads(stream.readline())
        _become(order)
        pipe.sendall(b"held\n")
        if stream.readline() != b"go\n":
            return NOT_EXECUTED
        os.execve(order["executable"], order["arguments"], order["environment"])  # noqa: S606 - meant
    except (OSError, ValueError, KeyError) as e:
        text = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        pipe.sendall(f"{text}\n".encode())
    return NOT_EXECUTED


def _become(order: dict[str, Any]) -> None:
    """Limits while there are privileges, user and groups last. A hard limit that cannot be raised stays as it is."""
    for name, (soft, hard) in order["limits"].items():
        number = getattr(resource, name)
        mine = resource.getrlimit(number)
        if mine == (soft, hard):
            continue
        try:
            resource.setrlimit(number, (soft, hard))
        except ValueError:
            resource.setrlimit(number, (mine[1] if soft < 0 <= mine[1] else min(soft, mine[1]), mine[1]))
    capabilities.pass_nothing_on()
    if order["uid"] is not None:
        os.setgroups(order["groups"])
        os.setresgid(order["gid"], order["gid"], order["gid"])
        os.setresuid(order["uid"], order["uid"], order["uid"])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
