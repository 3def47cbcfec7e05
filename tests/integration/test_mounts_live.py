"""Mounts of a real host: the file system of a file is that of the requests it takes, and what changes is told."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpuaudit.analyze import mounts
from gpuaudit.analyze.store import Store
from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.selection import Selection
from tests.integration.disks import folder_on_disk
from tests.integration.recording import recording

pytestmark = [pytest.mark.root]

BLOCK, BLOCKS = 1 << 16, 16
CHANGES = """
import json, subprocess, sys
from pathlib import Path
from gpuaudit.capture.mounts import Mounts
proc, one, other = map(Path, sys.argv[1:])
rows = []
made = Mounts(lambda table, row: rows.append([row.get("op"), row.get("path"), row.get("root")]), proc)
made.poll()
told = len(rows)
made.poll()
assert len(rows) == told, "nothing had changed"
for command in (["mount", "--bind", one, other], ["umount", other]):
    subprocess.run(command, check=True)
    made.poll()
print(json.dumps(rows[told:]))
"""


@pytest.mark.usefixtures("bpf")
def test_requests_are_of_the_file_system_of_their_file(tmp_path: Path) -> None:
    with folder_on_disk(tmp_path) as folder:
        path = folder / "cold"
        with path.open("wb") as f:
            f.write(os.urandom(BLOCK * BLOCKS))
            os.fsync(f.fileno())
        with recording(Selection(sources=frozenset({"block_io"}))) as r:
            fd, block = os.open(path, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, BLOCK)
            try:
                assert [os.preadv(fd, [block], i * BLOCK) for i in range(BLOCKS)] == [BLOCK] * BLOCKS
            finally:
                os.close(fd)
            r.finish()
            reads = r.of("block_io", pid=os.getpid(), op="read")
            rows = {t: from_records(TABLES[t], r.rows[t]) for t in ("mounts", "processes", "block_io")}
        assert sum(row["size_bytes"] for row in reads) >= BLOCK * BLOCKS
        device = folder.stat().st_dev
        known = mounts.read_mounts(Store.from_tables({t: [x] for t, x in rows.items()}))
    own = [m for m in known if m.device == (os.major(device), os.minor(device))]
    if not own:
        pytest.skip("the file system of temporary files is on a device that is made of others, or has none")
    requests = Store.from_tables({"block_io": [from_records(TABLES["block_io"], reads)]}).arrays(
        "SELECT start_ns::BIGINT AS start_ns, end_ns::BIGINT AS end_ns, major::BIGINT AS major, minor::BIGINT AS "
        f"minor, {', '.join(f'{sql} AS {name}' for name, sql in mounts.COLUMNS.items())} FROM block_io"
    )
    place = mounts.place(known, requests)
    assert place is not None
    assert place.device == f"{os.major(device)}:{os.minor(device)}"
    assert {m.type for m in own} == {place.text.split()[1]}
    assert not place.path or Path(place.path).stat().st_dev == device


def test_a_mount_and_its_end_are_told_once(tmp_path: Path) -> None:
    """In a mount namespace of its own: the kernel says on the open file that there is something to read."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    with folder_on_disk(tmp_path) as folder:
        one, other, proc = folder / "one", folder / "other", folder / "proc"
        for made in (one, other, proc):
            made.mkdir()
        (proc / "self").symlink_to("/proc/self")
        command = ("unshare", "--mount", "--propagation", "private", sys.executable, "-c", CHANGES, proc, one, other)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
            pytest.skip(f"no mount namespace can be made here: {done.stderr}")
        assert done.returncode == 0, done.stderr
        (began, path, root), ended = json.loads(done.stdout)
        assert (began, path) == ("mounted", str(other))
        assert root.endswith(f"/{one.name}"), "what of the file system it shows"
        assert ended == ["unmounted", path, root]
