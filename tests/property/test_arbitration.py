"""Allotting an effect: every nanosecond once, by precedence, against a model that goes through them one by one."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.arbitration import Allotment, Claim, allot
from gpuaudit.analyze.intervals import Intervals

Pairs = list[tuple[int, int]]

pairs = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=6)
claims = st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abcdef"), pairs), max_size=6, unique_by=lambda c: c[1])


settled = settings(deadline=None, max_examples=60)


def made(given_: Pairs) -> Intervals:
    return intervals.from_bounds([a for a, _ in given_], [b for _, b in given_])


def model(given_: Pairs) -> set[int]:
    return {t for a, b in given_ for t in range(a, b)}


def allotted(effect: Pairs, claimed: list[tuple[int, str, Pairs]]) -> Allotment[str]:
    return allot(made(effect), [Claim(p, name, name, made(time)) for p, name, time in claimed])


def moments(time: Intervals) -> set[int]:
    return model([(int(a), int(b)) for a, b in time])


@settled
@given(pairs, claims)
def test_each_moment_once_and_in_order(effect: Pairs, claimed: list[tuple[int, str, Pairs]]) -> None:
    got = allotted(effect, claimed)
    whole, left = model(effect), model(effect)
    ordered = sorted(claimed, key=lambda c: (c[0], -len(model(c[2]) & whole), c[1]))
    want = {}
    for _, name, time in ordered:
        if model(time) & whole:
            want[name] = left & model(time)
            left -= model(time)
    assert [p.who for p in got.parts] == list(want)
    for part in got.parts:
        assert moments(part.allotted) == want[part.who]
        assert part.contested_ns == len(moments(part.covered) - want[part.who])
    assert moments(got.unexplained) == left


@settled
@given(pairs, claims)
def test_shares_add_up_to_one(effect: Pairs, claimed: list[tuple[int, str, Pairs]]) -> None:
    assume(model(effect))
    got = allotted(effect, claimed)
    told = [p.allotted_ns for p in got.parts] + [intervals.measure(got.unexplained)]
    assert sum(got.share(ns) for ns in told) == Fraction(1)


@settled
@given(pairs, claims, st.randoms(use_true_random=False))
def test_the_order_of_claims_means_nothing(
    effect: Pairs, claimed: list[tuple[int, str, Pairs]], random: object
) -> None:
    shuffled = list(claimed)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    here, there = allotted(effect, claimed), allotted(effect, shuffled)
    assert [(p.who, p.allotted.tolist()) for p in here.parts] == [(p.who, p.allotted.tolist()) for p in there.parts]


@settled
@given(pairs, claims, pairs)
def test_more_of_a_disturbance_never_lowers_its_share(
    effect: Pairs, claimed: list[tuple[int, str, Pairs]], more: Pairs
) -> None:
    assume(claimed)
    grown = [(p, name, time + (more if n == 0 else [])) for n, (p, name, time) in enumerate(claimed)]
    first = claimed[0][1]

    def ns(of: list[tuple[int, str, Pairs]]) -> int:
        return sum(p.allotted_ns for p in allotted(effect, of).parts if p.who == first)

    assert ns(grown) >= ns(claimed)


@settled
@given(pairs, claims)
def test_another_cause_beside_takes_its_own_time_and_nothing_else(
    effect: Pairs, claimed: list[tuple[int, str, Pairs]]
) -> None:
    """From those that are served after it, and of these what it covers; every overlap stays what it was."""
    assume(claimed)
    *others, (_, name, time) = claimed
    before, after = allotted(effect, others), allotted(effect, claimed)
    served = [p.who for p in after.parts]
    for part in before.parts:
        now = next(p for p in after.parts if p.who == part.who)
        taken = model(time) if name in served and served.index(name) < served.index(part.who) else set()
        assert moments(now.covered) == moments(part.covered)
        assert moments(now.allotted) == moments(part.allotted) - taken
