"""Calls inside calls: each return is paired with its own entry, also when a function calls itself or never returns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.doubles.build import build
from tests.integration.recording import recording, start

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory, doubles: Path) -> Path:
    return build("nested", tmp_path_factory.mktemp("nested"), flags=["-O0"])


def test_a_function_that_calls_itself(nested: Path) -> None:
    code = "import ctypes as C, sys; C.CDLL(sys.argv[1]).cudaFree(C.c_void_p(5))"
    with recording() as r:
        r.capture.prepare([str(nested)])
        process = start(sys.executable, "-c", code, nested)
        r.run(process)
        r.finish()
        (outer,) = r.of("cuda_calls", pid=process.pid, op="cudaFree")
        inner = r.of("cuda_calls", pid=process.pid, op="cudaMalloc")
        assert [row["size_bytes"] for row in inner] == [5, 4, 3, 2, 1, 0]
        assert [row["return_code"] for row in inner] == [5, 4, 3, 2, 1, 0]
        assert [row["device_pointer"] for row in inner] == [None, None, None, None, None, 1]  # success is code 0
        for outside, inside in zip([outer, *inner], inner, strict=False):
            assert outside["start_ns"] < inside["start_ns"]
            assert ends(inside) < ends(outside)
        totals = [p for p in r.of("probes", path=str(nested)) if p["hits"] is not None]
        assert {p["op"]: (p["hits"], p["unmatched"]) for p in totals if p["hits"]} == {
            "cudaMalloc": (6, 0),
            "cudaFree": (1, 0),
        }


def ends(row: dict[str, int]) -> int:
    return row["start_ns"] + row["duration_ns"]


def test_a_call_left_by_longjmp(nested: Path) -> None:
    """Four calls never return. Each is a row without a duration, and is counted as unmatched or still open."""
    code = "import ctypes as C, sys; assert C.CDLL(sys.argv[1]).leave_by_longjmp(4) == 4"
    with recording() as r:
        r.capture.prepare([str(nested)])
        process = start(sys.executable, "-c", code, nested)
        r.run(process)
        r.finish()
        calls = r.of("cuda_calls", pid=process.pid, op="cudaMemcpy")
        assert [(c["duration_ns"], c["return_code"], c["size_bytes"]) for c in calls] == [(None, None, 0)] * 4
        (total,) = [p for p in r.of("probes", path=str(nested), op="cudaMemcpy") if p["hits"] is not None]
        assert (total["hits"], total["unmatched"]) == (4, 3)  # the fourth was still open at the end
