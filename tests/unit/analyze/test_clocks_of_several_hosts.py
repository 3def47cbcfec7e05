"""Collectives whose ranks' times are of several hosts' clocks: who came last is not known, and nobody is blamed."""

from __future__ import annotations

import pytest

from gpuaudit.analyze.chains.late_rank import evaluate
from gpuaudit.analyze.collectives import APART
from gpuaudit.analyze.context import Found, NotEvaluated
from gpuaudit.bundle import canonical
from tests.scenes import MS, collectives


@pytest.mark.parametrize("kind", ["clocks", "other"])
def test_a_rank_is_not_late_by_the_clock_of_another_host(kind: str) -> None:
    """Rank 2's host is 2 ms ahead in every collective, whose calls take as long as that."""
    scene = collectives("blocking", late={2: 2 * MS})
    weak = {"grade": "C", "text": "x", "tables": ["nccl_calls"], "kind": kind}
    scene.artefacts.append(("imports", canonical.dumps([{"weaknesses": [weak]}])))
    context = scene.context()
    outcome = evaluate(context)
    if kind == "clocks":
        assert isinstance(outcome, NotEvaluated)
        assert APART in outcome.reason
        assert [c.not_evaluated for c in context.aligned] == [APART]
    else:
        assert isinstance(outcome, Found)
        assert outcome.items
