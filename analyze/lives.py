"""When the processes that had an id lived, from the rows of ``processes``: an id may be used again."""

from __future__ import annotations

from gpuaudit.analyze.context import Context


def lives(context: Context, pid: int) -> list[tuple[int, int]]:
    """(start, end) of every process that had this id: to its exit, or to the end of the capture while it lived."""
    end = context.window.end_ns
    rows = context.store.sql(
        f"SELECT start_ns, max(end_ns) FROM processes WHERE pid = {pid} GROUP BY start_ns ORDER BY start_ns"
    )
    starts = [int(start) for start, _ in rows]
    following = [*starts[1:], end][: len(starts)]
    return [
        (start, min(end, upto if told is None else int(told)))
        for start, (_, told), upto in zip(starts, rows, following, strict=True)
    ]


def exit_ns(context: Context, pid: int) -> int | None:
    """When the last process of this id was seen to exit; None while it lived, or where nothing is known of it."""
    rows = context.store.sql(
        f"SELECT max(end_ns) FROM processes WHERE pid = {pid} GROUP BY start_ns ORDER BY start_ns DESC LIMIT 1"
    )
    return None if not rows or rows[0][0] is None else int(rows[0][0])
