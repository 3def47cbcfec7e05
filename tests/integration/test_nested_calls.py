"""Calls inside calls: each return is paired with its own entry, also when a function calls itself or never returns."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from gpuaudit.capture import libbpf
from gpuaudit.capture.attach import MECHANISMS, Mechanism
from tests.doubles.build import build
from tests.integration.recording import Row, recording, start

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
            assert parent(inside) == (outside["start_ns"], outside["op"])
        assert parent(outer) == (None, None)
        totals = [p for p in r.of("probes", path=str(nested)) if p["hits"] is not None]
        assert {p["op"]: (p["hits"], p["unmatched"]) for p in totals if p["hits"]} == {
            "cudaMalloc": (6, 0),
            "cudaFree": (1, 0),
        }


def ends(row: Row) -> int:
    return int(row["start_ns"] + row["duration_ns"])


def parent(row: Row) -> tuple[int | None, str | None]:
    return row["parent_ns"], row["parent_op"]


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


LAYERS = "import ctypes as C, sys; C.CDLL(sys.argv[1], mode=C.RTLD_GLOBAL); r = C.CDLL(sys.argv[2])\n"


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory, doubles: Path) -> tuple[Path, Path]:
    """A driver, and a runtime that calls it."""
    folder = tmp_path_factory.mktemp("layers")
    return build("driver", folder), build("layered", folder, flags=["-foptimize-sibling-calls"])


def run_layers(layers: tuple[Path, Path], code: str, mechanism: Mechanism | None = None) -> tuple[list[Row], int]:
    """The calls that the code made, and how many entries and returns had no partner."""
    with recording(mechanism=mechanism) as r:
        assert r.capture.prepare([str(p) for p in layers]) == []
        process = start(sys.executable, "-c", LAYERS + code, *layers)
        r.run(process)
        r.finish()
        assert r.lost() == 0
        calls = r.of("cuda_calls", pid=process.pid)
        threads = {struct.unpack("<I", key)[0] for key in libbpf.map_keys(r.map_fd("threads"), 4)}
        assert not threads & {c["tid"] for c in calls}  # nothing is kept of a thread that has ended
        ended = [p for p in r.rows["probes"] if p["hits"] is not None and p["path"] in map(str, layers)]
        assert sum(p["hits"] for p in ended) == len(calls)
        return calls, sum(p["unmatched"] for p in ended)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_runtime_call_and_the_driver_call_inside_it(layers: tuple[Path, Path], mechanism: Mechanism) -> None:
    """Linked also where the runtime's function ends by jumping into the driver's, so that both return at once."""
    code = (
        "p = C.c_void_p()\n"
        "for n in range(1, 6): assert r.cudaMalloc(C.byref(p), n) == 0\n"
        "assert r.cudaFree(C.c_void_p(13)) == 700 - 0\n"
    )
    calls, unmatched = run_layers(layers, code, mechanism)
    assert unmatched == 0
    assert [c["op"] for c in calls] == ["cudaMalloc", "cuMemAlloc_v2"] * 5 + ["cudaFree", "cuMemFree_v2"]
    for outer, inner in zip(calls[::2], calls[1::2], strict=True):
        assert parent(outer) == (None, None)
        assert parent(inner) == (outer["start_ns"], outer["op"])
        assert ends(inner) <= ends(outer)
        assert outer["return_code"] == inner["return_code"]
        assert (outer["size_bytes"], outer["device_pointer"]) == (inner["size_bytes"], inner["device_pointer"])
    assert [c["size_bytes"] for c in calls[:10:2]] == [1, 2, 3, 4, 5]
    assert len({c["probe"] for c in calls}) == 4  # each function of each file has its own number


def test_a_collective_and_the_driver_call_inside_it(layers: tuple[Path, Path], tmp_path: Path) -> None:
    """Two libraries, two tables, one link."""
    driver, nccl = layers[0], build("splits", tmp_path)
    code = "import ctypes as C, sys; C.CDLL(sys.argv[1], mode=C.RTLD_GLOBAL); n = C.CDLL(sys.argv[2])\n"
    code += "n.ncclGroupStart(); n.ncclAllReduce(None, None, C.c_size_t(9), 7, 0, None, None); n.ncclGroupEnd()"
    with recording() as r:
        assert r.capture.prepare([str(driver), str(nccl)]) == []
        process = start(sys.executable, "-c", code, driver, nccl)
        r.run(process)
        r.finish()
    (collective,) = r.of("nccl_calls", pid=process.pid)
    (inner,) = r.of("cuda_calls", pid=process.pid)
    assert (inner["op"], inner["device_pointer"]) == ("cuMemFree_v2", 9)
    assert parent(inner) == (collective["start_ns"], "ncclAllReduce")
    group = r.of("nccl_comms", pid=process.pid)
    assert [parent(row) for row in (collective, *group)] == [(None, None)] * 3  # a group is no call that is open


def test_a_call_that_was_left_is_nobodys_parent(layers: tuple[Path, Path]) -> None:
    """longjmp leaves cudaMemcpy; what is called later from deeper in the stack was not called by it."""
    left, malloc, inner = run_layers(layers, "r.leave_and_go_deeper()")[0]
    assert (left["op"], left["duration_ns"]) == ("cudaMemcpy", None)
    assert (malloc["op"], parent(malloc)) == ("cudaMalloc", (None, None))
    assert parent(inner) == (malloc["start_ns"], "cudaMalloc")


def test_calls_that_a_thread_and_a_program_end_in(layers: tuple[Path, Path]) -> None:
    """Their rows have no end; whoever gets the thread's number next has none of them for a parent."""
    calls, _ = run_layers(layers, "assert r.thread_that_ends_in_a_call() == 0; r.cudaFree(None)")
    assert [(c["op"], c["duration_ns"] is None) for c in calls] == [
        ("cudaDeviceSynchronize", True), ("cudaFree", False), ("cuMemFree_v2", False),
    ]  # fmt: skip
    assert parent(calls[1]) == (None, None)
    (call,), _ = run_layers(layers, "r.cudaStreamSynchronize(None)")
    assert (call["op"], call["duration_ns"], call["return_code"]) == ("cudaStreamSynchronize", None, None)


def test_a_call_on_another_stack_of_the_thread(layers: tuple[Path, Path]) -> None:
    """Both calls are whole. The one on the signal's stack is not lost, and neither is the one it interrupted.

    The signal's stack lies below the thread's: with one above it the kernel itself loses the interrupted call's return
    address, and ends the program with SIGILL, whoever placed the return probe.
    """
    calls, unmatched = run_layers(layers, "assert r.call_from_a_signal_handler() == 0")
    assert unmatched == 0
    assert [c["op"] for c in calls] == ["cudaHostAlloc", "cudaFree", "cuMemFree_v2"]
    assert all(c["return_code"] == 0 for c in calls)
    assert ends(calls[1]) < ends(calls[0])
