"""The evidence that is measured with is real evidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench import day, evidence
from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.verify import verify
from gpuaudit.capture.probes import OP_IDS, PROBE_TABLE
from gpuaudit.capture.ring import to_rows


def test_a_call_fills_the_columns_that_its_probe_does() -> None:
    for op, columns in evidence.VALUES.items():
        assert set(columns) == set(PROBE_TABLE[OP_IDS[op]].places)


def test_records_are_like_those_of_a_ring() -> None:
    got = evidence.records(20_000, seed=3)
    end = got["start_ns"].astype(np.int64) + got["duration_ns"].astype(np.int64)
    assert np.all(np.diff(end) >= 0)
    for cpu in np.unique(got["cpu"]):
        assert got["seq"][got["cpu"] == cpu].tolist() == list(range((got["cpu"] == cpu).sum()))
    rows = to_rows("cuda_calls", got)
    launch = rows["op"].values == (rows["op"].dictionary or ()).index("cudaLaunchKernel")
    assert 0.8 < launch.mean() < 0.84
    assert rows["grid_x"].valid is not None
    assert np.array_equal(rows["grid_x"].valid, launch)
    assert rows["duration_ns"].valid is None


def test_a_seed_gives_the_same_records_and_another_gives_others() -> None:
    first = evidence.records(1000, seed=1)
    assert first.tobytes() == evidence.records(1000, seed=1).tobytes()
    assert first.tobytes() != evidence.records(1000, seed=2).tobytes()


def test_batches_run_on() -> None:
    parts = list(evidence.batches(2_500, 1_000, seed=1))
    assert [len(p) for p in parts] == [1000, 1000, 500]
    end = np.concatenate([p["start_ns"] + p["duration_ns"] for p in parts]).astype(np.int64)
    assert np.all(np.diff(end) >= 0)


def test_the_bundle_verifies(tmp_path: Path) -> None:
    path = tmp_path / "bundle.db"
    signer = evidence.write_bundle(path, 5_000, 2_000)
    found = verify(path, trust=[signer.identity])
    assert found.status == "SEALED"
    with Bundle.open(path) as bundle:
        counts = [h.rows for h in bundle.headers if h.table == TABLES["cuda_calls"].name]
    assert counts == [2000, 2000, 1000]


def test_a_day_has_every_poll_of_eight_gpus_and_four_engines(tmp_path: Path) -> None:
    """450 s: the recorded loads once, and the beginning of the second time."""
    path = tmp_path / "day.db"
    signer, rows = day.write_day(path, 450)
    assert (rows["nvml_samples"], rows["engine_scrapes"], rows["engines"]) == (450 * 4 * 8, 450 * 4 * 4, 4)
    assert day.read_loop().polls < 450 * 4
    assert verify(path, trust=[signer.identity]).status == "SEALED"
