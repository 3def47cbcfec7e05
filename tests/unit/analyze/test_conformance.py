"""Every rule and detector, by being in its folder: declared completely, and true to its declaration."""

from __future__ import annotations

import ast
import importlib
import inspect
import string
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze import chains, registry, rules
from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.context import Context, Found, NotEvaluated
from gpuaudit.analyze.finding import Chain, Finding, Quantity, Threshold
from gpuaudit.analyze.policy import Policy, allowed
from gpuaudit.analyze.registry import Plugin, plugins
from gpuaudit.analyze.store import Store
from gpuaudit.bundle.tables import TABLES
from tests.rule_scenes import scenes_of
from tests.scenes import MS, T0, S, Scene, collectives

PLUGINS = plugins()
Maker = Callable[[Context], Sequence[Effect]]
OF_NO_POLICY = ("gpus", "gpus_by_pid", "observers", "barriers", "steps", "engine_runs", "without_identity")
"""What a context reads from its store whatever the policy is."""


def everything() -> Scene:
    """A capture in which every rule and detector without scenes of its own (``tests/rule_scenes``) finds something."""
    scene = collectives("asynchronous", late={2: 30 * MS})
    for rank in range(4):
        scene.process(100 + rank)
        scene.samples(T0, T0 + 20 * S, rank, [100 + rank], event_reasons=0x4, clock_sm_mhz=1000, clock_sm_max_mhz=1980)
        scene.samples(T0 + 20 * S, T0 + 60 * S, rank, [100 + rank], gpu_utilization_percent=0)
    return scene


@cache
def everything_context() -> Context:
    """Of :func:`everything`, for who only asks: what one rule made it read, the next finds there."""
    return everything().context()


def contexts(rule_id: str) -> list[Context]:
    """Of a rule's own scenes, or of ``everything()`` where it has none."""
    return [scene.context() for scene in scenes_of(rule_id)] or [everything_context()]


@cache
def made(rule_id: str) -> tuple[Finding | Chain, ...]:
    """What a rule finds in its own scenes, or in ``everything()`` where it has none."""
    plugin = next(p for p in PLUGINS if p.declaration.id == rule_id)
    out: list[Finding | Chain] = []
    for context in contexts(rule_id):
        outcome = plugin.evaluate(context)
        assert isinstance(outcome, Found), outcome
        out += outcome.items
    return tuple(out)


def test_the_folder_is_the_registry() -> None:
    files = sorted(
        f"{package.__name__}.{path.stem}"
        for package in (rules, chains)
        for path in Path(str(package.__file__)).parent.glob("*.py")
        if path.stem != "__init__"
    )
    assert sorted(p.module for p in PLUGINS) == files
    ids = [p.declaration.id for p in PLUGINS]
    assert len(set(ids)) == len(ids)
    assert [p.module.rsplit(".", 1)[1] for p in PLUGINS] == ids


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.declaration.id)
def test_the_declaration_is_complete(plugin: Plugin) -> None:
    d = plugin.declaration
    module = importlib.import_module(plugin.module)
    assert module.__doc__
    assert len(module.__doc__) > 200
    assert "nit" in module.__doc__, "the docstring names the unit"
    assert inspect.getdoc(plugin.evaluate)
    assert d.kind == ("chain" if ".chains." in plugin.module else "rule")
    assert all((d.title, d.question.endswith("?"), d.never_claims, d.inputs, d.thresholds, d.texts))
    for t in d.thresholds:
        assert isinstance(t.value, int | Fraction)
        assert len(t.source) > 20, t.name
    assert len({t.name for t in d.thresholds}) == len(d.thresholds)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.declaration.id)
