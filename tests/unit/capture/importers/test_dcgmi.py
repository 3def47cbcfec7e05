"""Logs of dcgmi dmon: shares become percent, rounds get their times from the user, other entities are named."""

from __future__ import annotations

import pytest

from gpuaudit.bundle.errors import InputUnusable, UsageError
from gpuaudit.capture.importers import dcgmi
from gpuaudit.capture.importers.model import Request, Told
from tests.unit.capture.importers.test_nvidia_smi import FIVE_NS, Rows

LOG = """\
#Entity   GRACT        SMACT        DRAMA        POWER        FBUSD        XYZZY
ID                                               W
GPU 0     N/A          N/A          N/A          241.3        18342        1
GPU 1     0.500        0.250        0.125        239.8        18310        1
GPU 0     0.918        0.889        0.430        243.1        18355        1
GPU 1     0.911        0.880        0.421        240.0        18310        1
"""
REQUEST = Request(start_ns=FIVE_NS, interval_ns=1_000_000_000)


def read(text: str, request: Request = REQUEST) -> tuple[Rows, Told]:
    rows, told = Rows(), Told("nvml")
    dcgmi.read("dmon.log", enumerate(text.splitlines(), 1), rows, request, told)
    return rows, told


def test_shares_are_percent_and_rounds_have_times() -> None:
    rows, told = read(LOG)
    gpm = rows.rows["gpm_samples"]
    assert [(r["start_ns"], r["gpu_index"], r.get("sm_activity_percent")) for r in gpm] == [
        (FIVE_NS, 0, None), (FIVE_NS, 1, 25.0), (FIVE_NS + 10**9, 0, 88.9), (FIVE_NS + 10**9, 1, 88.0),
    ]  # fmt: skip
    assert gpm[0]["unavailable"] == "graphics_percent=3,sm_activity_percent=3,dram_bandwidth_percent=3"
    samples = rows.rows["nvml_samples"]
    assert [(r["power_mw"], r["memory_used_bytes"]) for r in samples][:2] == [
        (241_300, 18342 << 20),
        (239_800, 18310 << 20),
    ]
    assert told.not_carried == ["field XYZZY"]
    assert told.unreadable == 0
    assert any("writes no times" in a for a in told.assumptions)


def test_without_a_start_the_user_is_asked() -> None:
    with pytest.raises(UsageError, match="--start"):
        read(LOG, Request())


def test_times_in_front_of_the_lines_are_used() -> None:
    stamped = "\n".join(f"2026-11-22 05:00:0{i} {line}" for i, line in enumerate(LOG.splitlines()))
    rows, _ = read(stamped, Request())
    assert rows.rows["gpm_samples"][0]["start_ns"] == FIVE_NS + 2 * 10**9


def test_a_new_header_changes_the_columns() -> None:
    rows, _ = read(LOG + "#Entity   GPUTL\nID\nGPU 0     55\n")
    assert [r["gpu_utilization_percent"] for r in rows.rows["nvml_samples"] if "gpu_utilization_percent" in r] == [55]


def test_other_entities_and_broken_lines_are_told() -> None:
    _, told = read(LOG + "GPU-I 0   1 2 3 4 5 6\nGPU 0 1 2\nlost connection\n")
    assert told.not_carried == ["field XYZZY", "rows of GPU-I entities"]
    assert told.unreadable == 2


def test_a_log_without_a_header_is_refused() -> None:
    with pytest.raises(InputUnusable, match="names the columns"):
        read("GPU 0 1 2 3\n")
    assert not dcgmi.FORMAT.recognises(["GPU 0 1 2 3"])
    assert dcgmi.gpus(LOG.splitlines()) == [
        {"index": i, "uuid": f"index {i}, UUID not recorded", "name": "not recorded", "driver": "not recorded"}
        for i in (0, 1)
    ]


@pytest.mark.parametrize(
    ("before", "after"), [("0.889", "1.889"), ("243.1", "243.1" + "0" * 13), ("18355", "9" * 18), ("18355", "-1")]
)
def test_a_value_that_is_none_loses_its_line_alone(before: str, after: str) -> None:
    rows, told = read(LOG.replace(before, after))
    assert told.unreadable == 1
    assert len(rows.rows["gpm_samples"]) == 3


@pytest.mark.parametrize(("start", "interval"), [(1 << 62, 1), (FIVE_NS, 0), (FIVE_NS, 1 << 62)])
def test_a_start_or_interval_that_is_none_is_refused(start: int, interval: int) -> None:
    with pytest.raises(UsageError, match="of the log would be at"):
        read(LOG, Request(start_ns=start, interval_ns=interval))
