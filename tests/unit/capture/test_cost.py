"""The cost of a capture as rows."""

from __future__ import annotations

import os
import resource
import subprocess

import pytest

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture.attach import Programs
from gpuaudit.capture.calibration import probe_costs_ns
from gpuaudit.capture.cost import helper_rows, probe_rows, usage_rows
from gpuaudit.capture.process_samples import NS_PER_TICK
from gpuaudit.capture.symbols import SINGLE_STEPPED


def by_name(rows: list[dict[str, str]]) -> dict[str, str]:
    return {row["name"]: row["value"] for row in rows}


def test_hits_times_cost() -> None:
    totals: list[dict[str, object]] = [
        {"hits": 10, "instruction": "push"},
        {"hits": 3, "instruction": SINGLE_STEPPED},
        {"hits": None, "instruction": None},
    ]
    rows = by_name(probe_rows(totals, {"push": 700, "nop5": 500, SINGLE_STEPPED: 18_000}))
    assert rows == {
        "probe_hits": "13", "probe_pair push": "700", f"probe_pair {SINGLE_STEPPED}": "18000",
        "probe_time": str(10 * 700 + 3 * 18_000),
    }  # fmt: skip


def test_what_was_not_measured_is_not_guessed() -> None:
    rows = by_name(probe_rows([{"hits": 10, "instruction": "push"}], {}))
    assert rows == {"probe_hits": "10"}


def test_usage_is_that_of_the_process() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    rows = by_name(usage_rows("recorder", usage))
    assert int(rows["recorder_memory_max"]) == usage.ru_maxrss * 1024
    assert int(rows["recorder_cpu"]) == round((usage.ru_utime + usage.ru_stime) * 1e9)


def test_helpers_are_told_while_they_run_and_those_that_ended_are_counted() -> None:
    assert helper_rows([]) == []
    gone = subprocess.Popen(["true"])
    gone.wait()
    before = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) * 1e9
    cpu, memory = helper_rows([os.getpid(), gone.pid])
    after = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) * 1e9
    assert "(1 of 2: the others had ended)" in cpu["definition"]
    assert before - 2 * NS_PER_TICK <= int(cpu["value"]) <= after
    assert int(memory["value"]) > 0


@pytest.mark.root
def test_calibration_measures_each_kind_of_instruction() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        programs = Programs()
        programs.load()
        programs.close()
    except HostUnfit as e:
        pytest.skip(f"BPF is not usable here: {e}")
    costs = probe_costs_ns()
    assert {"push", "nop5", "nop", SINGLE_STEPPED, "push after endbr64"} <= set(costs)
    assert all(cost > 0 for cost in costs.values())
