"""Every rule and chain detector: whatever module lies in ``analyze/rules`` or ``analyze/chains``, in order of name.

Such a module has ``DECLARATION`` and ``evaluate``; nothing has to be registered anywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from gpuaudit.analyze import chains, rules
from gpuaudit.analyze.context import Context, Outcome
from gpuaudit.analyze.finding import Declaration


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
