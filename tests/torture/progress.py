"""A progress bar on stderr for loops that take minutes; silent where nobody watches."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import Progress as Bar


class Progress:
    """``with Progress(title, total) as p: … p.step()``."""

    def __init__(self, title: str, total: int) -> None:
        console = Console(stderr=True)
        self._bar = Bar(console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def step(self, count: int = 1) -> None:
        """``count`` more are done."""
        self._bar.advance(self._task, count)
