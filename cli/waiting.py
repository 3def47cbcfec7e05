"""A sign of life on stderr while a command works for more than a moment."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


def waiting(what: str) -> AbstractContextManager[object]:
    """Show ``what`` with a spinner while the block runs; nothing where stderr is no terminal. ``what`` is ours."""
    from rich.console import Console

    console = Console(stderr=True)
    return console.status(what) if console.is_terminal else nullcontext()
