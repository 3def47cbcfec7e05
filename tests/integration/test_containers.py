"""Containers of one image: one file, which has another number under each overlay. Its calls are recorded once."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.recording import Recording, Row, recording, start, truth, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

CONTAINERS = 3


@pytest.fixture
def roots(doubles: Path, tmp_path: Path) -> Iterator[list[Path]]:
    """What each container sees of the image: the same folder below an overlay of its own."""
    base = tmp_path / "base"
    base.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", base], check=True)  # what temporary files lie on may be no lower
    mounted = [base]
    try:
        image = base / "image"
        image.mkdir()
        shutil.copy(doubles / "libcudart.so.13", image)
        for i in range(CONTAINERS):
            upper, work, root = (base / f"{name}{i}" for name in ("upper", "work", "root"))
            for folder in (upper, work, root):
                folder.mkdir()
            options = f"lowerdir={image},upperdir={upper},workdir={work}"
            command = ["mount", "-t", "overlay", "none", "-o", options, str(root)]
            if subprocess.run(command, check=False, capture_output=True).returncode:
                pytest.skip("no overlay can be mounted here")
            mounted.append(root)
        yield mounted[1:]
    finally:
        for folder in reversed(mounted):
            subprocess.run(["umount", "--lazy", folder], check=True)


def begin(doubles: Path, folder: Path, root: Path) -> subprocess.Popen[str]:
    """A process of this container, which has loaded the library and made no call yet."""
    folder.mkdir()
    command = (doubles / "calls", "--cudart", root / "libcudart.so.13", "--out", folder / "truth")
    process = start(*command, "--pause-file", folder / "go")
    wait_for_line(process, "at start")
    return process


def test_each_call_is_recorded_once(doubles: Path, roots: list[Path], tmp_path: Path) -> None:
    """Also after one set of probes has been taken to stand for the others, and for a container that comes later."""
    assert len({root.joinpath("libcudart.so.13").stat().st_dev for root in roots}) == CONTAINERS
    folders = [tmp_path / str(i) for i in range(CONTAINERS)]
    with recording() as r:
        first, second = (begin(doubles, folders[i], roots[i]) for i in range(2))
        r.step()
        for process, folder in zip((first, second), folders, strict=False):
            (folder / "go").touch()
            r.run(process)
            r.capture.tick()
        third = begin(doubles, folders[2], roots[2])
        r.step()
        (folders[2] / "go").touch()
        r.run(third)
        r.capture.tick()
        merged = {p["path"] for p in ended(r, roots)}
        r.finish()
    for process, folder in zip((first, second, third), folders, strict=True):
        made, rows = truth(folder / "truth"), r.of("cuda_calls", pid=process.pid, parent_ns=None)
        assert [(row["op"], row["tid"], row["return_code"]) for row in rows] == [
            (call["op"], call["tid"], call["return_code"]) for call in made
        ]
        assert None not in {row["duration_ns"] for row in rows}
    probes = ended(r, roots)
    if {p["mechanism"] for p in probes} == {"uprobe_multi"}:
        assert len(merged) == CONTAINERS - 1
    assert sum(p["unmatched"] for p in probes) == 0
    assert sum(p["hits"] for p in probes) == len(r.rows["cuda_calls"])


def ended(r: Recording, roots: list[Path]) -> list[Row]:
    """The totals of every probe on the library: one row of each, also of those that were detached early."""
    rows = [p for p in r.rows["probes"] if p["hits"] is not None and Path(p["path"]).parent in roots]
    assert len({p["probe"] for p in rows}) == len(rows)
    return rows
