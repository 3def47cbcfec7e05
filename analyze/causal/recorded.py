"""Whether a detector could look at all: a table without rows says nothing unless its source was recording."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated


def unrecorded(context: Context, table: str, what: str, source: str = "") -> NotEvaluated | None:
    """Why the absence of ``what`` in ``table`` shows nothing; None where there are rows, or where the source (named as
    the table unless told) was recording, so that no row means that there was none."""
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this

    name = source or table
    if context.store.row_count(table) or any(
        s["source"] == name and s["state"] == "recorded" for s in context.quality.sources
    ):
        return None
    return NotEvaluated(context.quality.source_reason(name) or f"no {what} was recorded")
