"""Which metrics of an engine tell what: for every meaning the names that have carried it, best first.

Sources: ``docs/reference/engines.md`` (vLLM 0.5 to 0.32), the engines' own metric pages (SGLang, TGI, Triton with the
TensorRT-LLM backend, llama.cpp; read November 2026). vLLM writes its prefix ``vllm:`` and some collectors ``vllm_``;
both are the same name here. What an engine does not export stays absent, with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass

GAUGES = ("running", "waiting", "swapped", "kv_use", "max_num_seqs", "max_num_batched_tokens")
"""Meanings that are a state: one value per scrape. ``kv_use`` is a share, the others counts."""

COUNTERS = (
    "generation_tokens", "prompt_tokens", "completed", "aborted", "preemptions", "prefix_hits", "prefix_queries",
)  # fmt: skip
"""Meanings that only grow. ``prefix_hits`` and ``prefix_queries`` count tokens; completed leaves aborted ones out."""

HISTOGRAMS = ("ttft", "tpot", "prefill", "queue", "prompt_size", "generation_size")
"""Meanings that are distributions: the first four in seconds, the last two in tokens per request."""

MEANINGS = (*GAUGES, *COUNTERS, *HISTOGRAMS)

ABORTED_REASONS = ("abort", "error")
"""Values of vLLM's label ``finished_reason`` of requests that got no whole answer (FinishReason in vllm/v1/engine)."""


@dataclass(frozen=True)
class Option:
    """One way to read a meaning: the sum over all series of ``metrics``, without a suffix of a histogram.

    ``only`` and ``without`` choose series by a label; ``doubt`` says what else the number may hold.
    """

    metrics: tuple[str, ...]
    only: tuple[str, tuple[str, ...]] | None = None
    without: tuple[str, tuple[str, ...]] | None = None
    doubt: str = ""

    def takes(self, labels: dict[str, str]) -> bool:
        """Whether a series with these labels belongs to the option."""
        if self.only is not None and labels.get(self.only[0]) not in self.only[1]:
            return False
        return self.without is None or labels.get(self.without[0]) not in self.without[1]


def _each(*metrics: str) -> tuple[Option, ...]:
    return tuple(Option((m,)) for m in metrics)


_FINISHED = ("finished_reason", ABORTED_REASONS)
_INCLUDES_PROMPT = "its sum counts prompt and generated tokens since vLLM's version 1 engine"
_INCLUDES_FAILED = "counts every request, aborted ones too"

