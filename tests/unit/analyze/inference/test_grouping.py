"""Root-cause groups: one primary each, everything else held with a reason, nothing lost and nothing twice."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze.finding import Finding, Quantity
from gpuaudit.analyze.inference.grouping import (
    KINDS,
    LAYERS,
    R1,
    R2,
    R2B,
    R3,
    R4,
    R5,
    R6,
    R7,
    Facts,
    of_engine,
    soft_field,
)

QUIET = Facts(waiting=0, kv_mean=Fraction(1, 10), running=Fraction(3), ridge=Fraction(295))


def finding(rule: str, score: Fraction | int = 3) -> Finding:
    impact = Quantity(1, "ns", "derived", ("E1",), "x")
    return Finding(
        f"F{1 + list(LAYERS).index(rule)}", rule, "warning", rule, {}, {"engine": "0"}, impact, "A", ("E1",),
        score=Fraction(score),
    )  # fmt: skip


def told(rules: list[Finding], facts: Facts = QUIET) -> dict[str, tuple[str, list[str]]]:
    """Per kind of group the rule of its primary finding and those of the held ones."""
    name = {f.id: f.rule for f in rules}
    return {g.kind: (name[g.primary], [name[i] for i, _ in g.supporting]) for g in of_engine("0", rules, facts)}


def test_a_finding_alone_is_the_primary_of_its_group() -> None:
    assert told([finding(R3)]) == {"prefill": (R3, [])}


def test_the_lowest_layer_leads_whatever_the_scores() -> None:
    assert told([finding(R7, 5), finding(R1, 4), finding(R5, 2)]) == {"concurrency": (R5, [R1, R7])}


def test_of_one_layer_the_higher_score_leads() -> None:
    assert told([finding(R2, 2), finding(R2B, 3)]) == {"memory": (R2B, [R2])}
    assert told([finding(R6, 3), finding(R3, 2)], QUIET) == {"prefill": (R6, [R3])}


def test_groups_stand_in_the_order_of_their_layers() -> None:
    groups = of_engine("0", [finding(R3, 5), finding(R5, 2), finding(R2, 1)], QUIET)
    assert [g.kind for g in groups] == ["memory", "concurrency", "prefill"]


@pytest.mark.parametrize(("headroom", "primary"), [(Fraction(-4), R4), (Fraction(-3), R2), (Fraction(-1), R2)])
def test_weights_that_do_not_fit_explain_pressure_only_past_the_buffer(headroom: Fraction, primary: str) -> None:
    both = [finding(R4, 3), finding(R2, 4)]
    groups = of_engine("0", both, Facts(headroom_gb=headroom))
    (group,) = groups
    assert {f.id: f.rule for f in both}[group.primary] == primary
    ((_, reason),) = group.supporting
    assert ("follows from it" in reason) is (primary == R4)


def test_prefill_takes_a_small_batch_out_of_the_concurrency_group() -> None:
    busy = Facts(waiting=Fraction(5), kv_mean=Fraction(1, 10), running=Fraction(3), ridge=Fraction(295))
    assert told([finding(R6), finding(R1)], busy) == {"prefill": (R6, [R1])}
    assert told([finding(R6), finding(R1), finding(R7)], busy) == {"concurrency": (R7, []), "prefill": (R6, [R1])}


def test_in_a_soft_field_a_small_batch_stands_for_itself() -> None:
    assert soft_field(QUIET)
    assert told([finding(R6), finding(R1)], QUIET) == {"concurrency": (R1, []), "prefill": (R6, [])}


@pytest.mark.parametrize(
    "facts",
    [
        Facts(waiting=2, kv_mean=Fraction(1, 10), running=Fraction(3)),
        Facts(waiting=0, kv_mean=Fraction(8, 10), running=Fraction(3)),
        Facts(waiting=0, kv_mean=Fraction(1, 10), running=Fraction(8)),
        Facts(waiting=0, kv_mean=Fraction(1, 10), running=Fraction(74), ridge=Fraction(295)),
        Facts(waiting=None, kv_mean=Fraction(1, 10), running=Fraction(3)),
        Facts(waiting=0, kv_mean=None, running=Fraction(3)),
    ],
)
def test_the_soft_field_ends_where_it_says(facts: Facts) -> None:
    assert not soft_field(facts)


@given(
    rules=st.lists(st.sampled_from(sorted(LAYERS)), unique=True),
    scores=st.lists(st.integers(1, 5), min_size=8, max_size=8),
    facts=st.builds(
        Facts, headroom_gb=st.one_of(st.none(), st.integers(-9, 9)), waiting=st.one_of(st.none(), st.integers(0, 9)),
        kv_mean=st.one_of(st.none(), st.fractions(0, 1)), running=st.one_of(st.none(), st.integers(0, 300)),
    ),
)  # fmt: skip
def test_every_finding_is_in_one_group_once(rules: list[str], scores: list[int], facts: Facts) -> None:
    findings = [finding(r, s) for r, s in zip(rules, scores, strict=False)]
    groups = of_engine("0", findings, facts)
    ids = [i for g in groups for i in (g.primary, *(f for f, _ in g.supporting))]
    assert sorted(ids) == sorted(f.id for f in findings)
    assert all(reason for g in groups for _, reason in g.supporting)
    assert len({g.kind for g in groups}) == len(groups)
    by_id = {f.id: f.rule for f in findings}
    assert all(by_id[g.primary] in KINDS[g.kind] for g in groups)
