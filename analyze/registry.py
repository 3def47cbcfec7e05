"""Every rule, chain detector and section: whatever module lies in ``rules``, ``chains`` or ``sections``.

A rule or detector has ``DECLARATION`` and ``evaluate(context) -> Found | NotEvaluated``; a section has ``ORDER`` (where
it stands, ascending) and ``evaluate(context) -> Section``. Nothing has to be registered anywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from gpuaudit.analyze import chains, rules, sections
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


def _modules(package: ModuleType) -> list[str]:
    return sorted(f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)


def _load(name: str) -> Plugin:
    module = importlib.import_module(name)
    return Plugin(name, module.DECLARATION, module.evaluate)


@cache
def section_makers() -> tuple[Callable[[Context], Section], ...]:
    """What makes each section, in the order of the report."""
    modules = [importlib.import_module(name) for name in _modules(sections)]
    return tuple(m.evaluate for m in sorted(modules, key=lambda m: (m.ORDER, m.__name__)))
