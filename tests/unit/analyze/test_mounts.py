"""The file system that a thread waited for: named where the requests' sectors and times leave one, else not."""

from __future__ import annotations

from typing import Any

import pytest

from gpuaudit.analyze.finding import Chain
from tests.rule_scenes.slow import AT, block, launches, off
from tests.scenes import MS, T0, S, Scene

SECTOR, SIZE = 5_000, 64 << 10
NAMED = "reads by python3 of the ext4 file system mounted at /data"
BEFORE = {"op": "unmounted", "start_ns": T0 + S}


def mount(scene: Scene, **more: Any) -> Scene:
    """The second part of disk 259:0, all of which is at /data."""
    return scene.add("mounts", **{
        "start_ns": T0, "op": "mounted", "mount_id": 32, "major": 259, "minor": 2, "type": "ext4", "root": "/",
        "path": "/data", "disk_major": 259, "disk_minor": 0, "first_sector": 2_048, "sectors": 100_000, **more,
    })  # fmt: skip


def reading(*mounts: dict[str, Any], **more: Any) -> Scene:
    """A slow launch in which the thread reads from disk 259:0."""
    scene = launches()
    block(scene, AT, 30 * MS, queue_ns=0, **{"sector": SECTOR, "size_bytes": SIZE, **more})
    off(scene, AT, 30 * MS, op="blocked", prev_state=2, syscall=17, runqueue_ns=0)
    for row in mounts:
        mount(scene, **row)
    return scene


def told(scene: Scene) -> Chain:
    (chain,) = scene.document().chains
    assert chain.detector == "blocking_io"
    assert chain.values["culprit"] == "disk 259:0"
    return chain


def test_the_file_system_and_where_it_is_mounted() -> None:
    scene = reading({})
    chain = told(scene)
    assert chain.values["requests"] == NAMED
    assert f"while {NAMED} on disk 259:0 were pending" in chain.links[0].cause
    assert (chain.subject["file_system"], chain.subject["mounted_at"]) == ("259:2", "/data")
    known = {e.id: e for e in scene.document().evidence}
    assert {known[e].table for e in chain.links[0].evidence} >= {"mounts", "block_io", "off_cpu"}
    (rows,) = [known[e].rows for e in chain.links[0].evidence if known[e].table == "mounts"]
    assert rows == 1


@pytest.mark.parametrize(
    "mounts",
    [
        [],
        [{"first_sector": 2_048, "sectors": 3_000}],
        [{"disk_minor": 16}],
        [{"disk_major": None, "disk_minor": None, "first_sector": None, "sectors": None}],
        [{"start_ns": AT + MS}],
        [{}, BEFORE],
        [{}, {"op": "unmounted", "start_ns": AT + 10 * MS}],
        [{}, {"major": 252, "minor": 0, "type": "xfs"}],
    ],
    ids=["none", "ends before", "another disk", "of several disks", "later", "gone", "unmounted meanwhile", "two"],
)
def test_it_is_not_guessed(mounts: list[dict[str, Any]]) -> None:
    chain = told(reading(*mounts))
    assert chain.values["requests"] == "reads by python3"
    assert "file_system" not in chain.subject


def test_requests_to_two_file_systems_are_of_none() -> None:
    scene = reading({}, {"minor": 3, "mount_id": 33, "path": "/other", "first_sector": 200_000})
    assert told(scene).values["requests"] == NAMED
    block(scene, AT, 20 * MS, queue_ns=0, sector=210_000, size_bytes=SIZE)
    assert told(scene).values["requests"] == "reads by python3"


def test_a_request_to_where_no_disk_reaches_is_of_none() -> None:
    scene = block(reading({}), AT, 20 * MS, queue_ns=0, sector=(1 << 63) - 1, size_bytes=SIZE)
    assert told(scene).values["requests"] == "reads by python3"


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"root": "/models", "path": "/models"}, "mounted at /data"),
        ({"path": "/again"}, "on 259:2, which is mounted in several places"),
    ],
)
def test_of_several_mounts_the_one_of_all_of_it(more: dict[str, Any], where: str) -> None:
    scene = reading({}, {"mount_id": 33, **more})
    assert str(told(scene).values["requests"]).endswith(f"of the ext4 file system {where}")


def test_mounted_again_elsewhere() -> None:
    scene = reading({"path": "/old"}, {**BEFORE, "path": "/old"}, {"start_ns": T0 + 2 * S})
    assert told(scene).values["requests"] == NAMED


def test_a_flush_is_of_the_whole_disk() -> None:
    scene = reading({}, op="write")
    block(scene, AT, 5 * MS, op="flush", queue_ns=0, sector=0, size_bytes=0)
    assert told(scene).values["requests"] == (
        "flush requests and writes by python3, those with sectors of the ext4 file system mounted at /data"
    )
