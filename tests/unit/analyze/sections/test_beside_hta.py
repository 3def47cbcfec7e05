"""HolisticTraceAnalysis (PyPI, by the profiler's makers) beside the section, on the same traces; for developers only.

Where both mean the same they give the same, to the microsecond. They differ in two things, and each is shown to be all
of the difference: HTA leaves out the last profiler step unless it is asked not to, and it rounds times with fractions
of a microsecond (starts up, ends down), which makes every kernel of such a trace shorter.

HTA brings some hundred packages: install it in an environment of its own and name its Python in GPU_AUDIT_HTA_PYTHON.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze import intervals
from gpuaudit.analyze.gpu_activity import read_devices
from gpuaudit.analyze.store import Store
from tests.kineto_traces import RecordedTraces, recorded

US = 1000
WHOLE = ("train128-rank0", "train128-rank1", "a100-world8-rank3")
FINE = ("a100-world2-rank0-collectives", "amd-mi250")


@pytest.fixture(scope="module")
def hta(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], dict[str, Any]]:
    """(trace, with its last step) → what HTA says, in µs."""
    python = os.environ.get("GPU_AUDIT_HTA_PYTHON") or (sys.executable if importlib.util.find_spec("hta") else None)
    if python is None:
        pytest.skip("HolisticTraceAnalysis is not installed here; name a Python that has it in GPU_AUDIT_HTA_PYTHON")
    child = Path(__file__).with_name("hta_child.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(child), *(str(recorded(n)) for n in WHOLE + FINE)],
        cwd=tmp_path_factory.mktemp("hta"), env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("HTA ")]
    return {(f["trace"], f["last_step"]): f for f in found}


def of_rows(store: Store, where: str, *, rounded: bool = False) -> dict[str, Fraction]:
    """HTA's four times in µs from our rows that meet a condition, with HTA's rounding where that is asked for."""
    rows = store.sql(
        "SELECT start_ns, duration_ns, op = 'kernel' AND NOT contains(name, 'nccl'), op = 'kernel' AND "
        f"contains(name, 'nccl') FROM gpu_activities WHERE {where}"
    )
    sets: list[list[tuple[int, int]]] = [[], [], []]
    for start, duration, compute, collective in rows:
        a, b = start, start + duration
        if rounded:
            a, b = math.ceil(Fraction(a, US)) * US, math.floor(Fraction(b, US)) * US
        for i, wanted in enumerate((True, compute, collective)):
            if wanted:
                sets[i].append((a, b))
    everything, compute, collective = (intervals.from_bounds([a for a, _ in s], [b for _, b in s]) for s in sets)
    span = max(b for _, b in sets[0]) - min(a for a, _ in sets[0])
    busy = intervals.measure(everything)
    out = {"span": span, "idle": span - busy, "compute": intervals.measure(compute)}
    out["other"] = busy - out["compute"]
    found = {k: Fraction(v, US) for k, v in out.items()}
    communication = intervals.measure(collective)
    if communication:
        overlap = intervals.measure(intervals.intersect(compute, collective))
        found["overlap_percent"] = Fraction(100 * overlap, communication)
    return found


def assert_same(hta: dict[str, Any], ours: dict[str, Fraction]) -> None:
    for name in ("span", "idle", "compute", "other"):
        assert Fraction(hta[name]) == ours[name], name
    if "overlap_percent" in ours:
        assert hta["overlap_percent"] == pytest.approx(float(ours["overlap_percent"]), abs=0.0051), "HTA rounds it"


@pytest.mark.parametrize("name", WHOLE)
def test_traces_of_whole_microseconds_agree(name: str, hta: Any, recorded_traces: RecordedTraces) -> None:
    (device,) = read_devices(recorded_traces.of(name)[0])
    busy, compute = intervals.measure(device.busy), intervals.measure(device.sets["compute"])
    communication = intervals.measure(device.sets["communication"])
    assert_same(hta[name, True], {
        "span": Fraction(device.span_ns, US), "idle": Fraction(intervals.measure(device.idle), US),
        "compute": Fraction(compute, US), "other": Fraction(busy - compute, US),
        "overlap_percent": Fraction(100 * intervals.measure(device.overlap), communication),
    })  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_what_hta_leaves_out_unasked_is_the_last_step(name: str, hta: Any, recorded_traces: RecordedTraces) -> None:
    """By default it keeps the work whose call began before the last ProfilerStep did."""
    store, _ = recorded_traces.of(name)
    whole = of_rows(store, "true")
    without = of_rows(
        store,
        "correlation IN (SELECT correlation FROM cuda_calls WHERE start_ns < "
        "(SELECT max(start_ns) FROM user_ranges WHERE op = 'annotation' AND name LIKE 'ProfilerStep#%'))",
    )
    assert without != whole
    assert_same(hta[name, False], without)


@pytest.mark.parametrize("name", FINE)
def test_fractions_of_microseconds_are_rounded_by_hta_alone(
    name: str, hta: Any, recorded_traces: RecordedTraces
) -> None:
    """Its busy time is less than the recorded one by what it rounds off each kernel; rounded so, ours is the same."""
    store, _ = recorded_traces.of(name)
    exact = of_rows(store, "true")
    assert Fraction(hta[name, True]["compute"]) < exact["compute"]
    assert_same(hta[name, True], of_rows(store, "true", rounded=True))
