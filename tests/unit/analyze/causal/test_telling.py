"""What stands against a chain is bounded, and what is left out is counted."""

from __future__ import annotations

from gpuaudit.analyze.causal.telling import MAX_AGAINST, _bounded


def test_each_doubt_once_and_the_rest_counted() -> None:
    doubts = [f"doubt {i}" for i in range(MAX_AGAINST)]
    assert _bounded(doubts + doubts) == tuple(doubts)
    told = _bounded([*doubts, "one", "two"])
    assert told == (*doubts[:-1], "3 further doubts are not printed")
    assert len(told) == MAX_AGAINST
