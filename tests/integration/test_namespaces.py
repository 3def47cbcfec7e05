"""A process in another mount and PID namespace, and one in a root of its own: seen with the host's numbers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.doubles.build import build
from tests.integration.recording import DEADLINE_S, Row, recording, start, truth, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

RANKS = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "SLURM_JOB_ID": "77", "HF_TOKEN": "hf_0123456789abcdef"}

IN_NAMESPACES = """
mount -t tmpfs none "$1" && cp "$2" "$1" && exec "$3" --first "$1/libcudart.so.13" --out "$4" --go-file "$5" --calls 6
"""
IN_A_ROOT = """
mount --rbind / "$1" && mount -t tmpfs none "$1/mnt" && cp "$2" "$1/mnt" &&
exec chroot "$1" "$3" --first /mnt/libcudart.so.13 --out "$4" --go-file "$5" --calls 6
"""


def test_processes_in_other_namespaces(doubles: Path, tmp_path: Path) -> None:
    """The library lies in a tmpfs that only the process can see; its number there is not its number here."""
    if subprocess.run(["unshare", "-mp", "--fork", "true"], check=False, capture_output=True).returncode:
        pytest.skip("namespaces cannot be made here")
    visitor = build("visitor", doubles)
    cases = {"namespaces": ("-mp", IN_NAMESPACES), "root": ("-m", IN_A_ROOT)}
    running = {}
    for name, (flags, script) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        command: list[str | Path] = [
            "unshare",
            flags,
            "--fork",
            "sh",
            "-ec",
            script,
            "sh",
            folder,
            doubles / "libcudart.so.13",
            visitor,
        ]
        running[name] = start(*command, tmp_path / f"{name}.t", tmp_path / "go", env={**os.environ, **RANKS})
        wait_for_line(running[name], "at loaded")
    with recording() as r:
        r.step()
        (tmp_path / "go").touch()
        for process in running.values():
            r.run(process)
        r.finish()
    for name, process in running.items():
        told = truth(tmp_path / f"{name}.t")
        row = the_visitor(r.of("processes", op="found"), process.pid)
        calls = r.of("cuda_calls", pid=row["pid"])
        assert [c["size_bytes"] for c in calls] == [t["size"] for t in told if t["event"] == "call"][6:]
        (library,) = r.of("libraries", pid=row["pid"])
        assert (library["op"], Path(library["path"]).name) == ("attached", "libcudart.so.13")
        assert not Path(library["path"]).exists(), "what the path leads to here is nothing, and is not asked"
        inside = next(t["pid"] for t in told if t["event"] == "load")
        assert row["pid_in_namespace"] == (inside if name == "namespaces" else None)
        assert (inside == row["pid"]) == (name == "root")
        assert (row["rank"], row["local_rank"], row["world_size"], row["job_id"]) == (5, 1, 8, "77")
        assert row["rank_source"] == "RANK,LOCAL_RANK,WORLD_SIZE"
        assert RANKS["HF_TOKEN"] not in repr(row)
        (exited,) = r.of("processes", pid=row["pid"], op="exited")
        assert exited["exit_status"] == 0


def the_visitor(rows: list[Row], ancestor: int) -> Row:
    """The process that loaded the library: ``unshare --fork`` is its parent, and it has become the visitor."""
    (row,) = [row for row in rows if row["comm"] == "visitor" and row["parent_pid"] == ancestor]
    return row


def test_a_path_of_another_root_is_never_opened_here(doubles: Path, tmp_path: Path) -> None:
    """A file at the same path on the host is another file: it is neither probed nor shown as the process's own."""
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("namespaces cannot be made here")
    visitor, place = build("visitor", doubles), tmp_path / "place"
    place.mkdir()
    decoy = Path(shutil.copy(doubles / "libcudart.so.13", place / "libcudart.so.13"))
    with recording() as r:
        process = start("unshare", "-mp", "--fork", "sh", "-ec", IN_NAMESPACES, "sh", place,
                        doubles / "libcudart.so.13", visitor, tmp_path / "t", tmp_path / "go")  # fmt: skip
        wait_for_line(process, "at loaded")
        r.step()
        (tmp_path / "go").touch()
        process.wait(DEADLINE_S)
        r.finish()
    libraries = r.of("libraries", path=str(decoy))
    assert libraries
    assert all(row["inode"] != decoy.stat().st_ino or row["device"] != decoy.stat().st_dev for row in libraries)
