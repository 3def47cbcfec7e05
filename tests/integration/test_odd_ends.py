"""Captures that end in a way that is not the usual one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.recording import recording
from tests.integration.sessions import Session, environment

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]


def test_closing_twice_hides_no_error(doubles: Path) -> None:
    """A capture that fails while its command runs is closed, waits for the command, and is closed once more."""
    with recording() as r:
        assert r.capture.prepare([str(doubles / "libcudart.so.13")]) == []
        r.capture.close()


def test_a_clock_that_is_not_the_hosts_is_refused(tmp_path: Path) -> None:
    """In a time namespace BPF programs have another clock than this process: nothing would match."""
    shifted = ["unshare", "--time", "--boottime", "1000", "--fork"]
    if subprocess.run([*shifted, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no time namespaces here")
    command: list[str | Path] = ["--out", tmp_path / "a.db", "--duration", "1", "--source", "cuda"]
    code, said = Session(command, environment(tmp_path / "keys"), prefix=shifted).result()
    assert code == 4, said
    assert "the clock here is a time namespace's own" in said
    assert not list(tmp_path.glob("a.db*"))
