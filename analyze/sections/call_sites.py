"""Section: from where slow calls were made, by operation and place in the program. Definitions: ``call_sites.py``."""

from __future__ import annotations

from gpuaudit.analyze import call_sites
from gpuaudit.analyze.aggregates import text
from gpuaudit.analyze.call_meanings import OUTERMOST
from gpuaudit.analyze.call_sites import NO_FRAMES, TABLES, WITH_STACK, Site
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.drafts import derived
from gpuaudit.analyze.finding import Quantity, Section, SectionTable, Statement
from gpuaudit.analyze.store import NOT_OWN

ORDER = 36

ID = "call_sites"
TITLE = "Call sites"
QUESTION = "From where in the program were the calls made that took long?"

MAX_SITES = 40
"""Sites of the table, those with the most time."""
MAX_STACKS_SHOWN = 8
"""Sites whose stack is written out."""
MAX_STACK_TEXT = 3_000
"""Characters of a stack in a cell, which may have 4,096 (``analyze/schema.py``)."""
STATED = 3
"""Sites that are said in words."""

SLOW_NS = 1_000_000
"""From which duration a capture takes the stack of a call unless told otherwise (``--stack-threshold``)."""

Cell = Quantity | str | None

COLUMNS = (
    ("op", "call"), ("place", "made at"), ("native", "innermost native frame"), ("processes", "processes"),
    ("calls", "calls"), ("time", "time"), ("longest", "longest"), ("share", "of the time in this call"),
)  # fmt: skip
STACKS = (
    ("op", "call"), ("longest", "longest"), ("python", "Python frames, innermost first"),
    ("native", "native frames, innermost first"),
)  # fmt: skip

DEFINITIONS = (
    ("site", "An operation and the innermost Python frame of the stack that its calls returned to, with the line that "
     "was executing; the innermost named native frame where no Python ran."),
    ("time of a site", "Durations of its calls with a stack, made inside no other recorded call."),
    ("share", "Time of the site over the time of all outermost calls of the operation, those without a stack and those "
     "aggregated in the kernel included: what is left of the whole has no known site."),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """Sites by time, and the stack of the longest call of the first of them."""
    found = call_sites.sites(context.store, limit=MAX_SITES + 1)
    slow, without = _slow_without(context)
    if not found:
        why = context.quality.source_reason("stacks") or (
            f"no stack was taken of any call; {slow} calls took 1 ms or more" if slow else "no call took 1 ms or more"
        )
        return Section(ID, TITLE, QUESTION, "not evaluated", why, definitions=DEFINITIONS)
    totals = call_sites.time_by_operation(context.store)
    shown, more = found[:MAX_SITES], len(found) - len(found[:MAX_SITES])
    notes = []
    if without:
        notes.append(f"{without} of {slow} calls of 1 ms and more have no stack, and stand at no site.")
    if more:
        notes.append(f"The {MAX_SITES} sites with the most time are listed; there are more.")
    tables = (
        SectionTable("sites", "Call sites by time", COLUMNS, tuple(_row(context, s, totals) for s in shown),
                     tuple(notes)),
        SectionTable("stacks", "Stacks of the longest calls", STACKS,
                     tuple(_stack(context, s) for s in shown[:MAX_STACKS_SHOWN])),
    )  # fmt: skip
    told = f"{sum(s.calls for s in shown)} calls with a stack, at {len(shown)} sites"
    statements = tuple(_statement(context, s) for s in shown[:STATED])
    return Section(
        ID, TITLE, QUESTION, "evaluated", told, statements, tables, (), DEFINITIONS, tuple(_unnamed(context))
    )


def _slow_without(context: Context) -> tuple[int, int]:
    """Outermost calls of at least :data:`SLOW_NS`, and how many of them have no stack."""
    slow = without = 0
    for t in TABLES:
        ((n, bare),) = context.store.sql(
            f"SELECT count(*), count(*) FILTER (NOT {WITH_STACK}) FROM {t} "
            f"WHERE {NOT_OWN} AND {OUTERMOST} AND duration_ns >= {SLOW_NS}"
        )
        slow, without = slow + int(n), without + int(bare)
    return slow, without


def _row(context: Context, s: Site, totals: dict[tuple[str, str], int]) -> tuple[Cell, ...]:
    rows = (context.book.where(s.table, s.where),)
    part = call_sites.share(s, totals)
    return (
        text(s.op), s.place or NO_FRAMES, s.native or None,
        derived(s.processes, "count", rows, "processes of the calls"),
        derived(s.calls, "count", rows, "calls with a stack at this site"),
        derived(s.ns, "ns", rows, "sum of duration_ns"),
        derived(s.longest_ns, "ns", rows, "longest duration_ns", "none of them returned within the capture"),
        derived(part, "share", rows, "time of the site / time in outermost calls of the operation",
                "no time in the operation was recorded"),
    )  # fmt: skip


def _stack(context: Context, s: Site) -> tuple[Cell, ...]:
    rows = (context.book.where(s.table, s.where),)
    python = call_sites.frames(context.store, s.python_stack, "python")
    native = call_sites.frames(context.store, s.native_stack, "native")
    return (
        text(s.op),
        derived(s.longest_ns, "ns", rows, "longest duration_ns", "none of them returned within the capture"),
        _joined(python) or "no Python frame was recorded", _joined(native) or "no native frame was recorded",
    )  # fmt: skip


def _joined(frames: list[str]) -> str:
    """Frames in one text, as many as a cell has room for."""
    shown, room = [], MAX_STACK_TEXT
    for frame in frames:
        room -= len(frame) + 3
        if room < 0:
            shown.append("…")
            break
        shown.append(frame)
    return " ← ".join(shown)


def _statement(context: Context, s: Site) -> Statement:
    rows = (context.book.where(s.table, s.where),)
    values: dict[str, Quantity | str] = {
        "op": text(s.op), "time": derived(s.ns, "ns", rows, "sum of duration_ns"),
        "calls": derived(s.calls, "count", rows, "calls with a stack at this site"), "place": s.place or NO_FRAMES,
        "longest": derived(s.longest_ns, "ns", rows, "longest duration_ns", "none returned within the capture"),
    }  # fmt: skip
    return Statement("{op} {time} in {calls} calls, the longest {longest} … {place}", values)


def _unnamed(context: Context) -> list[str]:
    rows = context.store.sql(
        "SELECT kind, reason, count(DISTINCT stack) FROM stack_frames WHERE reason IS NOT NULL GROUP BY 1, 2 "
        "ORDER BY 3 DESC, 1, 2 LIMIT 8"
    )
    return [f"In {n} stacks a {kind} frame could not be named: {str(reason)[:256]}." for kind, reason, n in rows]
