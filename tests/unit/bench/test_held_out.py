"""Scenarios that were written without a look at the detectors: a seventh; ``python -m bench.causes`` plays all.

What it misses is told in docs/reference/causes.md, and not asked for here.
"""

from __future__ import annotations

from collections import Counter

import pytest

from bench.causes import score
from tests.corpus.heldout import HELD_OUT
from tests.corpus.model import Scenario, play

NOT_TOLD = frozenset({
    "an encrypted disk: a kernel worker hands on the reads", "workers wait for an object store",
    "an extension keeps the interpreter's lock",
})  # fmt: skip
"""Their rows do not tell the cause."""

SHOWN = tuple(s for s in HELD_OUT[2::7] if s.name not in NOT_TOLD)


def test_most_of_them_tempt_to_a_false_claim_or_need_one_of_several() -> None:
    kinds = Counter(s.kind for s in HELD_OUT)
    assert kinds["twin"] >= kinds["single"] >= 30
    assert kinds["compound"] >= 20
    assert len({s.name for s in HELD_OUT}) == len(HELD_OUT)
    assert {s.name for s in HELD_OUT} >= NOT_TOLD


@pytest.mark.parametrize("scenario", SHOWN, ids=lambda s: s.name)
def test_what_was_planted_is_found_and_nothing_else_is_claimed(scenario: Scenario) -> None:
    played = play(scenario)
    judged = score.judge(played, score.claimed(played))
    assert (judged.wrong, judged.missed) == ([], [])
    assert all(error <= 5 for s in judged.scores.values() for error in s.errors)