_VLLM: dict[str, tuple[Option, ...]] = {
    "running": _each("vllm:num_requests_running"),
    "waiting": _each("vllm:num_requests_waiting"),
    "swapped": _each("vllm:num_requests_swapped"),
    "kv_use": _each("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "max_num_seqs": _each("vllm:max_num_seqs"),
    "max_num_batched_tokens": _each("vllm:max_num_batched_tokens"),
    "generation_tokens": (
        Option(("vllm:generation_tokens_total",)),
        Option(("vllm:generation_tokens",)),
        Option(("vllm:iteration_tokens_total_sum",), doubt=_INCLUDES_PROMPT),
    ),
    "prompt_tokens": _each("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
    "completed": (
        Option(("vllm:request_success_total",), without=_FINISHED),
        Option(("vllm:request_success",), without=_FINISHED),
    ),
    "aborted": (
        Option(("vllm:request_success_total",), only=_FINISHED),
        Option(("vllm:request_success",), only=_FINISHED),
    ),
    "preemptions": _each("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "prefix_hits": (
        Option(("vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_hits_total")),
        Option(("vllm:prefix_cache_hits", "vllm:external_prefix_cache_hits")),
        Option(("vllm:gpu_prefix_cache_hits_total",)),
        Option(("vllm:gpu_prefix_cache_hits",)),
    ),
    "prefix_queries": (
        Option(("vllm:prefix_cache_queries_total", "vllm:external_prefix_cache_queries_total")),
        Option(("vllm:prefix_cache_queries", "vllm:external_prefix_cache_queries")),
        Option(("vllm:gpu_prefix_cache_queries_total",)),
        Option(("vllm:gpu_prefix_cache_queries",)),
    ),
    "ttft": _each("vllm:time_to_first_token_seconds"),
    "tpot": _each(
        "vllm:request_time_per_output_token_seconds",
        "vllm:time_per_output_token_seconds",
        "vllm:inter_token_latency_seconds",
    ),
    "prefill": _each("vllm:request_prefill_time_seconds"),
    "queue": _each("vllm:request_queue_time_seconds"),
    "prompt_size": _each("vllm:request_prompt_tokens"),
    "generation_size": _each("vllm:request_generation_tokens"),
}

_SGLANG: dict[str, tuple[Option, ...]] = {
    "running": _each("sglang:num_running_reqs"),
    "waiting": _each("sglang:num_queue_reqs"),
    "kv_use": _each("sglang:token_usage"),
    "generation_tokens": _each("sglang:generation_tokens_total"),
    "prompt_tokens": _each("sglang:prompt_tokens_total"),
    "completed": (Option(("sglang:num_requests_total",), doubt=_INCLUDES_FAILED),),
    "aborted": _each("sglang:num_aborted_requests_total"),
    "preemptions": _each("sglang:num_retractions_total"),
    "prefix_hits": _each("sglang:cached_tokens_total"),
    "prefix_queries": (Option(("sglang:prompt_tokens_total",), doubt="every prompt token is looked up"),),
    "ttft": _each("sglang:time_to_first_token_seconds"),
    "tpot": _each("sglang:time_per_output_token_seconds", "sglang:inter_token_latency_seconds"),
    "queue": _each("sglang:queue_time_seconds"),
}

_TGI: dict[str, tuple[Option, ...]] = {
    "running": _each("tgi_batch_current_size"),
    "waiting": _each("tgi_queue_size"),
    "generation_tokens": _each("tgi_request_generated_tokens_sum"),
    "prompt_tokens": _each("tgi_request_input_length_sum"),
    "completed": _each("tgi_request_success"),
    "tpot": _each("tgi_request_mean_time_per_token_duration"),
    "prefill": (Option(("tgi_batch_inference_duration",), only=("method", ("prefill",))),),
    "queue": _each("tgi_request_queue_duration"),
    "prompt_size": _each("tgi_request_input_length"),
    "generation_size": _each("tgi_request_generated_tokens"),
}

_TRITON: dict[str, tuple[Option, ...]] = {
    "running": (Option(("nv_trt_llm_request_metrics",), only=("request_type", ("scheduled",))),),
    "waiting": (
        Option(("nv_trt_llm_request_metrics",), only=("request_type", ("waiting",))),
        Option(("nv_inference_pending_request_count",)),
    ),
    "kv_use": (Option(("nv_trt_llm_kv_cache_block_metrics",), only=("kv_cache_block_type", ("fraction",))),),
    "max_num_seqs": (Option(("nv_trt_llm_request_metrics",), only=("request_type", ("max",))),),
    "completed": _each("nv_inference_request_success"),
    "aborted": _each("nv_inference_request_failure"),
}

_LLAMA_CPP: dict[str, tuple[Option, ...]] = {
    "running": _each("llamacpp:requests_processing"),
    "waiting": _each("llamacpp:requests_deferred"),
    "kv_use": _each("llamacpp:kv_cache_usage_ratio"),
    "generation_tokens": _each("llamacpp:tokens_predicted_total"),
    "prompt_tokens": _each("llamacpp:prompt_tokens_total"),
}

KINDS: dict[str, dict[str, tuple[Option, ...]]] = {
    "vllm": _VLLM, "sglang": _SGLANG, "tgi": _TGI, "triton": _TRITON, "llama_cpp": _LLAMA_CPP,
}  # fmt: skip


def options(kind: str, meaning: str) -> tuple[Option, ...]:
    """How an engine of this kind tells a meaning, best first; empty where it has no such metric."""
    return KINDS.get(kind, {}).get(meaning, ())


def plain(metric: str) -> str:
    """A metric's name with ``_`` for ``:``, without Ray's prefix: ``ray_vllm_x``, ``vllm_x`` and ``vllm:x`` are one."""
    return metric.replace(":", "_").removeprefix("ray_")


def absent_reason(kind: str, meaning: str) -> str:
    """Why a meaning could not be read from an engine."""
    names = [m for option in options(kind, meaning) for m in option.metrics]
    if kind not in KINDS:
        return "the kind of the engine is not known, and so neither are the names of its metrics"
    if not names:
        return f"an engine of kind {kind} exports no such metric"
    return f"the engine exported none of {', '.join(names)}"
