"""Kinds of effect that decide by thresholds: declared like a rule, read through the policy, exact at any value."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from gpuaudit.analyze import effects
from gpuaudit.analyze.appendix import appendix
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.effects import slow_calls, slow_steps
from gpuaudit.analyze.policy import Policy, allowed
from gpuaudit.analyze.registry import declarations, plugins
from gpuaudit.analyze.store import MAX_TIME_NS
from gpuaudit.bundle.tables import TABLES
from tests.rule_scenes import allocator_thrash, graph_recapture, launch_paced
from tests.rule_scenes.slow import launches
from tests.scenes import MS, T0, US, Scene
from tests.server_steps import server
from tests.unit.analyze.test_throughput_drop import launching

DECLARED = [d for d in declarations() if d.kind == "effect"]
MODULES = {d.id: importlib.import_module(f"{effects.__name__}.{d.id}") for d in DECLARED}
SCENES: dict[str, Callable[[], Scene]] = {
    "slow_calls": launches,
    "allocator_calls": lambda: allocator_thrash.scenes()[0],
    "graph_making": lambda: graph_recapture.scenes()[0],
    "host_paced": launch_paced.steps,
    "throughput_drop": lambda: launching([20] * 10 + [11] * 3 + [20] * 5),
}


def under(scene: Scene, **thresholds: int | Fraction) -> Context:
    """A capture under a policy for slow calls."""
    known = scene.context()
    overrides = {("slow_calls", name): value for name, value in thresholds.items()}
    return Context(known.store, known.window, known.quality, known.book, Policy(overrides, "0" * 64))


def slow(scene: Scene, **thresholds: int | Fraction) -> list[int]:
    """How many calls each effect of slow calls is made of."""
    return [e.count for e in slow_calls.effects(under(scene, **thresholds))]


@pytest.mark.parametrize("declaration", DECLARED, ids=lambda d: d.id)
def test_the_declaration_is_complete_and_its_name_is_its_own(declaration: object) -> None:
    d = next(d for d in DECLARED if d is declaration)
    assert all((d.title, d.question.endswith("?"), d.never_claims, d.inputs, d.thresholds))
    assert all(len(t.source) > 20 for t in d.thresholds)
    assert d.id not in {p.declaration.id for p in plugins()}
    for table, columns in d.inputs:
        assert {c.name for c in TABLES[table].columns} >= set(columns)


@pytest.mark.parametrize("declaration", DECLARED, ids=lambda d: d.id)
def test_every_declared_threshold_is_read_through_the_policy(declaration: object) -> None:
    """``THRESHOLD.value`` in its logic would pass a policy over in silence."""
    d = next(d for d in DECLARED if d is declaration)
    source = Path(str(MODULES[d.id].__file__)).read_text("utf-8")
    names = {n for n, value in vars(MODULES[d.id]).items() if any(value is t for t in d.thresholds)}
    assert len(names) == len(d.thresholds)
    found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute) and n.attr == "value"]
    assert [ast.unparse(n) for n in found if ast.unparse(n.value) in names] == []


@pytest.mark.parametrize("declaration", DECLARED, ids=lambda d: d.id)
def test_either_end_of_what_a_policy_may_set_is_evaluated(declaration: object) -> None:
    d = next(d for d in DECLARED if d is declaration)
    known = SCENES[d.id]().context()
    usual = [e.key for e in MODULES[d.id].effects(known)]
    assert usual, "the scene has the effect"
    found = []
    for t in d.thresholds:
        for value in allowed(t):
            changed = Policy({(d.id, t.name): value}, "0" * 64)
            context = Context(known.store, known.window, known.quality, known.book, changed)
            found.append([e.key for e in MODULES[d.id].effects(context)])
    assert [] in found, "a policy that asks for the most leaves none"
    assert usual in found


@pytest.mark.parametrize("name", ["slow_times_median", "least_calls"])
def test_slow_steps_are_slow_by_the_same_thresholds(name: str) -> None:
    t = next(t for t in slow_calls.DECLARATION.thresholds if t.name == name)
    found = [slow_steps.effects(under(server(), **{name: value})) for value in (*allowed(t), t.value)]
    assert found[2]
    assert not all(found)


def test_slow_is_what_the_policy_says_and_exactly_that() -> None:
    """A hundred calls of 10 µs, and one each of 20, 30 and 40 ms."""
    scene = Scene().clock().process(7)
    for i, ns in enumerate([10 * US] * 100 + [20 * MS, 30 * MS, 40 * MS]):
        scene.cuda(7, "cudaLaunchKernel", T0 + i * 50 * MS, ns)
    assert slow(scene) == [2]
    assert slow(scene, slowest_share=Fraction(3, 103)) == [3]
    assert slow(scene, slowest_share=Fraction(3, 103), slow_times_median=Fraction(3_999_999_999, 10**6)) == [1]
    assert slow(scene, slowest_share=Fraction(3, 103), slow_times_median=4_000) == []
    assert slow(scene, least_calls=104) == []


def test_a_denominator_of_nineteen_digits_stays_exact() -> None:
    scene = Scene().clock().process(7)
    for i, ns in enumerate([10 * US] * 20 + [30_001]):
        scene.cuda(7, "cudaLaunchKernel", T0 + i * MS, ns)
    nearly = Fraction(3 * 10**18 + 10**14, 10**18)
    assert slow(scene, slow_times_median=nearly) == []
    assert slow(scene, slow_times_median=nearly - Fraction(1, 10**18)) == [1]


def test_counts_and_durations_of_a_strangers_bundle_do_not_overflow() -> None:
    """Buckets of 2^64 − 1 calls, and the longest durations that a store takes, by the finest share of a policy."""
    scene = Scene().clock().process(7)
    for i, ns in enumerate([10 * US] * 20 + [MAX_TIME_NS - 1 - 2 * T0]):
        scene.cuda(7, "cudaLaunchKernel", T0 + i * MS, ns)
    for ns in (20 * US, 30 * US, MAX_TIME_NS - 1):
        scene.add(
            "call_totals", start_ns=T0, duration_ns=MS, pid=7, tid=7, op="cudaLaunchKernel", low_ns=1,
            high_ns=MAX_TIME_NS - 1, count=(1 << 64) - 1, sum_ns=MAX_TIME_NS - 1, min_ns=1, max_ns=ns, size_bytes=0,
            errors=0, nested=0,
        )  # fmt: skip
    for share in (Fraction(1, 10**18), Fraction(10**18 - 1, 10**18)):
        assert slow(scene, slowest_share=share) == [1]


def test_the_appendix_and_the_section_say_what_held() -> None:
    context = under(launches(), slow_times_median=Fraction(5, 2))
    told = next(d for d in appendix(context, None)["declarations"] if d["id"] == "slow_calls")
    assert any(t["source"].startswith("policy file") for t in told["thresholds"])
