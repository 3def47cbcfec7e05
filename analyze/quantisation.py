"""What other types of weights and KV cache would change for an engine: memory freed, bounds on throughput, conditions.

Memory freed is computed: bytes of the weights × (1 − new bits / bits), per GPU. Some layers (embedding, output head)
often stay in 16 bits, so it is an upper bound. Bounds are those of the roofline, estimated, at the batch and length
that were observed; with B running requests of len tokens, W bytes of weights read, F the peak of the type computed in:

    decode bound   = min(B·BW·TP / (W + B·len·kv), F·TP / (2·P + 2·c·L·len))          [token/s]
    prefill bound  = min(F·TP / (2·P·s + c·L·s²), BW·TP / (W + s·kv))                 [prompt/s]

A change of a bound is new / old: what could be gained if the engine were at the bound before and after. Quality is told
only with a published source (``quality_effects.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.finding import Provenance
from gpuaudit.analyze.inference import formulas
from gpuaudit.analyze.inference.baseline import Baseline
from gpuaudit.analyze.inference.dtypes import (
    FP8_ARCHITECTURES,
    NVFP4_BITS,
    computing_type,
)
from gpuaudit.analyze.inference.economics import context_tokens
from gpuaudit.analyze.inference.formulas import GIGA, TERA, Number
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.quality_effects import NOT_KNOWN, quality
from gpuaudit.analyze.roofline import attention
from gpuaudit.analyze.vram import kv_pool

INT4_BITS = 4 + Fraction(16 + 4, 128)
"""4 bits, and a scale of 16 and a zero point of 4 bits for each group of 128 weights (the usual form of AWQ, GPTQ)."""

MARLIN_ARCHITECTURES = frozenset({"Ampere", "Ada", "Hopper"})
INT8_ARCHITECTURES = frozenset({"Turing", "Ampere", "Ada", "Hopper"})
"""Architectures that vLLM's table of supported hardware lists for these kernels (docs.vllm.ai, 0.11, 2025)."""
FP8_WIDENED = frozenset({"Turing", "Ampere"})
"""Without FP8 tensor cores: vLLM keeps weights in FP8 and computes in 16 bits (docs.vllm.ai, 0.32, "FP8 W8A8")."""
NVFP4_ARCHITECTURES = frozenset({"Blackwell"})
"""NVIDIA's own format, with a scale in FP8 for each 16 values; AMD's CDNA 4 has MXFP4, which is another."""


@dataclass(frozen=True)
class Method:
    """One way to keep weights: bits in memory with scales, the type computed in, what it needs, and what may fail.

    ``widened`` are architectures that can keep the weights so, and compute in 16 bits; ``otherwise`` is of the others.
    """

    name: str
    label: str
    bits: Number
    compute: str
    architectures: frozenset[str]
    needs: str
    otherwise: str
    widened: frozenset[str] = frozenset()


WIDENED = (
    "its tensor cores have no FP8: vLLM keeps the weights in 8 bits and computes in 16, so that memory is freed and "
    "prefill gains nothing"
)

METHODS = (
    Method("fp8", "8-bit floating point, weights and activations", 8, "fp8", FP8_ARCHITECTURES,
           "FP8 tensor cores (NVIDIA: compute capability 8.9 or higher, Ada on); a checkpoint in FP8, or the engine "
           "quantises when it loads (vLLM: --quantization fp8)",
           "no FP8 tensor cores, and vLLM's documentation does not tell of keeping weights in FP8 on it", FP8_WIDENED),
    Method("int8", "8-bit integers, weights and activations (W8A8)", 8, "int8", INT8_ARCHITECTURES,
           "a checkpoint quantised with calibration (W8A8), and kernels of the engine for the architecture",
           "vLLM's table of supported hardware does not list it for this architecture"),
    Method("int4", "4-bit weights in groups of 128 (AWQ, GPTQ), 16-bit activations", INT4_BITS, "bf16",
           MARLIN_ARCHITECTURES, "a checkpoint quantised to 4 bits; Marlin kernels (Ampere on)",
           "vLLM's table of supported hardware does not list Marlin kernels for this architecture"),
    Method("nvfp4", "4-bit floating point (NVFP4), weights and activations", NVFP4_BITS, "fp4", NVFP4_ARCHITECTURES,
           "FP4 tensor cores (NVIDIA: Blackwell); a checkpoint in NVFP4",
           "its tensor cores have no NVFP4"),
)  # fmt: skip
"""Methods that are compared, largest first."""


@dataclass(frozen=True)
class Advice:
    """One engine and method. Bytes and tokens per GPU; changes are new / old, None where an input is missing."""

    engine: int
    method: str
    label: str
    bits: Number
    freed_bytes: int | None
    more_kv_tokens: int | None
    decode_change: Fraction | None
    prefill_change: Fraction | None
    hardware: str
    needs: str
    quality: str
    falsified_by: str
    provenance: Provenance
    reason: str = ""


@dataclass(frozen=True)
class KvOption:
    """One way to need less KV cache: bytes per GPU that it frees (None: depends on the load)."""

    engine: int
    option: str
    freed_bytes: int | None
    decode_change: Fraction | None
    needs: str
    quality: str
    provenance: Provenance
    reason: str = ""


@dataclass(frozen=True)
class Load:
    """What the bounds depend on besides the model: sequences in a batch, tokens in the cache of each, prompt tokens."""

    batch: Fraction | None
    context: Fraction | None
    prompt: Fraction | None


def load_of(run: EngineRun) -> Load:
    """As observed over active windows; a batch has at least one sequence."""
    running = run.totals.running
    return Load(
        None if running is None else max(running, Fraction(1)), context_tokens(run), run.totals.prompt_size.mean
    )


