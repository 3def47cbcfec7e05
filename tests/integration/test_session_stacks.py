"""Whole captures: a slow call in the sealed evidence leads to the line of the user's program that waited."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpuaudit.bundle.reader import Bundle
from tests.integration.sessions import capture, environment, rows

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

TRAIN = """
import ctypes as C, sys

class Dim(C.Structure):
    _fields_ = [(n, C.c_uint) for n in "xyz"]

cuda = C.CDLL(sys.argv[1])
cuda.cudaLaunchKernel.argtypes = [C.c_void_p, Dim, Dim, C.c_void_p, C.c_size_t, C.c_void_p]

class Model:
    def forward(self):
        cuda.cudaLaunchKernel(1, Dim(1, 1, 1), Dim(1, 1, 1), None, 0, None)
        return cuda.cudaDeviceSynchronize()

for _ in range(20):
    Model().forward()
"""
LINES = [(line.strip(), n) for n, line in enumerate(TRAIN.splitlines(), 1)]
WAITS = next(n for text, n in LINES if "cudaDeviceSynchronize" in text)
CALLS = next(n for text, n in LINES if text.endswith(".forward()"))


def program(folder: Path) -> Path:
    path = folder / "train.py"
    path.write_text(TRAIN, "ascii")
    return path


def test_a_slow_call_leads_to_its_line(doubles: Path, tmp_path: Path) -> None:
    out, train = tmp_path / "a.db", program(tmp_path)
    options = ["--source", "cuda", "--source", "stacks", "--stack-threshold", "20"]
    env = environment(tmp_path / "keys", DOUBLE_CUDA_KERNEL_US="50000")
    command: list[str | Path] = [sys.executable, train, doubles / "libcudart.so.13"]
    done = capture([*options, "--out", out, "--", *command], env)
    assert done.returncode == 0, done.stderr
    frames = rows(out, "stack_frames")
    waits = [c for c in rows(out, "cuda_calls") if c["op"] == "cudaDeviceSynchronize"]
    assert waits  # the runtime is mapped while the program runs: its first calls may come before the probes
    told = {c["python_stack"] for c in waits if c["duration_ns"] >= 20_000_000}
    assert len(told) == 1
    assert [(f["path"], f["line"], f["symbol"].rpartition(".")[2]) for f in frames if f["stack"] in told] == [
        (str(train), WAITS, "forward"), (str(train), CALLS, "<module>"),
    ]  # fmt: skip
    named = {c[kind] for c in rows(out, "cuda_calls") for kind in ("native_stack", "python_stack")} - {None}
    assert named == {f["stack"] for f in frames}
    assert not [g for g in rows(out, "gaps") if g["source"] == "stacks"]
    with Bundle.open(out) as bundle:
        asked = bundle.open_body["options"]
    assert (asked["stack_threshold_ms"], asked["stack_sample"]) == ("20.0", 0)
    assert "stacks" in asked["sources"]
