"""Every rule, chain detector and section: whatever module lies in ``rules``, ``chains`` or ``sections``.

A rule or detector has ``DECLARATION`` and ``evaluate(context) -> Found | NotEvaluated``; a detector of causes has
``DECLARATION`` and ``DETECTOR`` instead (:mod:`gpuaudit.analyze.causal`), a kind of effect ``KIND`` and
``effects(context)``, and ``DECLARATION`` where it decides by thresholds of its own; a section has ``ORDER`` (where it
stands, ascending) and ``evaluate(context) -> Section``. Nothing has to be registered anywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from gpuaudit.analyze import chains, effects, rules, sections
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.finding import Declaration, Section


@dataclass(frozen=True)
class Plugin:
    """One rule or chain detector."""

    module: str
    declaration: Declaration
    evaluate: Callable[[Context], Outcome]


@cache
def plugins() -> tuple[Plugin, ...]:
    """Rules, then chains, each by name."""
    return tuple(_load(name) for package in (rules, chains) for name in _modules(package))


@cache
def declarations() -> tuple[Declaration, ...]:
    """Of rules, then of chains, then of effects that have one, each by name: whatever a policy may set is in them."""
    made = [importlib.import_module(name) for name in _modules(effects)]
    return (*(p.declaration for p in plugins()), *(m.DECLARATION for m in made if hasattr(m, "DECLARATION")))


def _modules(package: ModuleType) -> list[str]:
    return sorted(f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)


def _load(name: str) -> Plugin:
    module = importlib.import_module(name)
    return Plugin(name, module.DECLARATION, getattr(module, "evaluate", None) or _of_causes(module.DECLARATION.id))


def _of_causes(name: str) -> Callable[[Context], Outcome]:
    """What a detector of causes found: all of them are run together, once."""

    def evaluate(context: Context) -> Outcome:
        """What came of looking for this cause in every effect."""
        return context.causal.outcomes[name]

    return evaluate


@cache
def detector_modules() -> tuple[ModuleType, ...]:
    """Files of ``chains`` that find causes."""
    modules = [importlib.import_module(name) for name in _modules(chains)]
    return tuple(m for m in modules if hasattr(m, "DETECTOR"))


@cache
def effect_makers() -> tuple[Callable[[Context], Sequence[Effect]], ...]:
    """What finds each kind of effect, by name."""
    return tuple(importlib.import_module(name).effects for name in _modules(effects))


@cache
def section_makers() -> tuple[Callable[[Context], Section], ...]:
    """What makes each section, in the order of the report."""
    modules = [importlib.import_module(name) for name in _modules(sections)]
    return tuple(m.evaluate for m in sorted(modules, key=lambda m: (m.ORDER, m.__name__)))
