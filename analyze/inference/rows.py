"""Which rows of the bundle a value of an engine comes from: the samples of the metrics that carry a meaning."""

from __future__ import annotations

from collections.abc import Sequence

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.inference.names import HISTOGRAMS, plain
from gpuaudit.analyze.store import quoted

SUFFIXES = ("_bucket", "_sum", "_count")
"""Names under which a histogram exports its parts."""


def rows_of(context: Context, run: EngineRun, meanings: Sequence[str]) -> tuple[str, ...]:
    """The evidence ids of the samples behind ``meanings``; the engine's scrapes where none of them was exported."""
    names: list[str] = []
    for meaning in meanings:
        for metric in run.metrics.get(meaning, "").split(" + "):
            if metric:
                names += [metric + s for s in SUFFIXES] if meaning in HISTOGRAMS else [metric]
    if not names:
        return (context.book.where("engine_scrapes", run.where),)
    listed = ", ".join(quoted(plain(n)) for n in dict.fromkeys(names))
    plain_name = "regexp_replace(replace(metric, ':', '_'), '^ray_', '')"
    series = f"SELECT series FROM engine_series WHERE {run.where} AND {plain_name} IN ({listed})"
    return (context.book.where("engine_samples", f"{run.where} AND series IN ({series})"),)
