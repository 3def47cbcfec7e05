"""What an engine could reach at best on its GPUs: ceilings, ridge, memory, each with where it comes from.

A baseline is computed where the GPU and the model are known; the reason says which is not. The parts of it that need
more (prompt length, VRAM, shape of the KV cache) are None by themselves, with their reasons in ``reasons``. All of it
is estimated: the catalogue's peak figures are in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.catalogue import provenance
from gpuaudit.analyze.catalogue_rows import GpuRow
from gpuaudit.analyze.finding import Provenance
from gpuaudit.analyze.inference import formulas, memory
from gpuaudit.analyze.inference.dtypes import computing_type
from gpuaudit.analyze.inference.formulas import Band, Number
from gpuaudit.analyze.inference.model_facts import ModelFacts


@dataclass(frozen=True)
class Absent:
    """No baseline, and why."""

    reason: str


@dataclass(frozen=True)
class Site:
    """What of an engine's surroundings the ceilings depend on; None is "not recorded".

    ``vram_bytes`` is of one GPU; ``utilization`` the share of it that the engine may use; ``prompt_tokens_mean`` and
    ``max_model_len`` in tokens.
    """

    gpu_name: str | None
    gpus: int
    tp: int | None
    vram_bytes: int | None = None
    utilization: Fraction | None = None
    prompt_tokens_mean: Number | None = None
    max_model_len: int | None = None


@dataclass(frozen=True)
class Baseline:
    """Ceilings of one engine. Tokens/s and prompts/s are of all ``tp`` GPUs together, memory of one GPU.

    ``decode_tps`` is the weights-only ceiling of one sequence; the KV-aware one of a batch is :meth:`decode_kv_tps`.
    ``tpot_floor_ms`` and ``prefill_floor_ms`` are the times at the ceilings. ``sources`` names, for bits, parameters,
    GPU and length, what said so.
    """

    gpu: GpuRow
    facts: ModelFacts
    tp: int
    tp_exceeds_observed: bool
    compute: str
    tflops: Fraction
    bits: Number
    params_active: int
    prompt_tokens: int | None
    decode_tps: Fraction
    ridge: Fraction
    prefill_prompts_per_s: Fraction | None
    utilization: Fraction
    vram_gb: Fraction | None
    weights_gb: Fraction | None
    kv_headroom_gb: Fraction | None
    min_tp: int | None
    kv_token_bytes: Fraction | None
    sequence_bytes: Fraction | None
    derived_max_seqs: int | None
    provenance: Provenance
    sources: tuple[tuple[str, str], ...]
    reasons: tuple[tuple[str, str], ...]

    @property
    def decode_band(self) -> Band:
        """0.85 to 1.05 of the decode ceiling."""
        return Band(formulas.BAND_LOWER * self.decode_tps, formulas.BAND_UPPER * self.decode_tps)

    @property
    def tpot_floor_ms(self) -> Fraction | None:
        """Milliseconds per token of one sequence at the ceiling."""
        return formulas.floor_ms(self.decode_tps)

    @property
    def prefill_floor_ms(self) -> Fraction | None:
        """Milliseconds per prompt at the ceiling."""
        return formulas.floor_ms(self.prefill_prompts_per_s)

    @property
    def mixture(self) -> bool:
        """Whether the model is a mixture of experts, of which a token uses some."""
        return self.facts.mixture

    def weight_read_bytes(self, batch: Number) -> Fraction | None:
        """Bytes of weights that one decode step of ``batch`` sequences reads: of a mixture, of the experts touched.

        None for a mixture above batch 1 whose experts are not known.
        """
        f = self.facts
        read: Fraction | None = Fraction(self.params_active)
        if self.mixture:
            total = f.total.value if f.total else None
            read = formulas.params_read(total, self.params_active, f.experts, f.experts_per_token, batch)
        return None if read is None else read * self.bits / 8

    def batch_tps(self, batch: Number | None) -> Fraction | None:
        """Tokens/s of a batch that reads its weights and no KV cache, at most the compute roof.

        Of a dense model decode ceiling × min(batch, ridge). A mixture's batch reads more experts than one token does.
        """
        read = self.weight_read_bytes(batch) if batch is not None and batch > 0 else None
        top = formulas.decode_ceiling_kv_tps(self.gpu.bandwidth_gbs, read, batch, 0, 0, tp=self.tp)
        return None if top is None else min(top, self.decode_tps * self.ridge)

    def decode_kv_tps(self, batch: Number | None, context_tokens: Number | None) -> Fraction | None:
        """Tokens/s of a batch whose sequences have ``context_tokens`` in the cache on the mean."""
        if batch is None or batch <= 0:
            return None
        return formulas.decode_ceiling_kv_tps(
            self.gpu.bandwidth_gbs, self.weight_read_bytes(batch), batch, context_tokens, self.kv_token_bytes,
            tp=self.tp,
        )  # fmt: skip

    def batch_relative_pct(self, tps: Number | None, running: Number | None) -> Fraction | None:
        """Per cent of what the batch that ran could reach: of a dense model of ceiling × min(running, ridge)."""
        if self.mixture:
            return formulas.of_roof_pct(tps, self.batch_tps(running))
        return formulas.batch_relative_pct(tps, self.decode_tps, running, self.ridge)

    def decode_mfu_pct(self, tps: Number | None) -> Fraction | None:
        """Per cent of ceiling × ridge; the compute roof of all ``tp`` GPUs."""
        return formulas.decode_mfu_pct(tps, self.decode_tps, self.ridge)

    def config_relative_pct(self, tps: Number | None, max_num_seqs: int | None) -> Fraction | None:
        """Per cent of what the seats could reach: of a dense model of ceiling × min(max_num_seqs, ridge)."""
        if self.mixture:
            share = formulas.ratio(tps, self.batch_tps(max_num_seqs))
            return None if share is None else min(100 * share, Fraction(100))
        return formulas.config_relative_pct(tps, self.decode_tps, max_num_seqs, self.ridge)

    def source(self, of: str) -> str:
        """What said so; empty where nothing did."""
        return dict(self.sources).get(of, "")

    def reason(self, of: str) -> str:
        """Why a part is None."""
        return dict(self.reasons).get(of, "")


def baseline(gpu: GpuRow | None, facts: ModelFacts, site: Site) -> Baseline | Absent:
    """The ceilings of a model on GPUs of one product."""
    parallel = formulas.tensor_parallel(site.tp, site.gpus)
    kind = facts.weight_type
    if gpu is None:
        return Absent(f"GPU not in catalogue: {site.gpu_name!r}" if site.gpu_name else "the engine's GPU is not known")
    if facts.active is None:
        return Absent(f"model not known: {facts.why_missing('total')}")
    if kind.bits is None:
        return Absent(kind.reason)
    if parallel is None:
        return Absent("no tensor-parallel degree recorded and no GPU of the engine observed")
    compute = computing_type(kind.compute, gpu.arch)
    tflops = gpu.tflops(compute)
    decode = formulas.decode_ceiling_tps(gpu.bandwidth_gbs, facts.active.value, kind.bits, parallel.tp)
    ridge = formulas.ridge_batch(tflops, gpu.bandwidth_gbs, kind.bits)
    if decode is None or ridge is None or tflops is None:
        return Absent(f"the tensor-core peak of {gpu.name} for {compute} is not known")
    return _with_memory(gpu, facts, site, parallel, _Ceilings(compute, tflops, kind.bits, decode, ridge))


@dataclass(frozen=True)
class _Ceilings:
    compute: str
    tflops: Fraction
    bits: Number
    decode: Fraction
    ridge: Fraction


def _with_memory(gpu: GpuRow, facts: ModelFacts, site: Site, parallel: formulas.Parallel, top: _Ceilings) -> Baseline:
    assert facts.active is not None  # noqa: S101 - checked by baseline()
    length = formulas.sequence_length(site.prompt_tokens_mean, site.max_model_len)
    vram, weights = memory.bytes_to_gb(site.vram_bytes), facts.weights.value if facts.weights else None
    headroom = memory.kv_headroom_gb(vram, weights, parallel.tp, site.utilization)
    shape, element = facts.kv.value if facts.kv else None, facts.kv_element.size_bytes
    token = memory.kv_bytes_per_token(shape.layers, shape.kv_heads, shape.head_dim, element) if shape else None
    copies = memory.kv_copies(shape.kv_heads, parallel.tp) if shape else None
    whole = memory.bytes_per_sequence(shape, element, site.max_model_len) if shape else None
    pool = headroom * formulas.GIGA if headroom is not None else None
    return Baseline(
        gpu=gpu,
        facts=facts,
        tp=parallel.tp,
        tp_exceeds_observed=parallel.exceeds_observed,
        compute=top.compute,
        tflops=top.tflops,
        bits=top.bits,
        params_active=facts.active.value,
        prompt_tokens=length,
        decode_tps=top.decode,
        ridge=top.ridge,
        prefill_prompts_per_s=formulas.prefill_ceiling_prompts_per_s(
            top.tflops, facts.active.value, length, tp=parallel.tp,
            attention=formulas.attention_coefficient(facts.attention_coeff, facts.hidden_dim), layers=facts.layers,
        ),
        utilization=site.utilization if site.utilization is not None else memory.DEFAULT_UTILIZATION,
        vram_gb=vram,
        weights_gb=weights,
        kv_headroom_gb=headroom,
        min_tp=memory.min_tp(vram, weights, site.utilization),
        kv_token_bytes=token * copies if token is not None and copies is not None else None,
        sequence_bytes=whole,
        derived_max_seqs=memory.derived_max_seqs(pool, whole, parallel.tp),
        provenance=_provenance(gpu, facts),
        sources=tuple(_sources(gpu, facts, site, parallel)),
        reasons=tuple(_reasons(facts, site, length, vram)),
    )  # fmt: skip


def _provenance(gpu: GpuRow, facts: ModelFacts) -> Provenance:
    """Assumed as soon as a row of the user's is in it, else estimated: a peak of a data sheet is."""
    used = [f.provenance for f in (facts.total, facts.active, facts.weights, facts.kv) if f is not None]
    return "assumed" if "assumed" in (provenance(gpu), *used) else "estimated"


