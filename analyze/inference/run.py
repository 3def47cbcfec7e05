"""Every inference engine of a bundle, put together: who it is, its settings, its windows, its run, its ceilings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuaudit.analyze.inference import exact
from gpuaudit.analyze.inference.aggregate import aggregate
from gpuaudit.analyze.inference.baseline import Absent, Site, baseline
from gpuaudit.analyze.inference.gpus import find_gpus, gpu_windows
from gpuaudit.analyze.inference.model import EngineRun, Number
from gpuaudit.analyze.inference.model_facts import Recorded, model_facts
from gpuaudit.analyze.inference.names import COUNTERS, KINDS
from gpuaudit.analyze.inference.series import EngineSeries, Scrapes, read_series
from gpuaudit.analyze.inference.settings import rank, read_told, resolve
from gpuaudit.analyze.inference.windows import SECOND_NS, cut, gained, read_windows

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context
    from gpuaudit.analyze.store import Store

SCRAPED = "scraped"


OF_CEILINGS = (
    "model", "dtype", "quantization", "kv_cache_dtype", "tensor_parallel_size", "max_model_len",
    "gpu_memory_utilization",
)  # fmt: skip
"""Settings that ceilings and memory are computed from."""

ON_MIG = "its GPU is in MIG mode, and of a part of a GPU neither peak nor bandwidth is known"


@dataclass(frozen=True)
class _Named:
    """An engine as the recorder's table names it."""

    engine: int
    kind: str
    url: str
    pid: int | None
    found_by: str
    remote: bool
    state: str
    reason: str


def read_runs(context: Context) -> list[EngineRun]:
    """Every engine that was found or named, by number; one that was not scraped has no windows and says why."""
    named = _engines(context.store)
    scraped = sum(1 for e in named if e.state == SCRAPED)
    return [_run(context, e, scraped) for e in named]


def _engines(store: Store) -> list[_Named]:
    """The last word on each engine; one whose row was lost is known by its scrapes."""
    rows = store.sql(
        "SELECT engine, op, url, pid, found_by, remote, state, coalesce(reason, '') FROM engines "
        "ORDER BY start_ns, leaf, row"
    )
    out: dict[int, _Named] = {}
    for engine, kind, url, pid, found_by, remote, state, reason in rows:
        before = out.get(int(engine))
        known_pid = int(pid) if pid is not None else before.pid if before else None
        out[int(engine)] = _Named(
            int(engine), str(kind), str(url), known_pid, str(found_by), bool(remote), str(state), str(reason)
        )
    for (engine,) in store.sql("SELECT DISTINCT engine FROM engine_scrapes WHERE op = 'ok' ORDER BY 1"):
        lost = _Named(
            int(engine), "unknown", "", None, "its scrapes; its own row is not in the bundle", False, SCRAPED, ""
        )
        known = out.setdefault(int(engine), lost)
        if known.kind not in KINDS:
            out[int(engine)] = replace(known, kind=_kind(store, int(engine)))
    return [out[n] for n in sorted(out)]


def _kind(store: Store, engine: int) -> str:
    """The kind whose prefix some series has."""
    prefixes = {"vllm": "vllm", "sglang": "sglang", "tgi": "tgi", "nv": "triton", "llamacpp": "llama_cpp"}
    rows = store.sql(
        "SELECT DISTINCT split_part(replace(metric, ':', '_'), '_', 1) AS prefix FROM engine_series WHERE engine = ? "
        "ORDER BY 1",
        [engine],
    )
    return next((prefixes[p] for (p,) in rows if p in prefixes), "unknown")


