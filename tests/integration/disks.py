"""A folder whose files lie on a disk, for tests that need one: temporary folders are often memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def has_disk(folder: Path) -> bool:
    """Whether a block device is below the folder."""
    device = folder.stat().st_dev
    return Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").exists()


@contextmanager
def folder_on_disk(wished: Path) -> Iterator[Path]:
    """``wished``, if it is on a disk, or a new folder where files survive a reboot; skips where there is none."""
    if has_disk(wished):
        yield wished
        return
    other = Path("/var/tmp")
    if not other.is_dir() or not has_disk(other):
        pytest.skip("no folder for temporary files lies on a disk")
    folder = Path(tempfile.mkdtemp(prefix="gpuaudit-test-", dir=other))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
