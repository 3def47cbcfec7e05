"""``audit capture`` in a process of its own, for tests of whole sessions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpuaudit.bundle.keys import Identity, trusted_identities
from gpuaudit.bundle.reader import Bundle
from gpuaudit.capture.child import child_environment

DEADLINE_S = 120.0
"""After which something that never comes is a failure. Nothing is measured with it."""

AUDIT = [sys.executable, "-m", "gpuaudit.cli.main", "capture"]


def environment(keys: Path, **more: str) -> dict[str, str]:
    """Ours, with a key folder of the test's own and without a sudo around it."""
    kept = {k: v for k, v in child_environment().items() if not k.startswith("SUDO_")}
    return {**kept, "GPU_AUDIT_KEYS": str(keys), **more}


def capture(arguments: Sequence[str | Path], env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        command_line(arguments), env=env, capture_output=True, text=True, check=False, timeout=DEADLINE_S, **options
    )  # fmt: skip


def command_line(arguments: Sequence[str | Path]) -> list[str]:
    """``audit capture`` with these arguments."""
    return [*AUDIT, *map(str, arguments)]


class Session:
    """A capture that runs: signals to send, files to wait for."""

    def __init__(self, arguments: Sequence[str | Path], env: dict[str, str], *, prefix: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, *command_line(arguments)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def wait_for(self, path: Path) -> None:
        """Until ``path`` is there."""
        end = time.monotonic() + DEADLINE_S
        while not path.exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < end, f"{path} never came"
            time.sleep(0.01)

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal to the attacher; its exit code and what it said."""
        self.process.send_signal(number)
        return self.result()

    def end_group(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal to the attacher and everything it started, as a terminal or a service manager does."""
        os.killpg(self.process.pid, number)
        return self.result()

    def kill_group(self) -> None:
        """kill −9 of everything: stopped first, the attacher starts nothing that could be missed."""
        os.kill(self.process.pid, signal.SIGSTOP)
        for pid in self.children():
            os.kill(pid, signal.SIGKILL)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=DEADLINE_S)

    def result(self) -> tuple[int, str]:
        """Exit code, standard output and error."""
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out + err

    def recorder_pid(self) -> int:
        """Process id of the recorder."""
        return next(p for p in self.children() if b"recorder_main" in Path(f"/proc/{p}/cmdline").read_bytes())

    def children(self) -> list[int]:
        """Process ids of what the attacher has started and not yet waited for."""
        return [int(p) for p in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]


def rows(path: Path, table: str) -> list[dict[str, Any]]:
    """Every row of a table in a bundle."""
    out: list[dict[str, Any]] = []
    with Bundle.open(path) as bundle:
        for _, columns in bundle.segments(table):
            lists = {name: c.to_list() for name, c in columns.items()}
            out += [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    return out


def trust(keys: Path) -> list[Identity]:
    """The identity that a capture with this key folder made."""
    before = os.environ.get("GPU_AUDIT_KEYS")
    os.environ["GPU_AUDIT_KEYS"] = str(keys)
    try:
        return trusted_identities()
    finally:
        if before is None:
            del os.environ["GPU_AUDIT_KEYS"]
        else:
            os.environ["GPU_AUDIT_KEYS"] = before
