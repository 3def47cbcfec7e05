"""Processes that a process started, and what those started: its workers, whatever they are called.

From ``processes`` (parent) and ``lifecycle`` (forks that were seen). A process id that was used again counts as both.
"""

from __future__ import annotations

from collections import deque

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.store import NOT_OWN

MAX_WORKERS = 1_000
"""Descendants of one process that are looked at, by process id; a loader has tens."""


def descendants(context: Context, pid: int) -> tuple[int, ...]:
    """Children, their children, and so on, by process id; without the process itself and the recorder's own."""
    rows = context.store.sql(
        f"SELECT parent_pid, pid FROM processes WHERE parent_pid IS NOT NULL AND {NOT_OWN} UNION "
        f"SELECT pid, other_pid FROM lifecycle WHERE op = 'fork' AND other_pid IS NOT NULL AND {NOT_OWN}"
    )
    children: dict[int, list[int]] = {}
    for parent, child in rows:
        children.setdefault(int(parent), []).append(int(child))
    seen, todo = {pid}, deque([pid])
    while todo:
        for child in sorted(children.get(todo.popleft(), [])):
            if child not in seen:
                seen.add(child)
                todo.append(child)
    return tuple(sorted(seen - {pid}))[:MAX_WORKERS]
