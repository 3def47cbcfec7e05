"""Ranks of another host: what all observed ranks waited beyond the usual, inferred and never called more."""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze.context import Found, NotEvaluated
from gpuaudit.analyze.finding import Chain
from gpuaudit.analyze.registry import plugins
from tests.rule_scenes.slow_host import SLOW, scene
from tests.rule_scenes.tcp_retransmits import PIDS, SLOW_STEP, begin, ranks, resent
from tests.scenes import MS, Scene

EVALUATE = next(p.evaluate for p in plugins() if p.declaration.id == "slow_host")
BEGIN = begin(SLOW_STEP)


def chains(s: Scene) -> list[Chain]:
    outcome = EVALUATE(s.context())
    assert isinstance(outcome, Found), outcome
    return [c for c in outcome.items if isinstance(c, Chain)]


def slow_call(s: Scene, pid: int) -> dict[str, int]:
    return next(r for r in s.rows["nccl_calls"] if r["pid"] == pid and r["start_ns"] == BEGIN)


def test_what_is_beyond_the_usual_is_told_as_inferred() -> None:
    """All 300 ms but the usual 2: on both observed ranks, with medium confidence although it is nearly all of it."""
    found = chains(scene())
    assert {c.subject["pid"]: c.impact.value for c in found} == {str(p): SLOW - 2 * MS for p in PIDS}
    chain = found[0]
    assert chain.links[0].explained.value == Fraction(298, 300)
    assert chain.values["culprit"] == "ranks 2–3 of communicator 0000000000000009, not observed"
    assert chain.values["addresses"] == "10.9.0.80"
    assert chain.confidence == "medium"
    assert "consistent with" in chain.links[0].cause
    assert chain.gain is not None
    assert chain.gain.low.value == 0


def test_a_late_rank_that_was_observed_is_waited_for_first() -> None:
    """Rank 1 enters 200 ms late; only what both waited after that is left for others."""
    s = scene()
    slow_call(s, PIDS[1]).update(start_ns=BEGIN + 200 * MS, duration_ns=100 * MS)
    assert {c.impact.value for c in chains(s)} == {98 * MS}


def test_packets_sent_again_are_served_first() -> None:
    s = resent(scene(), BEGIN + 250 * MS)
    shares = {c.subject["pid"]: c.impact.value for c in chains(s)}
    assert shares == {str(p): (SLOW - 2 * MS) - 200 * MS for p in PIDS}


def test_observed_ranks_that_do_not_end_together_have_reasons_of_their_own() -> None:
    s = scene()
    slow_call(s, PIDS[1])["duration_ns"] = SLOW + 20 * MS
    assert chains(s) == []


def test_a_communicator_that_was_observed_whole_has_nobody_elsewhere() -> None:
    assert chains(ranks()) == []


def test_without_others_of_its_kind_there_is_no_usual() -> None:
    s = scene()
    for pid in PIDS:
        slow_call(s, pid)["count"] = 9
    assert chains(s) == []


def test_one_observed_rank_may_be_slow_itself_and_that_is_said() -> None:
    s = scene()
    s.rows["nccl_calls"] = [r for r in s.rows["nccl_calls"] if r["pid"] == PIDS[0]]
    (chain,) = chains(s)
    assert chain.values["culprit"] == "ranks 1–3 of communicator 0000000000000009, not observed"
    assert any("only one rank" in a for a in chain.against)


def test_without_identity_it_is_not_evaluated() -> None:
    assert EVALUATE(ranks(comm_id=None).context()) == NotEvaluated("no communicator's identity was recorded")
    assert isinstance(EVALUATE(Scene().clock().context()), NotEvaluated)