def test_the_inputs_exist(plugin: Plugin) -> None:
    for table, columns in plugin.declaration.inputs:
        assert {c.name for c in TABLES[table].columns} >= set(columns), table


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.declaration.id)
def test_the_texts_and_the_values_fit(plugin: Plugin) -> None:
    d = plugin.declaration
    items = made(plugin.declaration.id)
    assert items, "the scene makes every rule find something"
    for item in items:
        names = {name for _, name, _, _ in string.Formatter().parse(d.texts[item.text]) if name}
        assert names <= set(item.values)
        assert (item.detector if isinstance(item, Chain) else item.rule) == d.id
    used = {item.text for item in items}
    assert set(d.texts) == used


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.declaration.id)
def test_every_value_has_evidence(plugin: Plugin) -> None:
    for item in made(plugin.declaration.id):
        assert item.evidence
        for name, value in item.values.items():
            if isinstance(value, Quantity) and value.provenance != "assumed":
                assert value.evidence, name
                assert value.formula, name


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.declaration.id)
def test_no_threshold_hides_in_the_logic(plugin: Plugin) -> None:
    """Numbers above 2 stand in declarations and tables of bits, never inside a function."""
    source = Path(str(importlib.import_module(plugin.module).__file__)).read_text("utf-8")
    for function in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)):
        numbers = [n.value for n in ast.walk(function) if isinstance(n, ast.Constant)]
        assert [n for n in numbers if isinstance(n, int | float) and n > 2] == [], function.name


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.declaration.id)
def test_every_threshold_is_read_through_the_policy(plugin: Plugin) -> None:
    """No rule takes ``THRESHOLD.value`` in its logic: a policy would be passed over in silence."""
    source = Path(str(importlib.import_module(plugin.module).__file__)).read_text("utf-8")
    for function in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)):
        direct = [
            ast.unparse(n)
            for n in ast.walk(function)
            if isinstance(n, ast.Attribute)
            and n.attr == "value"
            and isinstance(n.value, ast.Name | ast.Attribute)
            and ast.unparse(n.value).rpartition(".")[2].isupper()
        ]
        assert direct == [], function.name


@dataclass(frozen=True)
class Noting(Policy):
    """A policy that notes for whose thresholds it was asked."""

    asked: set[str] = field(default_factory=set)

    def value(self, threshold: Threshold, rule_id: str) -> int | Fraction:
        self.asked.add(rule_id)
        return super().value(threshold, rule_id)


def once(make: Maker, known: Context, read: dict[str, Any], name: str) -> Maker:
    """What makes effects, or what gives those that it made, where it did not ask for the thresholds of a plugin."""
    noting = Noting({}, "0" * 64)
    context = Context(known.store, known.window, known.quality, known.book, noting)
    vars(context).update(read)
    effects = make(context)
    return make if name in noting.asked else lambda _: effects


def remembered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a store answer from memory what it was asked before, but for what was handed over to it for a while."""

    def once_each(ask: Callable[..., Any]) -> Callable[..., Any]:
        known: dict[tuple[str, tuple[object, ...]], Any] = {}

        def asked(query: str, parameters: Sequence[object] = ()) -> Any:
            if any(name in query for name in handed_over):
                return ask(query, *([parameters] if parameters else []))
            key = query, tuple(parameters)
            if key not in known:
                known[key] = ask(query, *([parameters] if parameters else []))
            return deepcopy(known[key])

        return asked

    handed_over: set[str] = set()
    relation = store.relation

    def noted(name: str, columns: Mapping[str, Any]) -> AbstractContextManager[None]:
        handed_over.add(name)
        return relation(name, columns)

    monkeypatch.setattr(store, "relation", noted)
    for method in ("sql", "arrays"):
        monkeypatch.setattr(store, method, once_each(getattr(store, method)))


class Unasked(Policy):
    """A policy that nothing may ask."""

    def value(self, threshold: Threshold, rule_id: str) -> int | Fraction:
        raise AssertionError(f"{rule_id} asked for {threshold.name}")


def test_what_no_policy_changes_asks_none() -> None:
    known = everything_context()
    context = Context(known.store, known.window, known.quality, known.book, Unasked())
    for name in OF_NO_POLICY:
        getattr(context, name)
    with pytest.raises(AssertionError, match="asked for"):
        _ = context.late_limits


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.declaration.id)
def test_a_policy_at_either_end_of_the_range_is_evaluated(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least and the largest value that a policy file may set for each threshold, one at a time.

    Thresholds that all detectors of causes share are read in one place: one detector shows that. Effects that do not
    ask for this plugin's are made once, and what is asked of the evidence in the same words is answered once.
    """
    d = plugin.declaration
    shared = model.THRESHOLDS if d.id != "preempted" else ()
    context = contexts(d.id)[0]
    remembered(context.store, monkeypatch)
    plugin.evaluate(context)
    read = {k: v for k, v in vars(context).items() if k in OF_NO_POLICY}
    if d.kind == "chain":
        makers = tuple(once(make, context, read, d.id) for make in registry.effect_makers())
        monkeypatch.setattr(registry, "effect_makers", lambda: makers)
    for t in (t for t in d.thresholds if not t.fixed and t not in shared):
        low, high = allowed(t)
        assert low <= t.value <= high, t.name
        for value in (low, high):
            changed = Context(
                context.store, context.window, context.quality, context.book, Policy({(d.id, t.name): value}, "0" * 64)
            )
            vars(changed).update(read)
            assert isinstance(plugin.evaluate(changed), Found | NotEvaluated), t.name
