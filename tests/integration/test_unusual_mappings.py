"""Libraries that are mapped as no loader maps them: recorded all the same, or the evidence says that they are not."""

from __future__ import annotations

import select
import shutil
import sys
from pathlib import Path

import pytest

from tests.doubles.build import build
from tests.integration.recording import DEADLINE_S, recording, start, truth, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

CALLS = 7
PROGRAM = f"""
import ctypes as C, os, sys, time
libc = C.CDLL(None, use_errno=True)
libc.mmap.restype = C.c_void_p
libc.mmap.argtypes = [C.c_void_p, C.c_size_t, C.c_int, C.c_int, C.c_int, C.c_long]
libc.mprotect.argtypes = [C.c_void_p, C.c_size_t, C.c_int]
def code(path):
    for line in open("/proc/self/maps"):
        if line.endswith(path + "\\n") and " r-xp " in line:
            first, last = (int(x, 16) for x in line.split()[0].split("-"))
            return first, last - first, int(line.split()[2], 16)
shared, writable, inside, go = sys.argv[1:]
fd = os.memfd_create("libcudart.so.13")
os.write(fd, open(inside, "rb").read())
loaded = [C.CDLL(x) for x in (shared, writable, "/proc/self/fd/%d" % fd)]
first, length, offset = code(shared)
file = os.open(shared, os.O_RDONLY)
assert libc.mmap(first, length, 5, 0x11, file, offset) == first  # read and execute, shared, fixed
first, length, _ = code(writable)
assert libc.mprotect(first, length, 7) == 0
print("at loaded", flush=True)
while not os.path.exists(go): time.sleep(0.01)
for library in loaded:
    for _ in range({CALLS}):
        assert library.cudaFree(None) == 0
"""


def test_shared_and_writable_code_is_said_to_be_unobserved(doubles: Path, tmp_path: Path) -> None:
    """The kernel takes the probes of the file, places none in these mappings, and says nothing."""
    paths = [tmp_path / name / "libcudart.so.13" for name in ("shared", "writable", "inside")]
    for path in paths:
        path.parent.mkdir()
        shutil.copy(doubles / "libcudart.so.13", path)
    process = start(sys.executable, "-c", PROGRAM, *paths, tmp_path / "go")
    wait_for_line(process, "at loaded")
    with recording() as r:
        r.step()
        (tmp_path / "go").touch()
        r.run(process)
        r.finish()
    told = {row["path"]: row for row in r.of("libraries", pid=process.pid)}
    gaps = {row["reason"]: row["duration_ns"] for row in r.of("gaps", pid=process.pid)}
    for path, why in zip(paths[:2], ("mapped shared", "writable when it was probed"), strict=True):
        assert (told[str(path)]["op"], told[str(path)]["probes"]) == ("not observable", 0)
        assert why in told[str(path)]["reason"]
        (end,) = [end for reason, end in gaps.items() if reason.startswith(f"{path} is not observable: its code")]
        assert end is None
    in_memory = told["/memfd:libcudart.so.13 (deleted)"]
    assert in_memory["op"] == "attached"
    assert len(r.of("cuda_calls", pid=process.pid, op="cudaFree")) == CALLS
    recorded = [p for p in r.rows["probes"] if p["hits"] and p["op"] == "cudaFree"]
    assert [p["path"] for p in recorded if p["path"] in told] == [in_memory["path"]]


def test_other_content_in_a_probed_file(doubles: Path, tmp_path: Path) -> None:
    """Probes that stayed would lie in the midst of instructions, and end every process that maps the file."""
    library = Path(shutil.copy(doubles / "libcudart.so.13", tmp_path))
    (tmp_path / "other").mkdir()
    other = build("cudart", tmp_path / "other", flags=["-O0"])
    with recording() as r:
        r.capture.prepare([str(library)])
        library.write_bytes(other.read_bytes())
        assert select.select(r.capture.wake_descriptors, [], [], DEADLINE_S)[0], "the attacher is woken"
        r.capture.look_at_once()
        process = start(
            doubles / "calls", "--cudart", library, "--out", tmp_path / "truth", "--pause-file", tmp_path / "go"
        )  # fmt: skip
        wait_for_line(process, "at start")
        r.step()
        (tmp_path / "go").touch()
        r.run(process)
        r.finish()
    calls = r.of("cuda_calls", pid=process.pid, parent_ns=None)
    assert [c["op"] for c in calls] == [c["op"] for c in truth(tmp_path / "truth")]
    (mine,) = r.of("libraries", pid=process.pid)
    assert mine["op"] == "attached"
    ended = [p for p in r.rows["probes"] if p["path"] == str(library) and p["hits"] is not None]
    assert len({p["start_ns"] for p in ended}) == 2, "those of either content are told of"
    (gap,) = [g for g in r.rows["gaps"] if g["reason"].startswith(f"{library} was written to while it was probed")]
    assert (gap["table_name"], gap["pid"]) == ("cuda_calls", None)
