"""Settings that an engine tells in the labels of its own metrics."""

from __future__ import annotations

from collections.abc import Iterable

from gpuaudit.capture.engine_names import KINDS
from gpuaudit.capture.exposition import Sample

INFO_METRICS = (
    "cache_config_info", "model_config_info", "model_config", "info", "parallel_config_info", "scheduler_config_info",
)  # fmt: skip
"""Families whose labels are settings and whose value is 1 (vllm/v1/metrics/loggers.py), without their prefix."""

KEYS = {"cache_dtype": "kv_cache_dtype", "model_name": "model"}
"""Labels that go under another key; the others keep their own name."""

MAX_VALUE_CHARS = 1024
_PREFIXES = tuple(p for kind in KINDS for p in kind.prefixes)
_NOT_SAID = frozenset({"", "None"})


def from_samples(samples: Iterable[Sample]) -> list[dict[str, str | None]]:
    """Rows of ``engine_config`` without time and engine: ``op``, ``value``, ``source`` and ``detail``, in order.

    The model is that of the first sample of the engine that names one. A label that says None tells nothing.
    """
    out: list[dict[str, str | None]] = []
    model = None
    for sample in samples:
        prefix = next((p for p in _PREFIXES if sample.metric.startswith(p)), None)
        if prefix is None:  # python_info has labels too
            continue
        if model is None:
            model = sample.labels.get("model_name")
            if model is not None:
                out.append(_row("model", model, sample.metric, "model_name"))
        if sample.metric.removeprefix(prefix) in INFO_METRICS:
            out += [
                _row(KEYS.get(label, label), value, sample.metric, label)
                for label, value in sorted(sample.labels.items())
                if label not in {"engine", "model_name"} and not label.startswith("_") and value not in _NOT_SAID
            ]
    return out


def _row(key: str, value: str, metric: str, label: str) -> dict[str, str | None]:
    return {"op": key[:128], "value": value[:MAX_VALUE_CHARS], "source": "metric label", "detail": f"{metric} {label}"}
