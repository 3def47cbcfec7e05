"""Levers on memory, at the bounds of what they need."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from gpuaudit.analyze.inference import levers
from gpuaudit.analyze.inference.gates import Teller
from gpuaudit.analyze.inference.persistence import declared
from gpuaudit.analyze.rules import r2_kv_pressure
from tests.served import Traffic

GB = 10**9


@pytest.fixture(scope="module")
def teller() -> Teller:
    """An engine that may use half of its GPU."""
    context = Traffic(settings={"gpu_memory_utilization": "0.5", "max_model_len": "8192"}).scene().context()
    (run,) = context.engine_runs
    return Teller(context, run, r2_kv_pressure.DECLARATION, declared)


@pytest.mark.parametrize(
    ("total", "used", "headroom_gb", "offered"),
    [
        (24 * GB, 21 * GB, Fraction(5), True),
        (24 * GB, 22 * GB, Fraction(5), False),  # exactly 2 GB are free
        (24 * GB, 21 * GB, Fraction(2), False),  # exactly 2 GB of headroom
        (24 * GB, 21 * GB, Fraction(201, 100), True),
        (24 * GB, 21 * GB, None, False),
        (80 * GB, 76 * GB, Fraction(5), False),  # the step would take 4 GB, which is all that is free
        (80 * GB, 75 * GB, Fraction(5), True),
        (None, 75 * GB, Fraction(5), False),
    ],
)
def test_more_memory_needs_it_free_and_room_for_it(
    teller: Teller, total: int | None, used: int, headroom_gb: Fraction | None, offered: bool
) -> None:
    totals = replace(teller.run.totals, vram_total_bytes=total, vram_peak_bytes=used)
    fix = levers.more_memory(replace(teller, run=replace(teller.run, totals=totals)), headroom_gb)
    assert (fix is not None) is offered
    if fix is not None:
        assert (fix.current, fix.new) == ("0.5", "0.55")


def test_no_length_is_suggested_from_a_clamped_quantile(teller: Teller) -> None:
    """Past the last edge the p99 is at least that edge: a shorter length could refuse what was served."""
    p99 = teller.run.totals.prompt_size.p99
    assert p99 is not None

    def suggested(*, clamped: bool) -> bool:
        size = replace(teller.run.totals.prompt_size, p99=replace(p99, clamped=clamped))
        totals = replace(teller.run.totals, prompt_size=size, deltas={"completed": 100})
        return levers.shorter_length(replace(teller, run=replace(teller.run, totals=totals))) is not None

    assert suggested(clamped=False)
    assert not suggested(clamped=True)
