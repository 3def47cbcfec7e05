"""Each watched file that is written to is told of once."""

from __future__ import annotations

import os
from pathlib import Path

from gpuaudit.capture.file_changes import FileChanges


def test_the_first_write_is_told_of(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("written", "cut", "touched", "replaced")]
    changes = FileChanges()
    try:
        for number, path in enumerate(paths):
            path.write_bytes(b"some")
            with path.open("rb") as f:
                changes.watch(f.fileno(), (1, number))
        paths[2].touch()
        paths[3].rename(tmp_path / "elsewhere")
        paths[3].write_bytes(b"another file")
        assert changes.take() == []
        for _ in range(2):
            with paths[0].open("r+b") as f:
                f.write(b"else")
        os.truncate(paths[1], 2)
        assert sorted(changes.take()) == [(1, 0), (1, 1)]
        assert changes.take() == []
    finally:
        changes.close()


def test_a_kernel_that_watches_nothing(tmp_path: Path) -> None:
    changes = FileChanges()
    changes.close()
    with Path("/dev/null").open("rb") as f:
        changes.watch(f.fileno(), (1, 2))
    assert (changes.take(), changes.descriptors) == ([], [])
