"""``audit explain BUNDLE ID --timeline`` and ``audit export --format perfetto`` on a sealed bundle."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.tables import TABLES
from tests.bundles import MemorySigner, open_writer
from tests.chain_scenes import two_chains
from tests.commands import AUDIT, audit, check_refused, environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sealed scene as ``run.db``."""
    path = tmp_path_factory.mktemp("chains")
    writer = open_writer(path / "run.db", MemorySigner())
    totals = {}
    for table, rows in two_chains().rows.items():
        made = from_records(TABLES[table], rows)
        writer.append_segment(TABLES[table], made, seen=len(rows), written=len(rows), lost=0)
        totals[table] = {"seen": str(len(rows)), "written": str(len(rows)), "lost": "0"}
    writer.seal(totals)
    writer.close()
    return path


def test_a_chain_is_told_and_drawn(folder: Path) -> None:
    done = audit("explain", "run.db", "C1", "--timeline", env=environment(folder, COLUMNS="90"), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout, "a pipe has no colours"
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 90
    assert any(x.startswith("C1 ") for x in lines)
    assert not any(x.startswith("C2 ") for x in lines)
    assert [x.split(" ")[0] for x in lines if "▕" in x] == ["effect", "cause", "peer", "peer", "peer"] * 2
    assert any(x.startswith("All of it: ") for x in lines)


def test_colours_are_for_terminals_and_no_color_is_obeyed(folder: Path) -> None:
    said = {}
    for name, value in (("with", ""), ("without", "1")):
        env = environment(folder, NO_COLOR=value, TERM="xterm-256color", COLUMNS="80")
        ours, theirs = pty.openpty()
        with subprocess.Popen([*AUDIT, "explain", "run.db", "C1", "--timeline"], env=env, cwd=folder, stdin=theirs,
                              stdout=theirs, stderr=subprocess.DEVNULL) as running:  # fmt: skip
            os.close(theirs)
            said[name] = _all(ours)
            assert running.wait() == 0
        os.close(ours)
    assert "\x1b[31m" in said["with"]
    assert "\x1b" not in said["without"]
    assert re.sub(r"\x1b\[[0-9]+m", "", said["with"]) == said["without"]


def _all(fd: int) -> str:
    data = b""
    while True:
        try:
            piece = os.read(fd, 1 << 16)
        except OSError:  # EIO: the last writer has closed a pseudo-terminal
            piece = b""
        if not piece:
            return data.decode()
        data += piece


def test_an_id_that_is_not_there_is_one_line(folder: Path) -> None:
    env = environment(folder)
    check_refused(audit("explain", "run.db", "C99", env=env, cwd=folder), 2, "C99", "C1")
    check_refused(audit("explain", "run.db", "C1", "--json", env=env, cwd=folder), 2, "--json")


def test_a_trace_is_written_and_nothing_over_other_content(folder: Path) -> None:
    env = environment(folder)
    command = ("export", "run.db", "--format", "perfetto", "--out", "run.pftrace")
    done = audit(*command, "--json", env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["chains"] >= 2
    assert told["flows"] > 100
    assert told["omitted"] == []
    (folder / "run.pftrace").write_bytes(b"other")
    check_refused(audit(*command, env=env, cwd=folder), 2, "--force")
    assert (folder / "run.pftrace").read_bytes() == b"other"
    check_refused(
        audit("export", "run.pftrace", "--format", "perfetto", "--out", "x", env=env, cwd=folder), 3, "run.pftrace"
    )