def _run(context: Context, named: _Named, engines: int) -> EngineRun:
    store = context.store
    series = read_series(store, named.engine, named.kind)
    scrapes = series.scrapes
    run = EngineRun(
        named.engine, named.kind, named.url, named.pid, named.found_by, named.remote, named.state, named.reason,
        scrapes=len(scrapes), failed=len(scrapes.failed_ns), resets=int(scrapes.resets.sum()),
        metrics={m: " + ".join(o.metrics) for m, o in series.chosen.items()}, absent=dict(series.absent),
    )  # fmt: skip
    if not len(scrapes):
        return replace(run, ceiling_reason="no scrape succeeded")
    series.hold()
    where = cut(scrapes)
    join = find_gpus(store, named.pid, engines)
    windows = read_windows(series, where, gpu_windows(store, join.uuids, where, scrapes))
    told = read_told(store, named.engine, series.series, _setting_gauges(series))
    config = resolve(told)
    model = config.get("model")
    run = replace(
        run, model=model.value if model else None, config=config, data_parallel=len(series.indexes), windows=windows,
        totals=aggregate(windows, _deltas(series)), kv_by_index=_kv_by_index(series),
        longest_gap_s=_longest_gap(scrapes), start_ns=int(scrapes.done_ns[0]), end_ns=int(scrapes.done_ns[-1]),
        gpus=join.uuids, gpu_name=_gpu_name(store, join.uuids), gpu_join=join.how,
        pids=join.pids, on_mig=join.sliced,
        doubts={m: o.doubt for m, o in series.chosen.items() if o.doubt},
        facts=model_facts(
            [Recorded(t.key, t.value, t.source, t.detail) for t in sorted(told, key=lambda t: rank(t.source))],
            context.catalogue,
        ),
    )  # fmt: skip
    return _with_ceiling(run, context)


def _with_ceiling(run: EngineRun, context: Context) -> EngineRun:
    """The run with its ceilings, or why there are none."""
    assert run.facts is not None  # noqa: S101 - set by _run
    if run.on_mig:
        return replace(run, ceiling_reason=ON_MIG)
    tp, longest = run.number("tensor_parallel_size"), run.number("max_model_len")
    vram = run.totals.vram_total_bytes
    site = Site(
        run.gpu_name, len(run.gpus), int(tp) if tp else None, vram // len(run.gpus) if vram and run.gpus else None,
        run.number("gpu_memory_utilization"), run.totals.prompt_size.mean, int(longest) if longest else None,
    )  # fmt: skip
    found = baseline(context.catalogue.gpu(run.gpu_name), run.facts, site)
    if isinstance(found, Absent):
        return replace(run, ceiling_reason=found.reason)
    return replace(run, ceiling=replace(found, provenance="assumed") if run.given(*OF_CEILINGS) else found)


def _deltas(series: EngineSeries) -> dict[str, Number]:
    """What each counter gained from the first scrape to the last; after a restart it begins at 0."""
    restarts = np.flatnonzero(series.scrapes.resets)
    last = len(series.scrapes) - 1
    ends = np.append(restarts - 1, last)
    at = np.concatenate([np.zeros(1, dtype=np.int64), ends])
    out: dict[str, Number] = {}
    for meaning in COUNTERS:
        values = series.counter(meaning, at)
        parts = [gained(float(values[0]), float(values[1]))]
        parts += [gained(0.0, float(v)) for v in values[2:]]
        if all(p is not None for p in parts):
            out[meaning] = sum((p for p in parts if p is not None), 0)
    return out


def _kv_by_index(series: EngineSeries) -> dict[str, tuple[Fraction, Fraction]]:
    out = {}
    for index, values in sorted(series.gauge("kv_use").items()):
        mean, peak = exact.mean(values), exact.peak(values)
        if mean is not None and peak is not None:
            out[index] = (mean, Fraction(peak))
    return out


def _longest_gap(scrapes: Scrapes) -> Fraction | None:
    """Between two answers, or between an answer and the first or last poll; None with one poll."""
    first, *_, last = sorted([*scrapes.done_ns[[0, -1]].tolist(), *scrapes.failed_ns.tolist()])
    times = np.array([first, *scrapes.done_ns.tolist(), last], dtype=np.int64)
    return Fraction(int(np.diff(times).max()), SECOND_NS) if first < last else None


def _setting_gauges(series: EngineSeries) -> dict[str, str]:
    """Settings that are exported as gauges; of several engine indexes the first, they are started alike."""
    out: dict[str, str] = {}
    for meaning in ("max_num_seqs", "max_num_batched_tokens"):
        for values in series.gauge(meaning).values():
            found = exact.number(float(values[-1]))
            if found is not None:
                out.setdefault(meaning, str(found))
    return out


def _gpu_name(store: Store, uuids: tuple[str, ...]) -> str | None:
    """The name of the GPUs where all have the same, as leaf 0 tells it."""
    told: Any = store.open_body.get("gpus")
    names = (
        {str(g.get("uuid")): str(g.get("name")) for g in told if isinstance(g, dict)} if isinstance(told, list) else {}
    )
    found = {names.get(u) for u in uuids}
    return found.pop() if len(found) == 1 else None