def _sources(gpu: GpuRow, facts: ModelFacts, site: Site, parallel: formulas.Parallel) -> list[tuple[str, str]]:
    doubt = ", doubtful" if gpu.doubtful else ""
    mine = "user's overlay" if gpu.origin == "user" else "catalogue"
    out = [("gpu", f"{mine}: {gpu.name} ({gpu.source}, {gpu.date}{doubt})"), ("bits", facts.weight_type.source)]
    out += [(k, f.source) for k, f in (("active", facts.active), ("weights", facts.weights), ("kv", facts.kv)) if f]
    seen = f"recorded; {site.gpus} GPUs of the engine were observed" if parallel.exceeds_observed else "recorded"
    out.append(("tp", seen if site.tp else "GPUs observed"))
    if site.prompt_tokens_mean is not None and round(site.prompt_tokens_mean) > 0:
        out.append(("prompt_tokens", "mean prompt of finished requests"))
    elif site.max_model_len:
        out.append(("prompt_tokens", "max_model_len"))
    out.append(("utilization", "recorded" if site.utilization is not None else "vLLM's default"))
    return out


def _reasons(facts: ModelFacts, site: Site, length: int | None, vram: Fraction | None) -> list[tuple[str, str]]:
    out = []
    if facts.mixture and (facts.experts is None or facts.total is None):
        out.append(("batch_tps", "how many experts the mixture has, and a token uses, is not known"))
    if length is None:
        out.append(("prefill_prompts_per_s", "neither a mean prompt length nor max_model_len is known"))
    if facts.weights is None:
        out.append(("weights_gb", facts.why_missing("total") or "the parameters of the whole model are not known"))
    if vram is None:
        out.append(("vram_gb", "NVML told no memory size of the engine's GPUs"))
    if facts.kv is None:
        out.append(("kv_token_bytes", facts.why_missing("kv")))
    elif site.max_model_len is None:
        out.append(("sequence_bytes", "max_model_len is not known"))
    return out
