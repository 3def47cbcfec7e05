"""Section: what another tool concluded and stored with its recording, quoted, and what our evidence says to it."""

from __future__ import annotations

from collections import Counter

from gpuaudit.analyze import stored_claims
from gpuaudit.analyze.aggregates import text
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.drafts import derived
from gpuaudit.analyze.finding import Quantity, Section, SectionTable, Statement
from gpuaudit.analyze.store import is_text
from gpuaudit.analyze.stored_claims import Claim, Judgement

ORDER = 38

ID = "stored_conclusions"
TITLE = "Stored conclusions of another tool"
QUESTION = "What did the tool that recorded this conclude, and what do its own rows say to that?"

STATED = 8
"""Claims that are said in words, those stored most often."""

MEANINGS = {
    "off_cpu": "its thread was off a CPU", "block_io": "disk requests", "host_cpu": "full CPUs",
    "host_memory": "memory of the host", "network": "the network", "nothing": "nothing", "other": "something else",
}  # fmt: skip

COLUMNS = (
    ("claim", "stored conclusion (the last of its kind)"), ("stored", "times"), ("severity", "as severe"),
    ("op", "operation"), ("alleged", "names as cause"), ("verdict", "our evidence"), ("why", "because"),
    ("calls", "calls with rows"), ("touched", "of them touched by the cause"), ("slow", "time of the slow ones"),
    ("watched", "of it watched"), ("overlap", "of that covered by the cause"),
)  # fmt: skip

OFF_CPU = (("process", "process"), ("role", "role"), ("off_cpu", "time off a CPU, by rows"))

DEFINITIONS = (
    ("stored conclusion", "A text that the recording tool stored. It is quoted, and is evidence of nothing; where no "
     "row shows what it says, the evidence is absent."),
    ("slow calls", "Calls of the operation at least as long as the p99 that the conclusion states; where none has a "
     "row, those longer than three times the median it states; else all."),
    ("watched", "The part of the slow calls in which the cause would have been seen: from the first to the last time "
     "off a CPU of their thread, from the first to the last disk request of the host, the second before each sample."),
    ("verdict", "Supported: the cause covers a quarter of the watched time at least. Refuted: less than a twentieth; "
     "or, of time off a CPU, four fifths of it were waits for disk requests of the same process. Unsupported: anything "
     "else, and whenever nothing was watched."),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """Every different claim with its verdict."""
    if not context.store.row_count("stored_conclusions"):
        return Section(
            ID, TITLE, QUESTION, "not evaluated", "the bundle holds no conclusion of another tool",
            definitions=DEFINITIONS,
        )  # fmt: skip
    found, more = stored_claims.claims(context)
    judged = [(c, stored_claims.judge(context, c)) for c in found]
    counts = Counter(j.verdict for _, j in judged)
    told = ", ".join(f"{counts[v]} {v}" for v in ("supported", "refuted", "unsupported") if counts[v])
    table = SectionTable(
        "claims", "Claims and verdicts", COLUMNS, tuple(_row(context, c, j) for c, j in judged),
        ("A conclusion that names several causes stands once for each of them.",), more,
    )  # fmt: skip
    statements = tuple(_statement(context, c, j) for c, j in judged[:STATED])
    tables = (table, *_whose_time(context, [c for c in found if c.stated_off_cpu_ns]))
    return Section(ID, TITLE, QUESTION, "evaluated", f"claims: {told}", statements, tables, (), DEFINITIONS)


def _evidence(context: Context, claim: Claim, judgement: Judgement) -> tuple[str, ...]:
    stored = context.book.where("stored_conclusions", claim.where)
    calls = () if "cuda_calls" not in judgement.tables else (context.book.where("cuda_calls", is_text("op", claim.op)),)
    others = tuple(t for t in judgement.tables if t != "cuda_calls")
    return (stored, *calls, *context.book.present(others, "true"))


def _row(context: Context, c: Claim, j: Judgement) -> tuple[Quantity | str | None, ...]:
    evidence = _evidence(context, c, j)

    def ns(value: int | None, formula: str) -> Quantity:
        return derived(value, "ns", evidence, formula, "no such row")

    return (
        f"“{text(c.summary)}”", derived(c.count, "count", evidence, "stored conclusions that name both"),
        text(c.severity), text(c.op) or None, MEANINGS.get(c.alleged, text(c.alleged)), j.verdict, j.why,
        derived(j.calls, "count", evidence, "calls of the operation"),
        derived(j.touched, "count", evidence, "calls that share a moment with the cause", "nothing to compare"),
        ns(j.slow_ns, "time of its slow calls"), ns(j.watched_ns, "slow calls within time watched"),
        ns(j.overlap_ns, "slow calls within cause"),
    )  # fmt: skip


def _statement(context: Context, c: Claim, j: Judgement) -> Statement:
    count = derived(c.count, "count", _evidence(context, c, j), "stored conclusions that name both")
    told = {
        "tool": text(c.tool), "op": text(c.op) or "no operation", "alleged": MEANINGS.get(c.alleged, text(c.alleged)),
        "summary": text(c.summary), "verdict": j.verdict, "why": j.why,
    }  # fmt: skip
    absent = "stored conclusion, evidence absent" if j.why.startswith("evidence absent") else "stored conclusion"
    return Statement(
        f"{absent[:1].upper()}{absent[1:]} (stored {{count}} times by {{tool}}): “{{summary}}” – that {{alleged}} "
        "slowed {op} is {verdict}: {why}.",
        {**told, "count": count},
    )


def _whose_time(context: Context, stating: list[Claim]) -> list[SectionTable]:
    """Whose the time off a CPU is, where a conclusion states some without saying whose."""
    if not stating:
        return []
    rows = stored_claims.all_off_cpu(context)
    roles = dict(context.store.sql("SELECT pid, arg_max(role, seen_ns) FROM processes GROUP BY pid"))
    shown = tuple(
        (
            text(f"{pid} ({context.process_name(pid)})"), text(roles.get(pid, "not recorded")),
            derived(ns, "ns", (context.book.where("off_cpu", f"pid = {pid}"),), "sum of its rows"),
        )
        for pid, ns in rows[:STATED]
    )  # fmt: skip
    most = max(c.stated_off_cpu_ns or 0 for c in stating)
    evidence = (context.book.where("stored_conclusions", "alleged_off_cpu_ns IS NOT NULL"),)
    stated = derived(most, "ns", evidence, "most time off a CPU that one of them states")
    note = "What the conclusions state is of all threads that the tool followed, idle ones included."
    return [
        SectionTable("stated", "Time off a CPU that the conclusions state", (("stated", "the most that one states"),),
                     ((stated,),), (note,)),
        SectionTable("whose", "Whose time off a CPU has rows", OFF_CPU, shown, (), max(0, len(rows) - len(shown))),
    ]  # fmt: skip
