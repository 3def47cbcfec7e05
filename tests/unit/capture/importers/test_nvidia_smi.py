"""Logs of nvidia-smi --query-gpu: exact values, refusals kept as refusals, holes told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.importers import nvidia_smi
from gpuaudit.capture.importers.model import Request, Told
from gpuaudit.capture.importers.reading import HEAD_LINES

LOG = """\
timestamp, index, uuid, name, driver_version, pstate, utilization.gpu [%], memory.used [MiB], power.draw [W], \
enforced.power.limit [W], clocks.current.sm [MHz], clocks_throttle_reasons.active, temperature.memory, \
ecc.errors.corrected.aggregate.total, fan.speed [%]
2026/11/22 05:00:00.000, 0, GPU-aa, NVIDIA H100 80GB HBM3, 560.35.03, P0, 97 %, 71234 MiB, 653.41 W, 700.00 W, \
1755 MHz, 0x0000000000000004, 71, 12, [N/A]
2026/11/22 05:00:00.001, 1, GPU-bb, NVIDIA H100 80GB HBM3, 560.35.03, P8, 0 %, 0 MiB, [Unknown Error], 700.00 W, \
345 MHz, 0x0000000000000001, [N/A], 0, [N/A]
2026/11/22 05:00:01.000, 0, GPU-aa, NVIDIA H100 80GB HBM3, 560.35.03, P0, 96 %, 71234 MiB, 650.00 W, 700.00 W, \
1755 MHz, 0x0000000000000004, 71, 12, [N/A]
2026/11/22 05:00:01.001, 1, GPU-bb, NVIDIA H100 80GB HBM3, 560.35.03, P8, 0 %, 0 MiB, 70.1 W, 700.00 W, \
345 MHz, 0x0000000000000001, [N/A], 0, [N/A]
"""
FIVE_NS = 1_795_323_600_000_000_000
"""2026-11-22 05:00:00 UTC."""


rows_of_nvml = ("nvml_samples", "nvml_health", "gpm_samples")


class Rows:
    """A sink that keeps what it is given, checked against the tables."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Mapping[str, object]]] = {}
        self.gaps: list[tuple[str, int, int | None]] = []

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        from_records(TABLES[table], records)
        self.rows.setdefault(table, []).extend(dict(r) for r in records)

    def gap(
        self, source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None,
        pid: int | None = None,
    ) -> None:  # fmt: skip
        assert (source, pid) == ("nvml", None)
        assert table in rows_of_nvml
        self.gaps.append((reason, start_ns, end_ns))


def read(text: str, request: Request | None = None) -> tuple[Rows, Told]:
    rows, told = Rows(), Told("nvml")
    nvidia_smi.read("smi.csv", enumerate(text.splitlines(), 1), rows, request or Request(), told)
    return rows, told


def test_values_are_exact_and_in_our_units() -> None:
    rows, told = read(LOG)
    first, *_ = [r for r in rows.rows["nvml_samples"] if r["gpu_index"] == 0]
    assert first["start_ns"] == FIVE_NS
    assert first["duration_ns"] == 1_000_000_000
    assert first["gpu_utilization_percent"] == 97
    assert first["memory_used_bytes"] == 71234 << 20
    assert first["power_mw"] == 653_410
    assert first["event_reasons"] == 4
    assert first["performance_state"] == 0
    assert told.rows == {"nvml_samples": 4, "nvml_health": 4}
    assert [r["ecc_corrected_aggregate"] for r in rows.rows["nvml_health"] if r["gpu_index"] == 0] == [12, 12]


def test_what_was_refused_is_null_with_its_code() -> None:
    rows, _ = read(LOG)
    second = next(r for r in rows.rows["nvml_samples"] if r["gpu_index"] == 1)
    assert "power_mw" not in second
    assert second["unavailable"] == "power_mw=999,temperature_memory_c=3,compute_processes=not_in_the_log"


def test_the_last_sample_stands_for_no_known_time() -> None:
    rows, _ = read(LOG)
    assert [r["duration_ns"] for r in rows.rows["nvml_samples"]][-2:] == [None, None]


def test_what_is_not_carried_is_named() -> None:
    _, told = read(LOG)
    assert told.not_carried == ["column fan.speed"]


def test_local_time_is_put_to_utc_and_the_assumption_is_told() -> None:
    rows, told = read(LOG, Request(utc_offset_ns=2 * 3_600_000_000_000))
    assert rows.rows["nvml_samples"][0]["start_ns"] == FIVE_NS - 7_200_000_000_000
    assert any("+120 minutes" in a for a in told.assumptions)


def test_a_hole_is_a_gap_and_not_covered() -> None:
    head, *rest = LOG.splitlines()
    zero = [x for x in rest if ", 0, GPU-aa" in x]
    later = [zero[0].replace("05:00:00", f"05:00:0{s}") for s in (2, 3)]
    rows, _ = read("\n".join([head, *zero, *later, zero[0].replace("05:00:00", "05:10:00")]))
    samples = rows.rows["nvml_samples"]
    assert [r["duration_ns"] for r in samples] == [10**9] * 4 + [None]
    assert rows.gaps == [("the log has no sample of GPU 0", FIVE_NS + 4 * 10**9, FIVE_NS + 600 * 10**9)] * 2


@pytest.mark.parametrize(
    ("cell", "reason"),
    [("97 W", "utilization.gpu"), ("-3 %", "utilization.gpu"), ("nan", "utilization.gpu"), ("9" * 40, "utilization")],
)
def test_a_cell_that_is_no_value_loses_its_line_and_says_so(cell: str, reason: str) -> None:
    rows, told = read(LOG.replace("97 %", cell))
    assert told.unreadable == 1
    assert told.examples[0].startswith("line 2")
    assert reason in told.examples[0]
    assert len(rows.rows["nvml_samples"]) == 3


