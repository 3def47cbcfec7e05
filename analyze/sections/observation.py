"""Section: how calls were observed: where probes were attached and at what cost, what was not, lost or aggregated."""

from __future__ import annotations

from typing import Any

from gpuaudit.analyze import aggregates, call_totals, intervals
from gpuaudit.analyze.aggregates import Cell, Grouped, Key, Value, process, text
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.drafts import derived
from gpuaudit.analyze.finding import Section, SectionTable
from gpuaudit.analyze.store import NOT_OWN, is_text

ORDER = 90

ID = "observation"
TITLE = "How it was observed"
QUESTION = "How were probes attached, what did they cost, and what could they not see?"

MOST = 1 << 50
"""A counter or cost beyond it is not evidence; sums of products of two stay within 127 bits."""

EXAMPLES = 12
"""Names of functions that a row spells out; the list of libraries in the appendix has all of them."""

LAST = (
    'probes QUALIFY row_number() OVER (PARTITION BY library, op, path, coalesce("offset", 0) '
    "ORDER BY (duration_ns IS NOT NULL) DESC, leaf DESC, row DESC) = 1"
)
"""SQL: the last row of each probe; its counters are cumulative."""

DEFINITIONS = (
    ("mechanism", "uprobe_multi: one link for all functions of a file (Linux 6.6 and later). perf uprobe: one event "
     "for each function. tp_btf and raw_tp: a tracepoint of the kernel."),
    ("first instruction", "push and nop5 are emulated by the kernel; any other is single-stepped, which costs many "
     "times as much."),
    ("probe time", "Hits × the cost of one entry and return, as measured on this host before the capture."),
    ("not observed", "Functions that a mapped library exports and the probe table lacks: calls of them leave no row."),
    ("aggregated", "Above its budget the fast calls of a thread are counted in the kernel: number, sum and a histogram "
     "are exact, and no call has a row. Slow calls always have one."),
)  # fmt: skip

