"""Inference engines: which were found, how they were set, how well they could be watched, and what they served."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Provenance, Quantity, Section, SectionChart, SectionTable, Statement
from gpuaudit.analyze.inference.measures import measures
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.inference.series import read_series
from gpuaudit.analyze.inference.strips import strips
from gpuaudit.analyze.inference.windows import SECOND_NS

ORDER = 10

MAX_ENGINES = 16
"""Engines with tables of their own; the largest servers have 16 GPUs."""

MAX_TEXT = 256
"""Characters of a name or value that an engine told."""

TITLE = "Inference engines"
QUESTION = "Which engines served, how were they set, and what did their own metrics say?"

FIRST = (
    "model", "root", "version", "dtype", "quantization", "kv_cache_dtype", "max_model_len", "max_num_seqs",
    "max_num_batched_tokens", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
    "gpu_memory_utilization", "block_size", "num_gpu_blocks", "kv_cache_size_tokens", "kv_cache_max_concurrency",
    "enable_prefix_caching", "enable_chunked_prefill", "enforce_eager", "num_gpu_blocks_override",
    "kv_offloading_size", "engine_version", "unreadable",
)  # fmt: skip
"""Settings that conclusions depend on, in the order of their table; of all others it says how to list them."""

DEFINITIONS = (
    ("window", "10 s of an engine's polls, 2 s where they cover 30 s or less; the last one is what is left."),
    ("evaluable window", "A window with two polls at least whose number of running requests is known."),
    ("active window", "An evaluable window in which a request ran or waited at its last poll, or a token per second "
     "was generated."),
    ("rate", "What a counter gained over a window, by the time between the polls at its two ends. A window in which "
     "the server was restarted has none."),
    ("quantile", "Of the buckets of all active windows put together, linear inside a bucket. Quantiles of windows are "
     "never averaged."),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """The section; not evaluated where no engine answered."""
    runs = context.engine_runs
    if not runs:
        reason = context.quality.source_reason("engines") or "no inference engine was found or named"
        return Section("engines", TITLE, QUESTION, "not evaluated", reason)
    shown = [r for r in runs if r.windows][:MAX_ENGINES]
    tables = [_found(context, runs)]
    if shown:
        tables.append(_windows(context, shown))
    for run in shown:
        tables += [_measured(context, run), _settings(run), *_by_index(context, run)]
    return Section(
        "engines", TITLE, QUESTION, "evaluated" if shown else "not evaluated",
        "" if shown else "; ".join(f"engine {r.engine}: {_why(r)}" for r in runs),
        statements=tuple(s for r in runs for s in _statements(context, r)), tables=tuple(tables),
        charts=tuple(_chart(context, r) for r in shown), definitions=DEFINITIONS,
        notes=tuple(_notes(runs, shown)),
    )  # fmt: skip


def _short(text: str) -> str:
    """Text of an engine, cut where no setting of anything is as long."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _why(run: EngineRun) -> str:
    return _short(run.reason) or ("no poll succeeded" if run.failed else "it was not polled")


def _scrapes(context: Context, run: EngineRun, condition: str = "") -> tuple[str, ...]:
    return (context.book.where("engine_scrapes", f"{run.where}{condition}"),)


def _count(value: int, evidence: tuple[str, ...], formula: str = "") -> Quantity:
    return Quantity(value, "count", "measured", evidence, formula)


def _time(seconds: Fraction | None, evidence: tuple[str, ...], formula: str, reason: str = "") -> Quantity:
    value = None if seconds is None else seconds * SECOND_NS
    return Quantity(value, "ns", "derived", evidence, formula, "" if value is not None else reason)


