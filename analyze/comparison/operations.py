"""Operations side by side: how long their calls took, and whether the difference is more than chance and how large.

Compared are the calls of one operation of one program (processes of one name). Not compared, each with its reason: an
operation that one side lacks, evidence of grade D, another mix of work (the operation's share of the program's calls
differs by more than the load band), calls of another size, calls that have no rows of their own, and operations with
calls in too few blocks of time. Slower or faster is only said where the exact rank test on block medians, adjusted for
the number of tests, and the effect size over all calls both say so; a longer or shorter tail where the same test on the
blocks' 99th percentiles and the effect size over these do. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from gpuaudit.analyze.comparison import conclusions, rank_test, samples
from gpuaudit.analyze.comparison.samples import Key, Sample
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Json, Quantity, Threshold
from gpuaudit.analyze.inference.compare import LOAD_BAND, change_share, same_band
from gpuaudit.analyze.operations import P99_MIN_CALLS

LEVEL = Threshold(
    "level", Fraction(1, 20), "share", "convention (Fisher 1925): one in twenty, here after Holm's adjustment"
)
LEAST_BLOCKS = Threshold(
    "least_blocks", 4, "count", "with three against three medians the exact test cannot reach p = 1/20 at all", least=4
)
THRESHOLDS = (LEVEL, LEAST_BLOCKS, samples.BLOCKS, LOAD_BAND, *rank_test.THRESHOLDS)

NOT_COMPARABLE, NO_DIFFERENCE = "not comparable", "no difference shown"


@dataclass(frozen=True)
class _Pair:
    key: Key
    before: Sample | None
    after: Sample | None
    refused: str = ""
    """Why the two are not compared; empty where they are."""


@dataclass(frozen=True)
class Tested:
    """p-value, adjusted, and effect size of one test; ``delta`` is above 0 where calls after took longer."""

    p: Fraction
    adjusted: Fraction
    delta: Fraction

    @property
    def direction(self) -> int:
        """1 longer, −1 shorter, 0 where no difference is shown."""
        if self.adjusted > LEVEL.value or abs(self.delta) < rank_test.NEGLIGIBLE.value:
            return 0
        return 1 if self.delta > 0 else -1


Tests = tuple[Tested, Tested]
"""Of the usual duration, and of the tail."""

_SAID = {
    (0, 0): NO_DIFFERENCE, (1, 0): "slower", (-1, 0): "faster", (0, 1): "longer tail", (0, -1): "shorter tail",
    (1, 1): "slower, longer tail", (1, -1): "slower, shorter tail", (-1, 1): "faster, longer tail",
    (-1, -1): "faster, shorter tail",
}  # fmt: skip


def compare(before: Context, after: Context, engine_refusals: dict[str, str] | None = None) -> list[Json]:
    """A row per operation of a program. ``engine_refusals``: programs whose engine had another load, and the reason."""
    left, right = samples.read(before), samples.read(after)
    keys = [*left, *(k for k in right if k not in left)]
    pairs = [_Pair(k, left.get(k), right.get(k)) for k in keys]
    refusals = engine_refusals or {}
    pairs = [replace(p, refused=next(_reasons((before, after), p, refusals), "")) for p in pairs]
    return [_row(p, t) for p, t in zip(pairs, _tested(pairs), strict=True)]


def _reasons(contexts: tuple[Context, Context], pair: _Pair, engines: dict[str, str]) -> Iterator[str]:
    """Why the two are not compared, the plainest first."""
    table, program, _ = pair.key
    a, b = pair.before, pair.after
    if a is None or b is None:
        yield f"only {'after' if a is None else 'before'} made such calls"
        return
    if program in engines:
        yield engines[program]
    bad = conclusions.grade_refusal(
        {name: c.quality.grade_of((table,)) for name, c in zip(("before", "after"), contexts, strict=True)}
    )
    if bad:
        yield bad
    for name, s in (("before", a), ("after", b)):
        if s.aggregated:
            yield f"{s.aggregated} calls {name} were counted in the kernel and have no rows of their own"
    if not same_band(Fraction(a.calls, a.of_program), Fraction(b.calls, b.of_program)):
        yield (
            f"another mix of work: {a.calls} of {a.of_program} calls of the program before, {b.calls} of "
            f"{b.of_program} after"
        )
    if (a.mean_bytes or 0) != (b.mean_bytes or 0) and not same_band(a.mean_bytes, b.mean_bytes):
        yield f"calls of another size: {a.mean_bytes} bytes on average before, {b.mean_bytes} after"
    for name, s in (("before", a), ("after", b)):
        if len(s.medians) < LEAST_BLOCKS.value:
            yield f"calls {name} lie in {len(s.medians)} blocks of time, at least {LEAST_BLOCKS.value} are needed"


def _tested(pairs: Sequence[_Pair]) -> Iterator[Tests | None]:
    """In the order of ``pairs``: adjusted over all tests that are made; None for what is not tested."""
    told = [(p.before, p.after) for p in pairs if not p.refused and p.before and p.after]
    p_values = [rank_test.rank_sum_p(x, y) for a, b in told for x, y in ((a.medians, b.medians), (a.tails, b.tails))]
    adjusted = iter(zip(p_values, rank_test.holm(p_values), strict=True))
    results = iter([
        (Tested(*next(adjusted), rank_test.cliffs_delta(a.counted, b.counted)),
         Tested(*next(adjusted), rank_test.cliffs_delta(rank_test.counted(a.tails), rank_test.counted(b.tails))))
        for a, b in told
    ])  # fmt: skip
    for pair in pairs:
        yield None if pair.refused else next(results)


def _row(pair: _Pair, tested: Tests | None) -> Json:
    table, program, op = pair.key
    a, b = pair.before, pair.after
    return {
        "table": table, "program": program, "op": op,
        "processes": {"before": len(a.pids) if a else 0, "after": len(b.pids) if b else 0},
        "figures": [_figure(name, unit, formula, (a, b), pick) for name, unit, formula, pick in _FIGURES],
        "verdict": NOT_COMPARABLE if tested is None else _SAID[tested[0].direction, tested[1].direction],
        "reason": pair.refused,
        "test": None if tested is None else _test(tested[0], pair, "medians", "all calls"),
        "tail_test": None if tested is None else _test(tested[1], pair, "99th percentiles", "these"),
    }  # fmt: skip


def _test(t: Tested, pair: _Pair, of_blocks: str, over: str) -> Json:
    def q(value: Fraction, formula: str) -> Json:
        return Quantity(value, "ratio", "derived", (), formula).to_json()

    return {
        "blocks": {"before": len(pair.before.medians) if pair.before else 0,
                   "after": len(pair.after.medians) if pair.after else 0},
        "p": q(t.p, f"exact permutation distribution of the rank sum of the blocks' {of_blocks}, two-sided"),
        "p_adjusted": q(t.adjusted, "Holm's step-down over all tests of the operations"),
        "delta": q(t.delta, f"Cliff's delta over {over}: above 0 where calls after took longer"),
        "size": rank_test.size_of(t.delta),
    }  # fmt: skip


Pick = Callable[[Sample], int | None]


def _p99(s: Sample) -> int | None:
    return s.at(99, 100) if s.calls >= P99_MIN_CALLS else None


_FIGURES: tuple[tuple[str, str, str, Pick], ...] = (
    ("calls", "count", "finished calls of the program, made inside no other", lambda s: s.calls),
    ("p50", "ns", "duration at rank ceil(0.5·n)", lambda s: s.at(1, 2)),
    ("p99", "ns", "duration at rank ceil(0.99·n)", _p99),
    ("max", "ns", "longest duration", lambda s: s.at(1, 1)),
)  # fmt: skip


def _figure(name: str, unit: str, formula: str, sides: tuple[Sample | None, Sample | None], pick: Pick) -> Json:
    values: list[int | None] = []
    told: list[Json] = []
    for s in sides:
        value = None if s is None else pick(s)
        why = "no such call" if s is None else f"fewer than {P99_MIN_CALLS} calls"
        values.append(value)
        evidence = s.evidence if s is not None else ()
        told.append(Quantity(value, unit, "derived", evidence, formula, "" if value is not None else why).to_json())
    change = change_share(values[0], values[1])
    reason = "" if change is not None else "one side is not known"
    return {
        "name": name, "before": told[0], "after": told[1],
        "change": Quantity(change, "share", "derived", (), "(after − before) / before", reason).to_json(),
    }  # fmt: skip
