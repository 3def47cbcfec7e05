"""ioctls on chosen devices, against what a program says of its own: each one, its request, return code and time."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.bundle.reader import Bundle
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.system_calls import parse_device
from tests.doubles.build import build
from tests.integration.recording import Recording, Row, recording, start, truth, wait_for_line
from tests.integration.sessions import capture, environment, rows

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

SUCCEEDS, UNKNOWN = 0x80045200, 0xC0C8527F
"""The two requests of the workload: reads 4 bytes, number 0; reads and writes 200 bytes, number 0x7f; type R."""

EINVAL, ENOTTY = 22, 25


@dataclass
class Captured:
    """One capture of the workload, and what it says of itself."""

    recording: Recording
    program: Path
    process: subprocess.Popen[str]
    said: dict[str, Any]
    truth: list[Row]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    """It maps no library that is probed: the boundary of the driver is watched for every process."""
    folder = tmp_path_factory.mktemp("ioctls")
    program, out = build("ioctls", folder), folder / "truth"
    process = start(program, "--out", out, "--threads", "3", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    wait_for_line(process, "at start")
    devices = (parse_device("1:R"), parse_device("4:0x56"))
    try:
        with recording(Selection(sources=frozenset({"ioctl"})), ioctl_devices=devices) as r:
            process.stdin.write("\n")
            process.stdin.flush()
            said = json.loads(process.stdout.readline())
            r.finish()
            yield Captured(r, program, process, said, truth(out))
    finally:
        process.kill()
        process.communicate()


def test_every_ioctl_on_the_device_is_a_row(captured: Captured) -> None:
    """In order per thread: request, its parts, device, return code, and no more time than the caller waited."""
    tids = {t["tid"] for t in captured.truth}
    assert len(tids) == 3
    for tid in tids:
        told = [t for t in captured.truth if t["tid"] == tid]
        found = captured.recording.of("ioctls", tid=tid)
        assert [(r["request"], r["major"], r["minor"], r["return_code"]) for r in found] == [
            (t["request"], t["major"], t["minor"], t["returned"]) for t in told
        ]
        assert all(0 < r["duration_ns"] <= t["took_ns"] for r, t in zip(found, told, strict=True))
        assert {r["pid"] for r in found} == {captured.process.pid}


def test_what_the_request_says_is_taken_apart(captured: Captured) -> None:
    """Number, type and size as <asm-generic/ioctl.h> packs them; failures keep the kernel's own number."""
    found = captured.recording.of("ioctls", pid=captured.process.pid, type=ord("R"))
    kinds = {(r["request"], r["number"], r["size_bytes"], r["minor"], r["return_code"]) for r in found}
    random, null = (os.minor(Path(path).stat().st_rdev) for path in ("/dev/random", "/dev/null"))
    assert kinds == {
        (SUCCEEDS, 0, 4, random, 0), (UNKNOWN, 0x7F, 200, random, -EINVAL), (SUCCEEDS, 0, 4, null, -ENOTTY),
    }  # fmt: skip


def test_other_devices_and_types_are_left_out(captured: Captured) -> None:
    """The workload asks terminals, files, pipes and closed descriptors the same, and the device with another type."""
    found = captured.recording.of("ioctls", pid=captured.process.pid)
    assert len([r for r in found if r["duration_ns"] is not None]) == len(captured.truth)
    assert {(r["major"], r["type"]) for r in found} <= {(1, ord("R")), (4, 0x56)}
    assert captured.recording.lost() == 0


def test_from_the_command_line_to_the_sealed_bundle(captured: Captured, tmp_path: Path) -> None:
    """The device is named by an option, which the bundle keeps; the command's own ioctls are in it."""
    out, told = tmp_path / "a.db", tmp_path / "truth"
    arguments: list[str | Path] = ["--source", "ioctl", "--ioctl-device", "1:R", "--out", out, "--", captured.program]
    arguments += ["--out", told]
    done = capture(arguments, environment(tmp_path / "keys"), stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    with Bundle.open(out) as bundle:
        assert bundle.open_body["options"]["ioctl_devices"] == ["1:R"]
    said = [(t["tid"], t["request"], t["returned"]) for t in truth(told)]
    kept = [(r["tid"], r["request"], r["return_code"]) for r in rows(out, "ioctls")]
    assert sorted(kept) == sorted(said)


def test_an_ioctl_that_does_not_return_has_no_end(captured: Captured) -> None:
    """A thread that waits in the driver until the capture ends is a row without duration and return code."""
    tid = captured.said["waiting_tid"]
    if not tid and not Path("/dev/tty0").exists():
        pytest.skip("this host has no virtual terminals")
    (row,) = captured.recording.of("ioctls", tid=tid)
    assert (row["duration_ns"], row["return_code"]) == (None, None)
    assert (row["request"], row["number"], row["type"], row["size_bytes"], row["major"]) == (0x5607, 7, 0x56, 0, 4)
