"""What a command cost, measured on commands whose cost is known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import usage
from gpuaudit.bundle.errors import AuditError

MIB = 1 << 20


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_memory_is_that_of_the_command_and_not_of_who_started_it() -> None:
    held = bytearray(200 * MIB)
    held[::4096] = b"\1" * len(held[::4096])
    assert usage.run(["true"]).peak_bytes < 60 * MIB


def test_memory_of_a_child_of_the_command_counts() -> None:
    alone = usage.run(python("pass")).peak_bytes
    inner = "b = bytearray(150 << 20); b[::4096] = b'x' * len(b[::4096])"
    used = usage.run(python(f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {inner!r}])"))
    assert used.peak_bytes - alone > 140 * MIB


def test_cpu_of_a_child_counts_and_waiting_does_not() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    used = usage.run(python(f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {busy!r}])"))
    assert used.cpu_s >= 0.3
    waited = usage.run(["sleep", "0.2"])
    assert waited.seconds >= 0.2
    assert waited.cpu_s < waited.seconds


def test_a_failure_is_told_in_the_commands_own_words() -> None:
    with pytest.raises(AuditError, match="ended with status 3: no such luck"):
        usage.run(python("import sys; print('no such luck', file=sys.stderr); sys.exit(3)"))
    assert usage.run(["sh", "-c", "exit 3"], accept=(3,)).seconds > 0


def test_the_commands_output_is_not_taken_for_the_answer() -> None:
    assert usage.run(["echo", '{"seconds": 1, "cpu_s": 1, "peak_bytes": 1}']).peak_bytes > 1


def test_a_command_runs_where_and_with_what_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("")
    usage.run(
        ["sh", "-c", 'test -e here && test "$X" = y'], folder=tmp_path, environment={"X": "y", "PATH": "/usr/bin:/bin"}
    )


def test_a_command_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(AuditError, match=r"sleep took more than 0\.5 s"):
        usage.run(["sleep", "30"], limit_s=0.5)
