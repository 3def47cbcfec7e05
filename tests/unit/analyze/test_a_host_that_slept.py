"""A host that was suspended: what stood still then was lost by nobody, and nobody is to blame for it."""

from __future__ import annotations

import pytest

from gpuaudit.analyze.chains.late_rank import evaluate
from gpuaudit.analyze.context import Found
from tests.scenes import T0, S, Scene, collectives

FROM, SLEPT = T0 + 10 * S, 3 * S


def suspended(scene: Scene, by: int) -> Scene:
    """``by`` ns of sleep between the readings at FROM and the next ones."""
    for row in scene.rows["clock"]:
        row["monotonic_ns"] -= by if row["start_ns"] > FROM else 0
    return scene


@pytest.mark.parametrize("slept", [0, SLEPT])
def test_no_rank_is_late_by_the_time_in_which_its_host_slept(slept: int) -> None:
    """Rank 2 enters the last collective of fifty 3 s after the others: the host slept in between, or not."""
    scene = collectives("blocking", late={2: SLEPT}, late_steps=(49,), gap=(FROM + S - T0 - S) // 49)
    outcome = evaluate(suspended(scene, slept).context())
    assert isinstance(outcome, Found)
    assert len(outcome.items) == (0 if slept else 1)
