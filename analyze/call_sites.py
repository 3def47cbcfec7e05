"""Where calls were made from: the innermost Python frame and the innermost named native frame of their stacks.

A stack is taken of calls that are slow, and of one in so many of the rest; a call without one says nothing of where it
came from. Time of a site: the durations of its calls that have a stack and were made inside no other recorded call.
Share of a site: that time over the time of all such calls of the operation, those without a stack and those aggregated
in the kernel included, so that what no stack explains is the rest. Units: ns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from gpuaudit.analyze.call_meanings import OUTERMOST
from gpuaudit.analyze.call_totals import OUTER
from gpuaudit.analyze.store import NOT_OWN, Store, is_text
from gpuaudit.analyze.words import duration

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

TABLES = ("cuda_calls", "nccl_calls", "nccl_comms")

WITH_STACK = "(python_stack IS NOT NULL OR native_stack IS NOT NULL)"
"""SQL condition of a call whose stack was taken."""

MAX_STACKS = 200
"""Stacks that a query names one by one (about 4 kB of SQL); past it the site's rows are told by their operation."""

MAX_FRAMES = 24
"""Frames of one stack that are written out, the innermost first."""

MAX_TEXT = 160
"""Characters of a path or symbol; longer ones lose their beginning, which tells least."""

NO_FRAMES = "no frame of its stack could be named"

_FRAMES = """
py AS (SELECT stack, path, line, symbol FROM stack_frames WHERE kind = 'python' AND symbol IS NOT NULL
  QUALIFY row_number() OVER (PARTITION BY stack ORDER BY depth, leaf, row) = 1),
native AS (SELECT stack, path, symbol, symbol_offset, "offset" AS at FROM stack_frames WHERE kind = 'native'
  AND path IS NOT NULL QUALIFY row_number() OVER (PARTITION BY stack ORDER BY symbol IS NULL, depth, leaf, row) = 1)
"""

_SITES = """
WITH {frames}, calls AS ({calls})
SELECT t, op, py.path, py.line, py.symbol, count(*), count(DISTINCT pid), coalesce(sum(ns), 0)::HUGEINT, max(ns),
  arg_max(python_stack, coalesce(ns, 0)), arg_max(native_stack, coalesce(ns, 0)),
  list(DISTINCT coalesce(python_stack, native_stack) ORDER BY coalesce(python_stack, native_stack)),
  any_value(native.path ORDER BY ns DESC NULLS LAST, native.path), any_value(native.symbol ORDER BY ns DESC NULLS LAST,
  native.symbol), any_value(native.at ORDER BY ns DESC NULLS LAST, native.at)
FROM calls LEFT JOIN py ON py.stack = python_stack LEFT JOIN native ON native.stack = native_stack
GROUP BY t, op, py.path, py.line, py.symbol, CASE WHEN py.symbol IS NULL THEN coalesce(native.symbol, native.path) END
ORDER BY 8 DESC, 1, 2, 3, 4, 5 LIMIT {limit}
"""


@dataclass(frozen=True)
class Site:
    """One operation at one place. ``place`` is "train.py:142 in forward()", or the native frame where no Python ran."""

    table: str
    op: str
    place: str
    native: str
    calls: int
    processes: int
    ns: int
    longest_ns: int | None
    python_stack: int | None
    native_stack: int | None
    where: str


def sites(store: Store, condition: str = "true", tables: Iterable[str] = TABLES, limit: int = 100) -> list[Site]:
    """Sites of the calls that meet an SQL condition, by time, the most first; none where no call has a stack."""
    parts = " UNION ALL ".join(
        f"SELECT '{t}' AS t, op, pid, duration_ns AS ns, python_stack, native_stack FROM {t} "
        f"WHERE {NOT_OWN} AND {OUTERMOST} AND {WITH_STACK} AND ({condition})"
        for t in tables
    )
    rows = store.sql(_SITES.format(frames=_FRAMES, calls=parts, limit=int(limit)))
    return [_site(row, condition) for row in rows]


