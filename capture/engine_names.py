"""Which server a text of metrics is from, and which of its families are recorded: one table per kind of engine.

What the metrics mean is analysis' business. A kind is told by its prefix alone; all families of that prefix are
recorded whole, because names change between versions and what is not recorded cannot be analysed later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PROCESS_METRICS = frozenset(
    {"process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}
)
"""Of the Python client's own metrics: the first tells a restart, the others what the server itself costs."""


@dataclass(frozen=True)
class EngineKind:
    """One kind of server. ``ask``: paths that tell its settings, best first, beside the metrics."""

    name: str
    prefixes: tuple[str, ...]
    metrics_path: str = "/metrics"
    ask: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    """Programs and Python packages that start it. Discovery asks no other process: bytes that a program did not expect
    on a socket of its own (a rendezvous, a bootstrap) could harm it."""
    port: int | None = None
    """Where its metrics are unless it was told otherwise."""


KINDS: tuple[EngineKind, ...] = (
    EngineKind(
        "vllm", ("vllm:", "vllm_", "ray_vllm_"),
        ask=("/v1/models", "/server_info?config_format=json", "/version"), commands=("vllm",), port=8000,
    ),
    EngineKind(
        "sglang", ("sglang:", "sglang_"), ask=("/v1/models", "/get_server_info"), commands=("sglang",), port=30000
    ),
    EngineKind(
        "tgi", ("tgi_",), ask=("/info",), commands=("text-generation-launcher", "text-generation-router"), port=3000
    ),
    EngineKind("triton", ("nv_",), ask=("/v2",), commands=("tritonserver",), port=8002),
    EngineKind("llama_cpp", ("llamacpp:",), ask=("/v1/models", "/props"), commands=("llama-server",), port=8080),
)  # fmt: skip
"""Prefixes: vLLM vllm/v1/metrics/loggers.py (colon; an underscore where a collector rewrote it, ray_ under Ray Serve);
SGLang python/sglang/srt/metrics/collector.py; TGI docs/source/reference/metrics.md; Triton
docs/user_guide/metrics.md; llama.cpp tools/server/README.md, GET /metrics."""

UNKNOWN = EngineKind("unknown", ())

BY_NAME = {kind.name: kind for kind in KINDS}


def identify(metrics: Iterable[str]) -> EngineKind:
    """The kind whose prefix stands before most of ``metrics``; :data:`UNKNOWN` where none does.

    One process may expose a second library's metrics; the table's order decides a tie.
    """
    names = list(metrics)
    counts = {kind.name: sum(n.startswith(kind.prefixes) for n in names) for kind in KINDS}
    best = max(KINDS, key=lambda kind: counts[kind.name])
    return best if counts[best.name] else UNKNOWN


def is_recorded(metric: str, kind: EngineKind) -> bool:
    """Whether a sample of this name is recorded for an engine of this kind."""
    return metric in PROCESS_METRICS or (bool(kind.prefixes) and metric.startswith(kind.prefixes))
