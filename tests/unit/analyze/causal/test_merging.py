"""Chains of the very same rows: one is kept, and it says how else they were read."""

from __future__ import annotations

from dataclasses import replace

from gpuaudit.analyze.causal.merging import merged
from gpuaudit.analyze.finding import Chain, Quantity
from gpuaudit.analyze.registry import plugins
from tests.rule_scenes.slow import AT, launches, off
from tests.scenes import MS

DECLARED = {p.declaration.id: p.declaration for p in plugins()}
ORDER = {"lock_wait": 0, "preempted": 1}


def chain() -> Chain:
    (found,) = off(launches(), AT, 20 * MS).context().causal.chains
    return found


def test_the_same_rows_and_the_same_time_are_one_chain() -> None:
    one = chain()
    other = replace(one, detector="lock_wait", evidence=tuple(reversed(one.evidence)), severity=one.severity)
    (kept,) = merged([one, other], ORDER, DECLARED)
    assert kept.detector == "lock_wait"
    assert kept.against[-1] == "the same rows were also read as: Preempted (hog (99))"


def test_the_gravest_is_kept() -> None:
    one = chain()
    other = replace(one, detector="lock_wait", severity="notice")
    (kept,) = merged([replace(one, severity="critical"), other], ORDER, DECLARED)
    assert kept.detector == "preempted"


def test_other_rows_or_other_time_are_other_chains() -> None:
    one = chain()
    rows = replace(one, detector="lock_wait", evidence=one.evidence[:1])
    time = replace(one, detector="lock_wait", impact=Quantity(1, "ns", "derived", one.evidence, "f"))
    assert merged([one, rows, time], ORDER, DECLARED) == [one, rows, time]
