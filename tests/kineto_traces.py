"""Traces of the PyTorch profiler: the recorded ones, small ones made by hand, and both imported into a store."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.store import Store
from gpuaudit.bundle.reader import Bundle
from gpuaudit.capture.importers.run import ImportOptions, ImportResult, run_import

RECORDED = Path(__file__).parent / "data" / "kineto"
NAMES = tuple(sorted(p.name.removesuffix(".json.gz") for p in RECORDED.glob("*.json.gz")))
GPU_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
PID, BASE_US = 77, 1_700_000_000_000_000

Event = dict[str, Any]


def recorded(name: str) -> Path:
    """The file of a recorded trace."""
    return RECORDED / f"{name}.json.gz"


def load(name: str) -> dict[str, Any]:
    """A recorded trace as Python values; fractions exact."""
    with gzip.open(recorded(name)) as f:
        trace: dict[str, Any] = json.load(f, parse_float=Decimal)
    return trace


def imported(files: Sequence[Path], out: Path) -> tuple[Store, ImportResult]:
    """The files in one bundle, and that as a store."""
    result = run_import(ImportOptions(tuple(files), out))
    with Bundle.open(out) as bundle:
        return Store.from_bundle(bundle), result


class RecordedTraces:
    """Recorded traces, each imported once, when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, tuple[Store, ImportResult]] = {}

    def of(self, *names: str) -> tuple[Store, ImportResult]:
        """The traces in one bundle: as a store, and what the import said."""
        key = "+".join(names)
        if key not in self._made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GPU_AUDIT_KEYS", str(self._folder / "keys"))
                self._made[key] = imported([recorded(n) for n in names], self._folder / f"{key}.db")
        return self._made[key]


def written(path: Path, events: Sequence[Event], **members: Any) -> Path:
    """A trace made by hand."""
    path.write_text(json.dumps({"schemaVersion": 1, **members, "traceEvents": list(events)}), "utf-8")
    return path


def operator(at: Any = BASE_US, dur: Any = 10, **more: Any) -> Event:
    """An operator of the host."""
    return {"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": PID, "tid": PID, "ts": at, "dur": dur,
            "args": {"External id": 5}, **more}  # fmt: skip


def call(correlation: int, at: Any = BASE_US, dur: Any = 10, **more: Any) -> Event:
    """A launch."""
    return {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": PID, "tid": PID, "ts": at, "dur": dur,
            "args": {"correlation": correlation}, **more}  # fmt: skip


def kernel(correlation: int | None, at: Any = BASE_US, dur: Any = 10, name: str = "gemm", **more: Any) -> Event:
    """A kernel on device 0, stream 7."""
    args: dict[str, Any] = {"device": 0, "context": 1, "stream": 7, "grid": [2, 1, 1], "block": [64, 1, 1]}
    if correlation is not None:
        args["correlation"] = correlation
    return {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": at, "dur": dur, "args": args, **more}
