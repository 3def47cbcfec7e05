"""What stands against a chain is bounded, and what is left out is counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpuaudit.analyze.causal import telling
from gpuaudit.analyze.causal.telling import MAX_AGAINST, MAX_EFFECTS, _bounded, _further_on


def test_each_doubt_once_and_the_rest_counted() -> None:
    doubts = [f"doubt {i}" for i in range(MAX_AGAINST)]
    assert _bounded(doubts + doubts) == tuple(doubts)
    told = _bounded([*doubts, "one", "two"])
    assert told == (*doubts[:-1], "3 further doubts are not printed")
    assert len(told) == MAX_AGAINST


def test_only_links_that_are_told_are_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of the effects past those that have links have none to doubt; what causes go on to has, of all of them."""
    monkeypatch.setattr(telling, "_doubts", lambda _context, _found, key: iter([key]))
    nobody: Any = None
    group: Any = [
        SimpleNamespace(cause=SimpleNamespace(because=(f"because {i}",), thread=(1, 2)), waited_key=f"wait {i}")
        for i in range(MAX_EFFECTS + 1)
    ]
    told = set(_further_on(nobody, nobody, group))
    assert told == {f"because {i}" for i in range(MAX_EFFECTS + 1)} | {f"wait {i}" for i in range(MAX_EFFECTS)}
