"""What an engine is set to: of all that sources say, the value that counts, and who says otherwise.

What the server answers of itself counts before what its metrics' labels say, these before its command line (beside
which stands what a user gave at import), that before its environment, and the model's files come last. A value that
leaves the choice to the engine ("auto") counts only where no source knows the outcome. Of one source the last word
counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuaudit.analyze.inference.model import Setting
from gpuaudit.analyze.inference.names import plain
from gpuaudit.analyze.inference.series import Series
from gpuaudit.analyze.store import Store

_SOURCES = (
    "metric label", "metric", "command line", "given at import", "environment", "config.json", "safetensors index",
    "safetensors header",
)  # fmt: skip
_LABEL, METRIC = _SOURCES[0], _SOURCES[1]

UNDECIDED = frozenset({"", "auto", "none", "null"})
"""Values that leave a choice open, in lower case."""

INFO = ("cache_config_info", "model_config_info", "model_config", "parallel_config_info", "scheduler_config_info")
"""Families whose labels are settings, without the engine's prefix (vllm/v1/metrics/loggers.py)."""

_RENAMED = {"cache_dtype": "kv_cache_dtype"}


@dataclass(frozen=True)
class Told:
    """What one source says of one key."""

    key: str
    value: str
    source: str
    detail: str = ""


def rank(source: str) -> int:
    """Place of a source, the lowest counts first: the server's answers (paths), then the order of the module."""
    if source.startswith("/"):
        return 0 if source.startswith("/v1/models") else 1
    return 2 + (_SOURCES.index(source) if source in _SOURCES else len(_SOURCES))


def resolve(told: list[Told]) -> dict[str, Setting]:
    """Per key the value that counts; ``told`` is in the order of time."""
    by_key: dict[str, dict[str, Told]] = {}
    for one in told:
        by_key.setdefault(one.key, {})[one.source] = one
    out = {}
    for key in sorted(by_key):
        ranked = sorted(by_key[key].values(), key=lambda t: (_undecided(t.value), rank(t.source), t.source))
        best = ranked[0]
        others = tuple((t.source, t.value) for t in ranked[1:] if t.value != best.value)
        out[key] = Setting(best.value, best.source, best.detail, others)
    return out


def read_told(store: Store, engine: int, series: list[Series], gauges: dict[str, str]) -> list[Told]:
    """All that sources say of one engine; ``gauges`` are settings that it exports as the value of a metric."""
    rows = store.sql(
        "SELECT op, value, source, coalesce(detail, '') FROM engine_config WHERE engine = ? "
        "ORDER BY start_ns, leaf, row",
        [engine],
    )
    told = [Told(*(str(v) for v in r)) for r in rows]
    if not any(t.source == _LABEL for t in told):
        told += _labels(series)
    return told + [Told(key, value, METRIC, key) for key, value in gauges.items()]


def _undecided(value: str) -> bool:
    return value.strip().lower() in UNDECIDED


def _labels(series: list[Series]) -> list[Told]:
    """Settings in the labels of recorded series, where the recorder did not write them out itself."""
    out = []
    for s in series:
        prefix, _, family = s.metric.partition("_")
        if family in INFO:
            out += [
                Told(_RENAMED.get(k, k), v, _LABEL, f"{plain(prefix)}_{family} {k}")
                for k, v in sorted(s.labels.items())
                if not k.startswith("_") and k != "model_name" and v not in {"", "None"}
            ]
    named = [s for s in series if s.labels.get("model_name")]
    if named:
        out.append(Told("model", named[0].labels["model_name"], _LABEL, f"{named[0].metric} model_name"))
    return out
