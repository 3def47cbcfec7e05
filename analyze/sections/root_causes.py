"""Section: what limits each inference engine, from the groups of its findings, or from the limiter without any.

One row per finding of an engine: the primary of each group, and those held under it with the reason. Where no rule
fired, one sentence says what limits the engine, or why nothing is said. Units: counts of sequences, shares 0–1, ns.
"""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Finding, Group, Quantity, Section, SectionTable, Statement
from gpuaudit.analyze.inference import gates, limiter
from gpuaudit.analyze.inference.grouping import LAYERS
from gpuaudit.analyze.inference.limiter import Limiter, Signals
from gpuaudit.analyze.inference.model import EngineRun, Number
from gpuaudit.analyze.inference.rows import rows_of

ORDER = 15

ID = "root_causes"
MAX_ROWS = 256

COLUMNS = (
    ("engine", "engine"), ("group", "group"), ("kind", "root"), ("role", "role"), ("finding", "finding"),
    ("rule", "rule"), ("score", "score"), ("reason", "why here"),
)  # fmt: skip

SENTENCES: dict[str, str] = {
    "traffic": "No rule fired on engine {engine}, and its traffic limits it: {running} sequences ran on average, "
    "fewer than {bound} (a quarter of the ridge, at least eight).{unevaluated}",
    "memory": "No rule fired on engine {engine}, and its memory limits it: KV use was {kv_mean} on average, {bound} or "
    "more, so far without preemptions or a queue.{unevaluated}",
    "hardware": "No rule fired on engine {engine}, and the hardware limits it: {why}; a token took {tpot}, its floor "
    "is {floor}.{unevaluated}",
    "prefill": "No rule fired on engine {engine}; chunks of prompts between the tokens limit it: {ratio} prompt tokens "
    "were computed per generated one.{unevaluated}",
    "framework": "No rule fired on engine {engine}, and none of traffic, memory, hardware and prefill limits it: what "
    "is left is {why}. A token took {tpot}, its floor is {floor}.{unevaluated}",
    "unknown": "No rule fired on engine {engine}, with traffic enough ({running} running on average): whether the "
    "hardware limits it cannot be told, {why}.{unevaluated}",
    "declined": "No rule fired on engine {engine}, and nothing is said of what limits it: {why}.{unevaluated}",
    "silent": "No rule fired on engine {engine}, and nothing is said of what limits it: {why}.{unevaluated}",
}

