"""Memory of inference engines: weights, KV cache and how many sequences fit, as pure functions on exact numbers.

None is "absent", never 0. GB are decimal (1e9 bytes) beside weights in decimal GB; ``tp`` is the tensor-parallel
degree, ``kv_heads`` and ``head_dim`` are of the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.inference.formulas import GIGA, Number

DEFAULT_UTILIZATION = Fraction(90, 100)
"""vLLM's default of gpu_memory_utilization, the share of a GPU's memory that it takes (0.9 to version 0.32)."""

ACTIVATION_BUFFER_GB = Fraction(3)
"""Estimate: activations, workspace and CUDA context of a server beside weights and KV cache, per GPU."""

MIN_KV_PCT = 1
"""A KV use of 1 % or less is noise: capacity is not read from it."""


def bytes_to_gb(size_bytes: Number | None) -> Fraction | None:
    """Decimal GB of bytes, for beside weights in decimal GB: 80 GiB are 85.899 GB."""
    return None if size_bytes is None else Fraction(size_bytes) / GIGA


def weight_gb(params: Number | None, bits: Number | None) -> Fraction | None:
    """``P·bits / 8e9`` over all GPUs; ``params`` is the total, of a mixture all experts."""
    return None if params is None or bits is None else Fraction(params) * bits / (8 * GIGA)


def kv_headroom_gb(
    vram_gb: Number | None,
    weights_gb: Number | None,
    tp: int | None = 1,
    utilization: Number | None = None,
) -> Fraction | None:
    """What is left for the KV cache on one GPU: ``vram·util − 3.0 − weights/tp``; negative: it does not fit."""
    if vram_gb is None or weights_gb is None or not tp:
        return None
    return _usable_gb(vram_gb, utilization) - Fraction(weights_gb) / tp


def min_tp(vram_gb: Number | None, weights_gb: Number | None, utilization: Number | None = None) -> int | None:
    """GPUs over which the weights have to be spread; None where not even the activation buffer fits one."""
    if vram_gb is None or weights_gb is None:
        return None
    usable = _usable_gb(vram_gb, utilization)
    return None if usable <= 0 else max(1, -int(-Fraction(weights_gb) // usable))


def _usable_gb(vram_gb: Number, utilization: Number | None) -> Fraction:
    return Fraction(vram_gb) * (DEFAULT_UTILIZATION if utilization is None else utilization) - ACTIVATION_BUFFER_GB


def kv_bytes_per_token(
    layers: int | None, kv_heads: int | None, head_dim: int | None, element_bytes: Number | None
) -> Fraction | None:
    """``2·layers·kv_heads·head_dim·bytes``: a key and a value per layer; ``layers`` are those with a KV cache."""
    if not layers or not kv_heads or not head_dim or not element_bytes:
        return None
    return Fraction(2 * layers * kv_heads * head_dim) * element_bytes


def kv_copies(kv_heads: int | None, tp: int | None) -> Fraction | None:
    """How often each KV head is stored: heads fewer than GPUs are repeated, ``tp / min(kv_heads, tp)``."""
    return None if not kv_heads or not tp else Fraction(tp, min(kv_heads, tp))


@dataclass(frozen=True)
class LinearState:
    """Layers with a state of fixed size instead of a KV cache (Gated DeltaNet and the like)."""

    layers: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv: int
    element_bytes: int

    @property
    def state_bytes(self) -> int:
        """``layers·(Kh·Kd·Vd + (Kh·Kd·2 + Vh·Vd)·conv)·bytes`` of one sequence, at any length.

        The recurrent part is counted once per key head, as the reference has it; an engine that keeps it per value
        head holds Vh/Kh times as much of it.
        """
        recurrent = self.key_heads * self.key_dim * self.value_dim
        convolution = (self.key_heads * self.key_dim * 2 + self.value_heads * self.value_dim) * self.conv
        return self.layers * (recurrent + convolution) * self.element_bytes


@dataclass(frozen=True)
class KvShape:
    """What the KV cache of one model holds per sequence; None is "not known".

    ``layers`` are all layers with a KV cache, ``swa_layers`` those of them that keep only ``swa_window`` tokens.
    """

    layers: int | None
    kv_heads: int | None
    head_dim: int | None
    swa_window: int | None = None
    swa_layers: int | None = None
    linear: LinearState | None = None

    @property
    def half_given(self) -> bool:
        """A window without its layers, or layers without their window: no size can be computed."""
        return (self.swa_window is None) != (self.swa_layers is None)


def bytes_per_sequence(shape: KvShape, element_bytes: Number | None, length: int | None) -> Fraction | None:
    """KV cache and state of one sequence of ``length`` tokens; None where any part of the shape is not known."""
    if not length or length < 0 or shape.half_given:
        return None
    windowed = shape.swa_layers or 0
    if shape.layers is None or windowed > shape.layers or windowed < 0:
        return None
    one = kv_bytes_per_token(1, shape.kv_heads, shape.head_dim, element_bytes)
    if one is None or not shape.layers:
        return None
    tokens = (shape.layers - windowed) * length + windowed * min(length, shape.swa_window or 0)
    return one * tokens + (shape.linear.state_bytes if shape.linear else 0)


def pool_bytes(
    shape: KvShape, element_bytes: Number | None, blocks: int | None, block_size: int | None, *,
    mamba_page_bytes: int | None = None, headroom_gb: Number | None = None,
) -> Fraction | None:  # fmt: skip
    """Bytes of the KV pool of one GPU: blocks that the server tells, else the computed headroom.

    Blocks of a hybrid model are its padded pages. Blocks of a model with sliding windows are shared in ways that their
    count does not tell: declined.
    """
    if blocks is not None and shape.swa_layers:
        return None
    if blocks is not None and shape.linear is not None:
        return None if mamba_page_bytes is None else Fraction(blocks * mamba_page_bytes)
    if blocks is not None and block_size is not None:
        token = kv_bytes_per_token(shape.layers, shape.kv_heads, shape.head_dim, element_bytes)
        return None if token is None else blocks * block_size * token
    return None if headroom_gb is None else Fraction(headroom_gb) * GIGA


def derived_max_seqs(pool: Number | None, sequence_bytes: Number | None, tp: int | None = 1) -> int | None:
    """Full-length sequences that fit: ``floor(pool / bytes_per_sequence)``, above 0; declined for ``tp`` > 1."""
    if pool is None or not sequence_bytes or tp != 1:
        return None
    seats = int(Fraction(pool) // sequence_bytes)
    return seats if seats > 0 else None


def sharded_max_seqs(
    headroom_gb: Number | None, shape: KvShape, element_bytes: Number | None, length: int | None, tp: int | None
) -> int | None:
    """The same of a dense model over ``tp`` GPUs, each holding its heads (at least one): an estimate.

    ``headroom·1e9 / (len·2·L·heads·head_dim·bytes)`` with ``heads = kv_heads / min(kv_heads, tp)``.
    """
    if headroom_gb is None or not tp or shape.swa_layers or shape.swa_window or shape.linear or not shape.kv_heads:
        return None
    whole = bytes_per_sequence(shape, element_bytes, length)
    if whole is None:
        return None
    return derived_max_seqs(Fraction(headroom_gb) * GIGA, whole / min(shape.kv_heads, tp))


def state_pages(
    blocks: int | None, block_size: int | None, concurrency: Number | None, length: int | None
) -> int | None:
    """Pages of fixed state per sequence: pages per sequence as observed, less those of ``length`` tokens.

    None where they would be as many as the tokens' own: then what was observed is not what this model explains.
    """
    if not blocks or not block_size or concurrency is None or concurrency <= 0 or not length or length < 0:
        return None
    own = -(-length // block_size)
    pages = max(0, round(Fraction(blocks) / Fraction(concurrency)) - own)
    return None if pages >= own else pages


def seats_at_length(
    blocks: int | None, block_size: int | None, concurrency: Number | None, length: int | None, target: int | None
) -> Fraction | None:
    """Sequences that would fit at another ``target`` length: ``blocks / (ceil(target/bs) + state_pages)``."""
    pages = state_pages(blocks, block_size, concurrency, length)
    if pages is None or not blocks or not block_size or not target or target < 0:
        return None
    return Fraction(blocks, -(-target // block_size) + pages)


def empirical_max_seqs(running: Number | None, kv_pct: Number | None) -> Fraction | None:
    """``running / (kv% / 100)``; only above 1 % of use."""
    if running is None or kv_pct is None or kv_pct <= MIN_KV_PCT:
        return None
    return Fraction(running) * 100 / kv_pct


def seats_at_observed_size(
    full_capacity: Number | None,
    max_model_len: int | None,
    prompt_mean: Number | None,
    generated_mean: Number | None,
) -> int | None:
    """``floor(capacity · max_model_len / (mean prompt + mean generated))``: seats at the size requests really have."""
    if full_capacity is None or max_model_len is None or prompt_mean is None or generated_mean is None:
        return None
    size = Fraction(prompt_mean) + generated_mean
    return int(Fraction(full_capacity) * max_model_len // size) if size > 0 else None