def _statements(context: Context, run: EngineRun) -> Iterator[Statement]:
    """What the reader has to know of one engine before its tables."""
    name = {"engine": str(run.engine), "url": _short(run.url), "kind": run.kind}
    if run.remote:
        yield Statement(
            "Engine {engine} at {url} is not on this host: it was asked over the network because --allow-remote "
            "named it.",
            {**name},
        )
    if not run.windows:
        yield Statement("Engine {engine} at {url} was not read: {reason}.", {**name, "reason": _why(run)})
        return
    yield _served(context, run, name)
    polls = _scrapes(context, run)
    if run.failed:
        yield Statement(
            "{failed} of {polls} polls of engine {engine} brought no answer. The longest time without one was {gap}.",
            {
                **name, "failed": _count(run.failed, _scrapes(context, run, " AND op <> 'ok'")),
                "polls": _count(run.failed + run.scrapes, polls), "gap": _gap(run, polls),
            },
        )  # fmt: skip
    if run.resets:
        yield Statement(
            "Restarts of engine {engine}: {resets}. Its counters began at zero each time, and the windows of the "
            "restarts have no rates.",
            {**name, "resets": _count(run.resets, _scrapes(context, run, " AND reset = 1"))},
        )
    for meaning, doubt in sorted(run.doubts.items()):
        yield Statement(
            "Engine {engine} tells {meaning} by {metric} only: {doubt}.",
            {**name, "meaning": meaning.replace("_", " "), "metric": run.metrics[meaning], "doubt": doubt},
        )


def _served(context: Context, run: EngineRun, name: dict[str, str]) -> Statement:
    if run.totals.evaluable == 0:
        return Statement(
            "Engine {engine} ({kind}) answered {polls} polls, and no window of them can be evaluated: {reason}.",
            {
                **name, "polls": _count(run.scrapes, _scrapes(context, run)),
                "reason": run.absent.get("running", _why_no_window(run)),
            },
        )  # fmt: skip
    if run.totals.active == 0:
        return Statement(
            "Engine {engine} ({kind}, model {model}) had no active window among {windows}: at the last poll of none "
            "did a request run or wait, as far as it told, and none had a generated token per second.",
            {
                **name,
                "model": _short(run.model or "not told"),
                "windows": _count(len(run.windows), _scrapes(context, run)),
            },
        )
    told = {m.key: m.quantity for m in measures(context, run)}
    return Statement(
        "Engine {engine} ({kind}, model {model}) finished {requests} requests and generated {tokens}: {rate} over "
        "{time} of active windows.",
        {
            **name, "model": _short(run.model or "not told"), "requests": told["completed"],
            "tokens": told["generation_tokens"],
            "time": _time(run.totals.active_s, _scrapes(context, run), "Σ length of active windows"),
            "rate": told["generation_tps"],
        },
    )  # fmt: skip


def _why_no_window(run: EngineRun) -> str:
    if any(w.duration_s for w in run.windows):
        return "the gauge of running requests told no number that can be one at the end of any window"
    return "fewer than two polls in every window"


def _gap(run: EngineRun, evidence: tuple[str, ...]) -> Quantity:
    return _time(
        run.longest_gap_s,
        evidence,
        "max of the time between two complete answers, or from one to the last poll",
        "one poll only",
    )


def _found(context: Context, runs: list[EngineRun]) -> SectionTable:
    rows = []
    for run in runs[: 4 * MAX_ENGINES]:
        polls = _scrapes(context, run)
        rows.append((
            str(run.engine), run.kind, _short(run.url), run.model and _short(run.model), _short(run.found_by),
            _place(run), run.state if run.windows else _why(run),
            _count(run.scrapes, polls), _count(run.failed, polls), _gap(run, polls), _count(run.resets, polls),
            ", ".join(run.gpus) or run.gpu_join or None,
        ))  # fmt: skip
    columns = (
        ("engine", "engine"), ("kind", "kind"), ("url", "address"), ("model", "model"), ("found_by", "found by"),
        ("place", "where"), ("state", "state"), ("polls", "answers"), ("failed", "failed polls"),
        ("gap", "longest time between answers"), ("resets", "restarts"), ("gpus", "GPUs"),
    )  # fmt: skip
    notes = tuple(f"GPUs of engine {r.engine}: {r.gpu_join}." for r in runs if r.gpu_join)
    return SectionTable(
        "found", "Engines that were found or named", columns, tuple(rows), notes, max(0, len(runs) - len(rows))
    )


def _place(run: EngineRun) -> str:
    if run.url.startswith("file:"):
        return "a recording of some host"
    return "another host, by --allow-remote" if run.remote else "this host"