DEFINITIONS = (
    ("primary finding", "Of a group the finding of the lowest layer (memory 2, saturation 3, small batch 4, prefill "
     "and prefix reuse 5, configured limit 6), of one layer the one with the highest score."),
    ("held finding", "Supporting evidence: it is true as well, and follows from the primary finding or is to be looked "
     "at after it."),
    ("score", "Impact of the rule (1 to 5) times its confidence (0 to 1)."),
    ("limiter", "What limits an engine on which no rule fired. It needs three evaluable windows and fewer than two "
     "waiting requests: " + "; ".join(f"{t.name} {t.value} {t.unit}" for t in limiter.THRESHOLDS) + "."),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """The groups of every engine, or the limiter's sentence."""
    title, question = "Root causes of the engines", "What limits each inference engine, and what only follows from it?"
    if not context.engine_runs:
        reason = context.quality.source_reason("engines") or "no inference engine was recorded"
        return Section(ID, title, question, "not evaluated", reason, definitions=DEFINITIONS)
    found = {f.id: f for f in context.findings}
    statements, rows = [], []
    for run in context.engine_runs:
        mine = [g for g in context.groups if g.engine == str(run.engine)]
        statements.append(_grouped(run, mine, found) if mine else _limited(context, run))
        for g in mine:
            rows += _rows(run, g, found)
    grouped = sum(1 for r in context.engine_runs if any(g.engine == str(r.engine) for g in context.groups))
    reason = f"{grouped} of {len(context.engine_runs)} engines have findings"
    table = SectionTable("groups", "Findings by root cause", COLUMNS, tuple(rows[:MAX_ROWS]), (), len(rows[MAX_ROWS:]))
    tables = (table,) if rows else ()
    return Section(
        ID, title, question, "evaluated", reason, tuple(statements), tables, definitions=DEFINITIONS
    )  # fmt: skip


def _grouped(run: EngineRun, mine: list[Group], found: dict[str, Finding]) -> Statement:
    """The first group's primary finding, and how many others there are."""
    first = found[mine[0].primary]
    held = sum(len(g.supporting) for g in mine)
    formula = "groups of the engine in the order of their primaries' layers"
    evidence = first.evidence
    return Statement(
        "Engine {engine} is limited by {cause} first (finding {finding}); groups of findings: {groups}, held as "
        "supporting evidence: {held}.",
        {
            "engine": gates.name_of(run), "cause": _title(first.rule), "finding": first.id,
            "groups": Quantity(len(mine), "count", "derived", evidence, formula),
            "held": Quantity(held, "count", "derived", evidence, "findings that another one of the engine holds"),
        },
    )  # fmt: skip


def _rows(run: EngineRun, group: Group, found: dict[str, Finding]) -> list[tuple[Quantity | str | None, ...]]:
    told = [(group.primary, "primary", "nearest to the root of its group"), *_held(group)]
    return [
        (
            gates.name_of(run), group.id, group.kind, role, finding, _title(found[finding].rule),
            _score(found[finding]), reason,
        )
        for finding, role, reason in told
    ]  # fmt: skip


def _held(group: Group) -> list[tuple[str, str, str]]:
    return [(finding, "held", reason) for finding, reason in group.supporting]


def _score(finding: Finding) -> Quantity:
    return Quantity(
        finding.score, "count", "derived", finding.evidence, "impact (1 to 5) × confidence (0 to 1)",
        "" if finding.score is not None else "no score",
    )  # fmt: skip


def _title(rule: str) -> str:
    from gpuaudit.analyze.registry import plugins  # noqa: PLC0415 - the registry imports the sections

    return next(p.declaration.title for p in plugins() if p.declaration.id == rule)


def _limited(context: Context, run: EngineRun) -> Statement:
    """The limiter's sentence, with the rules that could not be evaluated: they might have fired."""
    signals = limiter.signals_of(run)
    found = (
        limiter.limiter(signals) if run.state == "scraped" else Limiter("declined", f"it was not scraped: {run.reason}")
    )
    blind = [_title(rule).partition(" ")[0] for rule in sorted(LAYERS) if run.engine in context.unjudged.get(rule, ())]
    unevaluated = f" Rules that could not be evaluated: {', '.join(blind)}." if blind else ""
    return Statement(
        SENTENCES[found.kind],
        {
            "engine": gates.name_of(run), "why": found.reason, "unevaluated": unevaluated,
            **_values(context, run, signals, found),
        },
    )  # fmt: skip


def _values(context: Context, run: EngineRun, s: Signals, found: Limiter) -> dict[str, Quantity | str]:
    """Every number that one of the sentences may name."""
    means = "mean of the windows with traffic (all evaluable ones where there is none), weighted by duration"

    def told(value: Number | None, unit: str, formula: str, *meanings: str) -> Quantity:
        estimated = bool(meanings) and meanings[0] == "ceiling"
        rows = rows_of(context, run, () if estimated else meanings)
        reason = "" if value is not None else "not known"
        return Quantity(value, unit, "estimated" if estimated else "derived", rows, formula, reason)

    unit = {"memory": "share", "hardware": "ratio", "prefill": "ratio"}.get(found.kind, "count")
    return {
        "running": told(s.running, "count", means, "running"),
        "waiting": told(s.waiting, "count", means, "waiting"),
        "kv_mean": told(s.kv_mean, "share", "mean KV use of the evaluable windows, weighted by duration", "kv_use"),
        "tpot": told(_ns(s.tpot_ms), "ns", "sum / count of the histogram over active windows", "tpot"),
        "floor": told(_ns(s.floor_ms), "ns", "1 / decode ceiling", "ceiling"),
        "ratio": told(s.ratio, "ratio", "prompt tokens/s / generated tokens/s", "prompt_tokens", "generation_tokens"),
        "bound": _bound(context, run, s, found, unit),
    }


def _bound(context: Context, run: EngineRun, s: Signals, found: Limiter, unit: str) -> Quantity:
    """What the deciding value was compared with: a threshold, or one that the ridge has part in."""
    if found.kind == "traffic" and s.ridge is not None:
        formula = "max(0.25 × ridge, 8)"
        return Quantity(found.bound, unit, "estimated", rows_of(context, run, ()), formula)
    return Quantity(found.bound, unit, "assumed", (), "", "" if found.bound is not None else "none")


def _ns(ms: Number | None) -> Fraction | None:
    return None if ms is None else Fraction(ms) * 10**6
