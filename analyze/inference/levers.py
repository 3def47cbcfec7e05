"""What can be changed on an engine, each only where its prerequisites hold: the fixes that several rules offer.

A fix names the setting, its current and its new value where both are known, and what it would cost. A lever whose
prerequisite was not recorded is not offered: nobody is told to switch on what may be on already.
"""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze.finding import Fix, Quantity, Threshold
from gpuaudit.analyze.inference import seats
from gpuaudit.analyze.inference.gates import Teller
from gpuaudit.analyze.inference.model import EngineRun, Number

_SOURCE = "rules of the reference profiler for vLLM (2026-08), levers: "

CACHING_PROMPT = Threshold(
    "caching_prompt", 200, "token", _SOURCE + "prefix caching is offered from a mean prompt of 200 tokens"
)
FREE_BYTES = Threshold(
    "free_bytes", 2 * 10**9, "bytes", _SOURCE + "more memory is offered with more than 2 GB free and 2 GB of headroom"
)
UTILIZATION_STEP = Threshold(
    "utilization_step", Fraction(5, 100), "share",
    "chosen: a twentieth of the GPU at a time; what the step would take must be free when it is taken",
)  # fmt: skip
UTILIZATION_MOST = Threshold(
    "utilization_most", Fraction(95, 100), "share",
    "chosen: past 95 % the allocations of other libraries fail first",
)  # fmt: skip
BATCHED_TOKENS = Threshold(
    "batched_tokens", 2048, "token", _SOURCE + "max_num_batched_tokens of 2048 where it is lower and can be read"
)
KV_THRESHOLDS = (CACHING_PROMPT, FREE_BYTES, UTILIZATION_STEP, UTILIZATION_MOST, *seats.LENGTH_THRESHOLDS)

ONE_BYTE = ("fp8", "e4m3", "e5m2", "int8")
"""Parts of the names of KV cache types of one byte per element."""


def prefix_caching(tell: Teller) -> Fix | None:
    """Switch the prefix cache on: only where it is confirmed off and prompts are long enough to share something."""
    run = tell.run
    mean = run.totals.prompt_size.mean
    if run.switch("enable_prefix_caching") is not False or mean is None or mean < tell.limit(CACHING_PROMPT):
        return None
    return Fix(
        "Switch prefix caching on, so that prompts with the same beginning share its blocks.",
        "enable_prefix_caching", "False", "True",
        "Blocks of finished requests stay in the cache until they are needed; a lookup per request costs little time.",
        {"prompt_mean": tell.measured(mean, "token", "mean prompt tokens per finished request", "prompt_size")},
    )  # fmt: skip


def fp8_kv(tell: Teller) -> Fix | None:
    """Half the bytes per cached token: only where the type is known and has two bytes, on a GPU that is known."""
    found = tell.run.text("kv_cache_dtype")
    if tell.run.gpu_name is None or found is None or any(name in found.lower() for name in ONE_BYTE):
        return None
    return Fix(
        "Keep the KV cache in FP8, so that twice as many tokens fit.",
        "kv_cache_dtype", found, "fp8",
        "Needs a GPU and an attention backend with FP8; the effect on answers has to be measured; unscaled FP8 can "
        "cost accuracy on long contexts.",
    )  # fmt: skip


def more_memory(tell: Teller, headroom_gb: Number | None) -> Fix | None:
    """Raise gpu_memory_utilization: only with memory free on the GPU and headroom computed, both above the bound."""
    run, limit = tell.run, tell.limit
    current = run.number("gpu_memory_utilization")
    total, peak = run.totals.vram_total_bytes, run.totals.vram_peak_bytes
    if current is None or total is None or peak is None or headroom_gb is None:
        return None
    if total - peak <= limit(FREE_BYTES) or headroom_gb * 10**9 <= limit(FREE_BYTES):
        return None
    new = min(Fraction(current) + limit(UTILIZATION_STEP), Fraction(limit(UTILIZATION_MOST)))
    if new <= current or (new - current) * total >= total - peak:
        return None
    return Fix(
        "Give the engine more of the GPU's memory, all of which goes to the KV cache.",
        "gpu_memory_utilization", decimal(current), decimal(new),
        "Less room for activations, CUDA graphs and other processes: an out-of-memory error ends the server.",
        {"vram_free": tell.measured(total - peak, "bytes", "memory of the GPUs − highest use", "running")},
    )  # fmt: skip


