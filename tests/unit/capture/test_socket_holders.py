"""Which sockets a process holds, from the links in /proc/PID/fd."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from gpuaudit.capture.socket_holders import held_sockets


def test_links_that_are_sockets(tmp_path: Path) -> None:
    folder = tmp_path / "7" / "fd"
    folder.mkdir(parents=True)
    for name, target in {
        "0": "/dev/null", "3": "socket:[1110361]", "4": "pipe:[12]", "5": "socket:[x]", "6": "anon_inode:[eventpoll]",
        "7": "socket:[12] (deleted)", "8": f"socket:[{2**32}]",
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    (folder / "9").write_text("no link")
    found = list(held_sockets(7, tmp_path))
    assert sorted(inode for inode in found if inode) == [1110361, 2**32]
    assert found.count(None) == 5  # each was looked at


def test_a_process_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    assert list(held_sockets(8, tmp_path)) == []


def test_the_live_table() -> None:
    with socket.socket() as mine:
        assert os.fstat(mine.fileno()).st_ino in set(held_sockets(os.getpid()))