def _windows(context: Context, runs: list[EngineRun]) -> SectionTable:
    rows = []
    for run in runs:
        polls, t = _scrapes(context, run), run.totals
        rows.append((
            str(run.engine), _count(t.windows, polls), _count(t.evaluable, polls), _count(t.active, polls),
            _count(t.idle, polls), _time(t.evaluable_s, polls, "Σ length of evaluable windows"),
            _time(t.active_s, polls, "Σ length of active windows"),
            _count(sum(w.reset for w in run.windows), polls), _count(t.energy_windows, polls),
        ))  # fmt: skip
    columns = (
        ("engine", "engine"), ("windows", "windows"), ("evaluable", "evaluable"), ("active", "active"),
        ("idle", "idle"), ("evaluable_time", "evaluable time"), ("active_time", "active time"),
        ("restarted", "with a restart"), ("energy", "with power of the same time"),
    )  # fmt: skip
    return SectionTable("windows", "Windows of each engine", columns, tuple(rows))


def _measured(context: Context, run: EngineRun) -> SectionTable:
    rows = tuple((m.label, m.quantity, m.basis) for m in measures(context, run))
    columns = (("measure", "measure"), ("value", "value"), ("basis", "of"))
    return SectionTable(f"run_{run.engine}", f"What engine {run.engine} said of the whole capture", columns, rows)


def _settings(run: EngineRun) -> SectionTable:
    keys = [key for key in FIRST if key in run.config]
    rows = []
    for key in keys:
        s = run.config[key]
        source = f"{s.source} ({s.detail})" if s.detail else s.source
        others = "; ".join(f"{v} ({who})" for who, v in s.others)
        rows.append((_short(key), _short(s.value), _short(source), _short(others) or None))
    columns = (("setting", "setting"), ("value", "value"), ("source", "source"), ("others", "other sources say"))
    notes = [
        f"{key}: not told by any source." for key in ("model", "max_num_seqs", "max_model_len") if key not in run.config
    ]
    left = len(run.config) - len(keys)
    if left:
        notes.append(
            f"{left} more are in the bundle, none of which a rule reads; what the model's shape needs of them stands "
            f"in its own section: SELECT op, value, source FROM engine_config WHERE {run.where}"
        )
    return SectionTable(
        f"settings_{run.engine}", f"Settings of engine {run.engine}, each with its source", columns, tuple(rows),
        tuple(notes),
    )  # fmt: skip


def _by_index(context: Context, run: EngineRun) -> Iterator[SectionTable]:
    """KV use of each data-parallel engine; one index alone is in the table of measures."""
    if len(run.kv_by_index) < 2:
        return
    evidence = _scrapes(context, run)
    derived: Provenance = "derived"
    rows = tuple(
        (
            index,
            Quantity(mean, "share", derived, evidence, "mean over polls"),
            Quantity(peak, "share", "measured", evidence),
        )
        for index, (mean, peak) in run.kv_by_index.items()
    )
    columns = (("index", "engine index"), ("mean", "KV cache in use, mean"), ("peak", "highest"))
    yield SectionTable(
        f"kv_{run.engine}", f"KV cache of each data-parallel engine of engine {run.engine}", columns, rows
    )


def _chart(context: Context, run: EngineRun) -> SectionChart:
    series = read_series(context.store, run.engine, run.kind)
    series.hold()
    title = f"Queue, KV cache, tokens and latency of engine {run.engine}"
    return SectionChart("strips", f"engine_{run.engine}", title, strips(series, run.max_num_seqs))


def _notes(runs: list[EngineRun], shown: list[EngineRun]) -> Iterator[str]:
    left_out = sum(1 for r in runs if r.windows) - len(shown)
    if left_out:
        yield f"{left_out} more engines answered and have no tables here."
    for run in shown:
        if run.data_parallel > 1:
            yield (
                f"Engine {run.engine} reports {run.data_parallel} data-parallel engines: requests and counters are "
                "their sums, KV use is their mean and its peak that of the fullest one, seats are per engine index."
            )
        if run.absent:
            yield f"Engine {run.engine} did not export: {', '.join(sorted(run.absent))}."