def test_a_line_that_is_not_of_the_log_is_counted() -> None:
    _, told = read(LOG + "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.\n")
    assert told.unreadable == 1


def test_times_that_run_back_are_refused() -> None:
    rows, told = read(LOG + "\n".join(LOG.splitlines()[1:2]))
    assert told.unreadable == 1
    assert len(rows.rows["nvml_samples"]) == 4


def test_without_index_or_uuid_one_gpu_is_assumed_and_said() -> None:
    rows, told = read("timestamp, utilization.gpu [%]\n2026/11/22 05:00:00.000, 1 %\n2026/11/22 05:00:01.000, 2 %\n")
    assert any("neither index nor UUID" in a for a in told.assumptions)
    assert [r["gpu_uuid"] for r in rows.rows["nvml_samples"]] == ["index 0, UUID not recorded"] * 2


def test_nounits_and_joined_logs_are_read() -> None:
    text = "timestamp, index, power.draw\n2026/11/22 05:00:00.000, 0, 10.5\n"
    rows, told = read(text + text.replace("05:00:00", "05:00:01"))
    assert [r["power_mw"] for r in rows.rows["nvml_samples"]] == [10_500, 10_500]
    assert told.unreadable == 0


def test_a_joined_log_with_other_columns_is_read_by_its_own_header() -> None:
    """Without units a value under the wrong name would look right."""
    one = "timestamp, index, utilization.gpu, temperature.gpu\n2026/11/22 05:00:00.000, 0, 10, 60\n"
    two = "timestamp, index, temperature.gpu, utilization.gpu, fan.speed\n2026/11/22 05:00:01.000, 0, 61, 11, 5\n"
    rows, told = read(one + two)
    assert [(r["gpu_utilization_percent"], r["temperature_c"]) for r in rows.rows["nvml_samples"]] == [
        (10, 60), (11, 61),
    ]  # fmt: skip
    assert (told.unreadable, told.not_carried) == (0, ["column fan.speed"])


def test_a_joined_log_of_another_host_keeps_its_own_gpu() -> None:
    """Index 0 of two hosts is two GPUs, in the rows and in leaf 0."""
    text = "timestamp, index, uuid, power.draw\n2026/11/22 05:00:00.000, 0, GPU-aa, 10\n"
    other = text.replace("GPU-aa", "GPU-bb")
    rows, told = read(text + text.replace("05:00:00", "05:00:01") + other + other.replace("05:00:00", "05:00:01"))
    assert sorted((r["gpu_uuid"], r["start_ns"]) for r in rows.rows["nvml_samples"]) == [
        (u, FIVE_NS + s * 10**9) for u in ("GPU-aa", "GPU-bb") for s in (0, 1)
    ]
    assert told.unreadable == 0
    assert [g["uuid"] for g in nvidia_smi.gpus((text + other).splitlines())] == ["GPU-aa", "GPU-bb"]


def test_gpus_past_the_head_and_past_any_host_are_told() -> None:
    """Leaf 0 is written before the log is read; a log of a thousand GPUs is no log, and is not held in memory."""
    lines = [f"2026/11/22 05:00:00.000, GPU-{i}, 1" for i in range(300)]
    rows, told = read("\n".join(["timestamp, uuid, power.draw", *lines]))
    assert len(rows.rows["nvml_samples"]) == 256
    assert (told.unreadable, told.examples[0]) == (44, "line 258: it is of one more GPU than 256")
    assert any(f"first after line {HEAD_LINES}" in a for a in told.assumptions)
    assert not any("first after line" in a for a in read(LOG)[1].assumptions)


def test_the_end_of_summer_time_is_told() -> None:
    """02:59 is followed by 02:00: the hour that comes twice is left out, and its consequence stands in the bundle."""
    hours = ["02:00", "02:30", "02:59", "02:00", "02:30", "03:00"]
    lines = [f"2026/10/25 {h}:00.000, 0, 10" for h in hours]
    rows, told = read("\n".join(["timestamp, index, power.draw", *lines]))
    assert len(rows.rows["nvml_samples"]) == 4
    assert told.unreadable == 2
    (said,) = (a for a in told.assumptions if "run back" in a)
    assert said.startswith("Times run back at line 5: ")
    assert not any("run back" in a for a in read(LOG)[1].assumptions)


@pytest.mark.parametrize(
    ("cell", "refused"),
    [("101 %", "at most 100 %"), ("999999999 %", "at most 100 %")],
)
def test_a_share_above_the_whole_is_no_share(cell: str, refused: str) -> None:
    _, told = read(LOG.replace("97 %", cell))
    assert told.unreadable == 1
    assert refused in told.examples[0]


def test_a_number_past_its_column_takes_no_other_row_along() -> None:
    rows, told = read(LOG.replace("71234 MiB", "999999999999999999 MiB", 1))
    assert len(rows.rows["nvml_samples"]) == 3
    assert "memory.used: got" in told.examples[0]


def test_gpus_of_the_head_are_for_leaf_0() -> None:
    assert nvidia_smi.gpus(LOG.splitlines()) == [
        {"index": 0, "uuid": "GPU-aa", "name": "NVIDIA H100 80GB HBM3", "driver": "560.35.03"},
        {"index": 1, "uuid": "GPU-bb", "name": "NVIDIA H100 80GB HBM3", "driver": "560.35.03"},
    ]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "timestamp\n2026/11/22 05:00:00.000\n"])
def test_another_file_is_not_recognised(text: str) -> None:
    assert not nvidia_smi.FORMAT.recognises(text.splitlines())
    with pytest.raises(InputUnusable):
        read(text)