def _site(row: tuple[object, ...], condition: str) -> Site:
    table, op, path, line, symbol, calls, pids, ns, longest, python, native, stacks = row[:12]
    native_text = _native(row[12], row[13], row[14])
    place = _python(path, line, symbol) if symbol is not None else native_text
    ids = [int(s) for s in stacks] if isinstance(stacks, list) else []
    named = ", ".join(map(str, ids))
    one_of = f"coalesce(python_stack, native_stack) IN ({named})" if len(ids) <= MAX_STACKS else WITH_STACK
    where = f"{is_text('op', str(op))} AND {NOT_OWN} AND {OUTERMOST} AND {one_of}"
    where += "" if condition == "true" else f" AND ({condition})"
    return Site(
        str(table), str(op), place, native_text, _int(calls), _int(pids), _int(ns), _int_or_none(longest),
        _int_or_none(python), _int_or_none(native), where,
    )  # fmt: skip


def sentence(context: Context, condition: str, limit: int = 3) -> str:
    """Where the calls of ``cuda_calls`` that meet a condition came from, in words, for a finding."""
    found = sites(context.store, condition, ("cuda_calls",), limit)
    if not found:
        return "not recorded (no stack was taken of them)"
    shown = [f"{_tail(s.op)} {duration(s.ns)} in {s.calls} calls at {s.place or NO_FRAMES}" for s in found]
    return "; ".join(shown)


def time_by_operation(store: Store) -> dict[tuple[str, str], int]:
    """ns in outermost calls by table and operation, those aggregated in the kernel included."""
    rows: list[tuple[object, ...]] = []
    for t in TABLES:
        rows += store.sql(
            f"SELECT '{t}', op, coalesce(sum(duration_ns), 0)::HUGEINT FROM {t} "
            f"WHERE {NOT_OWN} AND {OUTERMOST} GROUP BY op"
        )
    out = {(str(t), str(op)): _int(ns) for t, op, ns in rows}
    for op, ns in store.sql(
        f"SELECT op, sum(sum_ns)::HUGEINT FROM call_totals WHERE {NOT_OWN} AND {OUTER} GROUP BY op"
    ):
        table = "nccl_calls" if str(op).startswith("nccl") else "cuda_calls"
        out[table, str(op)] = out.get((table, str(op)), 0) + int(ns)
    return out


def share(site: Site, totals: dict[tuple[str, str], int]) -> Fraction | None:
    """The site's part of the time of its operation."""
    total = totals.get((site.table, site.op), 0)
    return Fraction(site.ns, total) if total else None


def frames(store: Store, stack: int | None, kind: str) -> list[str]:
    """A stack in words, the innermost frame first; empty where there is none."""
    if stack is None:
        return []
    rows = store.sql(
        'SELECT path, line, symbol, "offset", reason FROM stack_frames '
        f"WHERE stack = {int(stack)} AND kind = '{kind}' ORDER BY depth, leaf, row LIMIT {MAX_FRAMES}"
    )
    out = []
    for path, line, symbol, offset, reason in rows:
        named = _python(path, line, symbol) if kind == "python" else _native(path, symbol, offset)
        out.append(named or f"({reason or 'not named'})")
    return out


def _python(path: object, line: object, symbol: object) -> str:
    if symbol is None:
        return ""
    file = _tail(str(path or "?"))
    where = f"{file}:{line}" if line is not None else file
    return f"{where} in {_tail(str(symbol))}()"


def _native(path: object, symbol: object, offset: object) -> str:
    if path is None and symbol is None:
        return ""
    file = _tail(str(path or "?").rpartition("/")[2])
    if symbol is not None:
        return f"{_tail(str(symbol))} ({file})"
    return f"{file}+{int(str(offset)):#x}" if offset is not None else file


def _tail(text: str) -> str:
    return text if len(text) <= MAX_TEXT else "…" + text[1 - MAX_TEXT :]


def _int(value: object) -> int:
    return int(str(value))


def _int_or_none(value: object) -> int | None:
    return None if value is None else int(str(value))
