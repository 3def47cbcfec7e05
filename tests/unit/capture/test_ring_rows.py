"""From ring records to columns: validity, names of ops, names of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpuaudit.bundle.columns import check_rows
from gpuaudit.bundle.errors import AuditError, HostUnfit
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.probes import OP_IDS
from gpuaudit.capture.ring import LossCounters, RingReader, to_rows


def records(table: str, count: int) -> np.ndarray:
    return np.zeros(count, TABLES[table].record_dtype())


def bit(table: str, column: str) -> int:
    return 1 << [c.name for c in TABLES[table].nullable_in_ring].index(column)


def test_validity_bits_become_nulls() -> None:
    r = records("cuda_calls", 3)
    r["op"] = [OP_IDS["cudaMalloc"], OP_IDS["cudaFree"], OP_IDS["cudaMalloc"]]
    r["size_bytes"] = [10, 20, 30]
    r["valid_mask"] = [bit("cuda_calls", "size_bytes"), 0, bit("cuda_calls", "size_bytes")]
    rows = to_rows("cuda_calls", r)
    assert check_rows(TABLES["cuda_calls"], rows) == 3
    assert rows["op"].to_list() == ["cudaMalloc", "cudaFree", "cudaMalloc"]
    assert rows["size_bytes"].to_list() == [10, None, 30]
    assert rows["size_bytes"].values.tolist() == [10, 0, 30]  # a null holds 0
    assert rows["duration_ns"].to_list() == [None, None, None]


def test_every_bit_belongs_to_its_own_column() -> None:
    for table in ("cuda_calls", "nccl_calls", "nccl_comms", "off_cpu"):
        for column in TABLES[table].nullable_in_ring:
            r = records(table, 1)
            r["valid_mask"] = bit(table, column.name)
            valid = {n for n, c in to_rows(table, r).items() if not c.is_null(0)}
            nullable = {c.name for c in TABLES[table].nullable_in_ring}
            assert valid & nullable == {column.name}


def test_thread_names() -> None:
    r = records("off_cpu", 5)
    # numpy drops trailing NULs, and a name may be anything the workload chose
    r["comm"] = [b"plain", b"cut\0rest", b"cut\0other", b"\xff\xfe", "naïve".encode()]
    r["waker_comm"] = b"who"
    r["valid_mask"][1] = bit("off_cpu", "waker_comm")
    rows = to_rows("off_cpu", r)
    assert rows["comm"].to_list() == ["plain", "cut", "cut", "\\xff\\xfe", "naïve"]
    assert rows["waker_comm"].to_list() == [None, "who", None, None, None]
    assert check_rows(TABLES["off_cpu"], rows) == 5


def test_runnable_is_preempted_and_everything_else_blocked() -> None:
    r = records("off_cpu", 4)
    r["prev_state"] = [0, 1, 2, 8193]
    assert to_rows("off_cpu", r)["op"].to_list() == ["preempted", "blocked", "blocked", "blocked"]


def test_no_records_are_no_rows() -> None:
    for table in ("cuda_calls", "off_cpu"):
        assert check_rows(TABLES[table], to_rows(table, records(table, 0))) == 0


def test_an_unknown_op_is_refused() -> None:
    r = records("cuda_calls", 1)
    r["op"] = 60_000
    with pytest.raises(AuditError, match="names op 60000"):
        to_rows("cuda_calls", r)


def test_descriptors_that_are_no_bpf_maps() -> None:
    with Path(__file__).open("rb") as f:
        with pytest.raises(HostUnfit, match="not a BPF map"):
            LossCounters(f.fileno())
        with pytest.raises(HostUnfit, match="cannot be mapped"):
            RingReader(f.fileno(), 4096, "cuda_calls")