def no_override(tell: Teller) -> Fix | None:
    """Let the engine size its own pool: only where an override is told."""
    found = tell.run.text("num_gpu_blocks_override")
    if found is None or found.strip().lower() in {"none", "0", ""}:
        return None
    return Fix(
        "Remove the override of the number of KV blocks, so that the pool takes the memory that is there.",
        "num_gpu_blocks_override", found, "none",
        "The engine takes as much memory as gpu_memory_utilization allows; others on that GPU may need it.",
    )  # fmt: skip


def offload(tell: Teller) -> Fix | None:
    """Keep evicted blocks in host memory: only where the engine says that it does not yet."""
    found = tell.run.text("kv_offloading_size")
    if found is None or found.strip().lower() not in {"none", "0", "0.0", ""}:
        return None
    return Fix(
        "Keep blocks that leave the GPU in host memory, so that a preempted request need not be computed again.",
        "kv_offloading_size", found, "",
        "Takes host memory and PCIe bandwidth; a fetch is slower than a hit on the GPU.",
    )  # fmt: skip


def shorter_length(tell: Teller) -> Fix | None:
    """Lower max_model_len to what 99 of 100 requests need."""
    run = tell.run
    prompt, generated = run.totals.prompt_size.p99, run.totals.generation_size.p99
    current = run.number("max_model_len")
    if prompt is None or generated is None or prompt.clamped or generated.clamped:
        return None
    length = seats.shorter_model_len(
        prompt.value, generated.value, run.totals.deltas.get("completed"), current, tell.limit
    )
    if length is None or current is None:
        return None
    return Fix(
        "Allow no longer requests than the traffic has.",
        "max_model_len", decimal(current), str(length),
        "Longer requests are refused.",
        {
            "prompt_p99": tell.measured(prompt.value, "token", "p99 of merged bucket deltas", "prompt_size"),
            "generated_p99": tell.measured(generated.value, "token", "p99 of merged bucket deltas", "generation_size"),
        },
    )  # fmt: skip


def fewer_seats(tell: Teller) -> Fix | None:
    """Lower max_num_seqs to what the KV cache held at 80 % of its use; only where the setting is known."""
    run = tell.run
    current, kv, running = run.max_num_seqs, run.totals.kv_mean_share, run.totals.running
    if current is None or kv is None or running is None or kv <= tell.limit(seats.KV_NOISE):
        return None
    new = int(tell.limit(seats.MARGIN) * running / kv)
    per_engine = new // run.data_parallel
    if per_engine < 1 or new >= current:
        return None
    return Fix(
        "Let fewer sequences run at once, so that those that run are not evicted.",
        seats.SEAT_SETTING.get(run.kind, ""), str(current // run.data_parallel), str(per_engine),
        "Cuts peak throughput; requests wait in the queue instead of being preempted and computed again.",
        {"fits": tell.measured(Fraction(running) / kv, "count", "mean running / mean KV use", "running", "kv_use")},
    )  # fmt: skip


def replica(why: str) -> Fix:
    """Another server beside this one."""
    return Fix(
        f"Add a replica and spread the requests: {why}.", "", "", "",
        "Costs another GPU, and a cache that is not shared with the first.",
    )  # fmt: skip


def present(*fixes: Fix | None) -> tuple[Fix, ...]:
    """Those whose prerequisites hold."""
    return tuple(f for f in fixes if f is not None)


def decimal(value: Number) -> str:
    """A setting as it would be typed: an integer, or a decimal fraction of at most four digits."""
    exact = Fraction(value)
    if exact.denominator == 1:
        return str(exact.numerator)
    scaled = round(exact * 10_000)
    whole, rest = divmod(scaled, 10_000)
    return f"{whole}.{rest:04d}".rstrip("0").rstrip(".")


def target_quantity(tell: Teller, target: seats.SeatTarget | None) -> Quantity:
    """The seats to set, or why there is no number."""
    formula = "floor(0.80 × min(ridge, full-length sequences that the KV cache holds))"
    if target is not None and target.kind == "traffic":
        formula = "floor(0.80 × mean running / peak KV use)"
    if target is not None and target.stepped:
        formula = f"min({formula}, 2 × seats)"
    if target is None:
        return tell.measured(
            None, "count", formula, "running", reason="neither the ridge nor the KV cache's size is known"
        )
    if target.kind == "ridge" or (target.bound is not None and target.bound.source == "derived"):
        return tell.estimated(target.target, "count", formula, "running", "kv_use")
    return tell.measured(target.target, "count", formula, "running", "kv_use")


def nanoseconds(seconds: Number | None) -> Fraction | None:
    """Seconds as ns, the unit of times in findings."""
    return None if seconds is None else Fraction(seconds) * 10**9


def unset(run: EngineRun, key: str) -> bool:
    """Whether the engine says that a switch is off; not known is no."""
    return run.switch(key) is False