def decode_bound(base: Baseline, load: Load, bits: Number, compute: str, kv_share: Fraction) -> Fraction | None:
    """Tokens/s of the batch with weights of ``bits`` computed in ``compute``, and ``kv_share`` of the cache's bytes."""
    peak = base.gpu.tflops(compute)
    if load.batch is None or load.context is None or base.kv_token_bytes is None or peak is None:
        return None
    weights = base.weight_read_bytes(load.batch)
    if weights is None:
        return None
    read = weights * bits / base.bits + load.batch * load.context * base.kv_token_bytes * kv_share
    flop = formulas.FLOP_PER_PARAM * base.params_active + 2 * attention(base) * load.context
    return base.tp * min(load.batch * base.gpu.bandwidth_gbs * GIGA / read, peak * TERA / flop)


def prefill_bound(base: Baseline, load: Load, bits: Number, compute: str) -> Fraction | None:
    """Prompts/s, one prompt of the mean length per pass."""
    peak = base.gpu.tflops(compute)
    if not load.prompt or base.kv_token_bytes is None or peak is None:
        return None
    weights = base.weight_read_bytes(load.prompt)
    if weights is None:
        return None
    read = weights * bits / base.bits + load.prompt * base.kv_token_bytes
    flop = formulas.FLOP_PER_PARAM * base.params_active * load.prompt + attention(base) * load.prompt**2
    return base.tp * min(base.gpu.bandwidth_gbs * GIGA / read, peak * TERA / flop)


def advise(run: EngineRun) -> list[Advice]:
    """Every method with fewer bits than the engine's weights have; none without a baseline."""
    base = run.ceiling
    if base is None:
        return []
    return [_advice(run, base, m) for m in METHODS if m.bits < base.bits]


def _advice(run: EngineRun, base: Baseline, m: Method) -> Advice:
    load = load_of(run)
    compute = computing_type(m.compute, base.gpu.arch)
    supported = base.gpu.arch in m.architectures
    freed = (
        None if base.weights_gb is None else int(base.weights_gb * GIGA * (1 - Fraction(m.bits) / base.bits) / base.tp)
    )
    token = None if base.kv_token_bytes is None else base.kv_token_bytes / base.tp
    whole = Fraction(1)
    decode = _change(
        decode_bound(base, load, base.bits, base.compute, whole), decode_bound(base, load, m.bits, compute, whole)
    )
    prefill = _change(prefill_bound(base, load, base.bits, base.compute), prefill_bound(base, load, m.bits, compute))
    widened = base.gpu.arch in m.widened
    usable = supported or widened
    hardware = f"{base.gpu.arch}: {'yes' if supported else WIDENED if widened else m.otherwise}"
    return Advice(
        run.engine, m.name, m.label, m.bits, freed,
        None if freed is None or not token else int(freed / token),
        decode if usable else None, prefill if usable else None,
        hardware, m.needs, quality(m.name, run.model), _falsified(decode if usable else None, freed), base.provenance,
        "" if usable else hardware,
    )  # fmt: skip


def _change(old: Fraction | None, new: Fraction | None) -> Fraction | None:
    return new / old if old and new is not None else None


def _falsified(decode: Fraction | None, freed: int | None) -> str:
    out = []
    if freed is not None:
        out.append("the KV cache of the engine (blocks × block size) does not grow by the tokens given here")
    if decode is not None:
        out.append("at the same batch and length, tokens/s change by another ratio: then weight reads are not what "
                   "bounds decode")  # fmt: skip
    out.append("an evaluation of this model's own tasks falls by more than is acceptable")
    return "; ".join(out)


def kv_options(run: EngineRun) -> list[KvOption]:
    """KV cache in 8 bits where it has 16, and what an engine can do when the cache is full."""
    base = run.ceiling
    if base is None or run.facts is None:
        return []
    out = []
    pool = kv_pool(run)
    load = load_of(run)
    if run.facts.kv_element.size_bytes == 2:
        half, whole = Fraction(1, 2), Fraction(1)
        change = _change(
            decode_bound(base, load, base.bits, base.compute, whole),
            decode_bound(base, load, base.bits, base.compute, half),
        )
        doubt = (
            "" if run.facts.kv_element.certainty == "explicit" else "that it has 16 bits follows from the model's type"
        )
        out.append(KvOption(
            run.engine, "KV cache in 8 bits (fp8)", None if pool is None else pool.bytes // 2, change,
            "vLLM: --kv-cache-dtype fp8, and an attention kernel that reads it on this architecture",
            NOT_KNOWN, base.provenance, doubt,
        ))  # fmt: skip
    caching = run.switch("enable_prefix_caching")
    if caching is not True:
        state = "off" if caching is False else "not known"
        out.append(KvOption(
            run.engine, "prefix caching: shared prompts once, least recently used blocks evicted first", None, None,
            f"vLLM: --enable-prefix-caching (now: {state}); prompts that begin alike",
            "unchanged: the same values are kept", base.provenance,
        ))  # fmt: skip
    out.append(KvOption(
        run.engine, "evicted blocks to host memory (offloading)", None, None,
        "vLLM: --kv-offloading-size; host memory, and a PCIe link faster than computing them again",
        "unchanged: the same values are read back", base.provenance,
    ))  # fmt: skip
    out.append(KvOption(
        run.engine, "shorter max_model_len", None, None,
        "no request longer than it; frees nothing by itself, but admits more sequences of full length",
        "longer requests are refused", base.provenance,
    ))  # fmt: skip
    return out
