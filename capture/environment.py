"""Which variables of other processes' environments may be read: those that are listed, unless the site denies."""

from __future__ import annotations

from collections.abc import Callable


def _any(_: str) -> bool:
    return True


_allowed: Callable[[str], bool] = _any


def limit_variables(allowed: Callable[[str], bool] | None) -> None:
    """From now on this process keeps only variables for which ``allowed`` is true; None: whatever is listed."""
    global _allowed  # noqa: PLW0603 - one site, one process
    _allowed = allowed or _any


def may_read(name: str) -> bool:
    """Whether a variable of this name may be kept."""
    return _allowed(name)
