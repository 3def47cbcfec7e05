"""The figures of polling: what is asked really is recorded, and what is told follows from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import nvml_polls
from bench.figures import cadence, poll
from bench.nvml_polls import Options
from bench.result import Plan
from gpuaudit.bundle.errors import AuditError
from gpuaudit.bundle.reader import Bundle
from tests.doubles.build import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="gcc is not installed")


def test_polls_are_counted_by_what_stands_in_the_bundle(tmp_path: Path) -> None:
    library = nvml_polls.library(tmp_path)
    polls = nvml_polls.run(Options(1.2, str(tmp_path)), library)
    with Bundle.open(tmp_path / "bundle.db") as bundle:
        assert bundle.open_body["synthetic"] is True
    assert polls.polls >= 2
    assert len(polls.lateness_ms) == (polls.polls - 1) * nvml_polls.GPUS
    assert 0 < polls.cpu_s < polls.elapsed_s * (os.cpu_count() or 1)
    assert (polls.events, polls.lost) == (0, 0)


def test_polling_is_told_in_ratios(tmp_path: Path) -> None:
    figure = poll.measure(Plan(1, 10, 0.01, tmp_path))
    values = {v.what: v.spread.median for v in figure.values}
    assert figure.parameters["processes"] == "64"
    assert values["CPU per poll of 8 GPUs"] == pytest.approx(8 * values["CPU per poll and GPU"])


def test_the_percentile_is_an_order_statistic() -> None:
    assert cadence.rank([5.0, 1.0, 3.0, 2.0, 4.0], 50) == 3.0
    assert cadence.rank([5.0, 1.0, 3.0, 2.0, 4.0], 99) == 5.0
    with pytest.raises(AuditError, match="no GPU was polled twice"):
        cadence.rank([], 99)