ATTACHED = (
    ("library", "library"), ("path", "file"), ("mechanism", "attached by"), ("instruction", "first instruction"),
    ("functions", "probes"), ("used", "hit"), ("hits", "hits"), ("unmatched", "unmatched"), ("missed", "missed"),
    ("cost", "cost of a pair"), ("time", "probe time"),
)  # fmt: skip
UNOBSERVED = (
    ("library", "library"), ("path", "file"), ("processes", "processes"), ("probes", "functions probed"),
    ("count", "exported, not observed"), ("examples", "among them"), ("reason", "why not, where not at all"),
)  # fmt: skip
FAST = (
    ("process", "process"), ("of", "calls of"), ("calls", "aggregated calls"), ("windows", "windows"),
    ("time", "time they cover"), ("start", "first begins after"),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """What the probes, libraries and counters tell."""
    made = (_attached(context), _unobserved(context), _lost(context), _aggregated(context))
    tables = tuple(t for t in made if t is not None)
    if not tables:
        why = "no probe was attached, and nothing was lost or aggregated"
        return Section(ID, TITLE, QUESTION, "not evaluated", why, definitions=DEFINITIONS)
    return Section(
        ID, TITLE, QUESTION, "evaluated", f"{len(tables)} of {len(made)} tables have rows", (), tables, (), DEFINITIONS
    )


def _attached(context: Context) -> SectionTable | None:
    rows = context.store.sql(
        "SELECT library, path, mechanism, instruction, count(*), count(*) FILTER (hits > 0), sum(hits)::HUGEINT, "
        "sum(unmatched)::HUGEINT, sum(misses)::HUGEINT, max(expected_cost_ns), "
        f"(sum(least(hits, {MOST})::HUGEINT * least(expected_cost_ns, {MOST})) "
        f"FILTER (hits IS NOT NULL AND expected_cost_ns IS NOT NULL))::HUGEINT FROM (SELECT * FROM {LAST}) "
        "GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4 NULLS LAST"
    )
    if not rows:
        return None
    cells = tuple(_attached_row(context, r) for r in rows[: aggregates.MAX_ROWS])
    return SectionTable("attached", "Probes by file, mechanism and first instruction", ATTACHED, cells, (),
                        max(0, len(rows) - len(cells)))  # fmt: skip


def _attached_row(context: Context, r: tuple[Any, ...]) -> tuple[Cell, ...]:
    library, path, mechanism, instruction, functions, used, hits, unmatched, missed, cost, time = r
    told = {"library": library, "path": path, "mechanism": mechanism, "instruction": instruction}
    where = " AND ".join(is_text(name, value) for name, value in told.items())
    rows = (context.book.where("probes", where),)
    not_counted = "the capture ended before it was counted"
    return (
        text(library), text(path) or "the kernel", text(mechanism), None if instruction is None else text(instruction),
        derived(int(functions), "count", rows, "probes"), derived(int(used), "count", rows, "probes with a hit"),
        derived(_whole(hits), "count", rows, "sum of hits, of the last row of each probe", not_counted),
        derived(_whole(unmatched), "count", rows, "sum of unmatched", not_counted),
        derived(_whole(missed), "count", rows, "sum of misses", not_counted),
        derived(_whole(cost), "ns", rows, "largest expected_cost_ns", "it was not measured"),
        derived(_whole(time), "ns", rows, "sum of hits × expected_cost_ns", "the cost or the hits are not known"),
    )  # fmt: skip


def _unobserved(context: Context) -> SectionTable | None:
    rows = context.store.sql(
        "SELECT library, path, count(DISTINCT pid), max(probes), max(not_observed_count), max(not_observed), "
        "max(reason) "
        f"FROM libraries WHERE {NOT_OWN} GROUP BY 1, 2, build_id ORDER BY 1, 2, 3, 5"
    )
    if not rows:
        return None
    cells = []
    for library, path, pids, probes, count, names, reason in rows[: aggregates.MAX_ROWS]:
        where = f"{is_text('library', library)} AND {is_text('path', path)}"
        evidence = (context.book.where("libraries", where),)
        listed = [n for n in str(names or "").split(",") if n]
        known = len(listed) if count is None and listed else _whole(count)
        shown = ", ".join(n[:64] for n in listed[:EXAMPLES])
        cells.append((
            text(library), text(path), derived(int(pids), "count", evidence, "distinct processes"),
            derived(int(probes), "count", evidence, "most functions probed"),
            derived(known, "count", evidence, "exported functions of the library's name pattern without a row",
                    text(reason) if reason else "the file's exports were not read"),
            shown + (" …" if len(listed) > EXAMPLES else "") if listed else None,
            None if reason is None else text(reason),
        ))  # fmt: skip
    return SectionTable("unobserved", "Libraries, and what they export that was not observed", UNOBSERVED, tuple(cells),
                        (), max(0, len(rows) - len(cells)))  # fmt: skip


def _lost(context: Context) -> SectionTable | None:
    ring = Grouped(
        "lost", "Records lost, by table and CPU", "losses",
        (Key("table", "table", "table_name"), Key("cpu", "CPU", "cpu")),
        (Value("seen", "seen", "max(seen)", "count", "last of the cumulative counter"),
         Value("lost", "lost", "max(lost)", "count", "last of the cumulative counter")),
        '"lost"', "(table_name, cpu) IN (SELECT (table_name, cpu) FROM losses WHERE lost > 0)",
        ("From when to when they were lost is told by the gaps.",),
    )  # fmt: skip
    return aggregates.table(context, ring)


def _aggregated(context: Context) -> SectionTable | None:
    found = call_totals.by_process(context.store)
    if not found:
        return None
    name = process(context)
    cells = []
    for pid, table, calls, windows in found[: aggregates.MAX_ROWS]:
        rows = (context.book.where("call_totals", f"pid = {pid} AND {call_totals.OF_TABLE[table]}"),)
        begin = int(windows[0, 0]) - context.window.start_ns if len(windows) else None
        cells.append((
            name(pid), table, derived(calls, "count", rows, "sum of count"),
            derived(len(windows), "count", rows, "stretches of time without a break"),
            derived(intervals.measure(windows), "ns", rows, "first to last call of the buckets, each moment once"),
            derived(begin, "ns", rows, "begin of the first − start of the capture", "no time was told"),
        ))  # fmt: skip
    return SectionTable("aggregated", "Calls aggregated in the kernel", FAST, tuple(cells), (),
                        max(0, len(found) - len(cells)))  # fmt: skip


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
