"""Rows of the catalogue: GPUs, models and prices as facts with their source and date.

Columns of the files stand in :data:`GPU_COLUMNS`, :data:`MODEL_COLUMNS` and :data:`PRICE_COLUMNS`; an overlay that a
user gives has the same. An empty cell is "not known", never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from gpuaudit.analyze.csv_input import Row
from gpuaudit.analyze.inference.memory import KvShape, LinearState
from gpuaudit.analyze.matching import Pattern, gpu_words, model_pattern_words

GPU_COLUMNS = (
    "name", "arch", "bandwidth_gbs", "bf16_tflops", "fp8_tflops", "int8_tops", "fp4_tflops", "tf32_tflops",
    "fp64_tflops", "match", "also", "source", "date", "doubtful", "note",
)  # fmt: skip
"""Bandwidth of the memory in GB/s (1e9); dense tensor-core peaks per type in TFLOP/s (1e12), without sparsity."""

MODEL_COLUMNS = (
    "name", "total_params", "active_params", "moe", "layers", "hidden_dim", "kv_heads", "head_dim", "kv_layers",
    "attention_coeff", "swa_window", "swa_layers", "linear_layers", "linear_key_heads", "linear_value_heads",
    "linear_key_dim", "linear_value_dim", "linear_conv", "linear_bytes", "experts", "experts_per_token",
    "weight_dtype", "match", "also", "source", "date", "doubtful", "note",
)  # fmt: skip
"""``active_params``: those a token uses; ``moe``: 1 for a mixture of experts; ``kv_layers``: layers with a KV cache,
where not all have one; ``linear_*``: layers with a state of fixed size."""

PRICE_COLUMNS = ("gpu", "price_per_hour", "currency", "spot_per_hour", "date", "source", "doubtful", "note")
"""On-demand price of one GPU-hour; the spot price is kept and never used."""

Origin = Literal["catalogue", "user"]

TENSOR_TYPES = ("bf16", "fp16", "fp8", "int8", "fp4", "tf32", "fp64")
"""Types with a tensor-core peak in the catalogue; fp16 has that of bf16 on every GPU in it."""


@dataclass(frozen=True)
class GpuRow:
    """One product: memory bandwidth and peaks by type, as its vendor or a dated catalogue states them."""

    name: str
    arch: str
    bandwidth_gbs: Fraction
    peaks: dict[str, Fraction]
    pattern: Pattern
    source: str
    date: str
    doubtful: bool
    note: str
    origin: Origin = "catalogue"

    def tflops(self, dtype: str) -> Fraction | None:
        """Dense tensor-core peak for a type of :data:`TENSOR_TYPES`; None where the GPU has none or it is not known."""
        return self.peaks.get("bf16" if dtype == "fp16" else dtype)


@dataclass(frozen=True)
class ModelRow:
    """One model: parameters and what its KV cache depends on."""

    name: str
    total_params: int
    active_params: int | None
    mixture: bool
    layers: int | None
    hidden_dim: int | None
    kv_heads: int | None
    head_dim: int | None
    kv_layers: int | None
    attention_coeff: Fraction | None
    swa_window: int | None
    swa_layers: int | None
    linear: LinearState | None
    experts: int | None
    experts_per_token: int | None
    weight_dtype: str
    pattern: Pattern
    source: str
    date: str
    doubtful: bool
    note: str
    origin: Origin = "catalogue"

    @property
    def kv_shape(self) -> KvShape:
        """What a sequence keeps in the KV cache."""
        layers = self.kv_layers if self.kv_layers is not None else self.layers
        return KvShape(layers, self.kv_heads, self.head_dim, self.swa_window, self.swa_layers, self.linear)


@dataclass(frozen=True)
class PriceRow:
    """On-demand price of one GPU-hour of a product of the catalogue."""

    gpu: str
    per_hour: Fraction
    currency: str
    spot_per_hour: Fraction | None
    date: str
    source: str
    doubtful: bool
    note: str


def gpu_row(row: Row, origin: Origin) -> GpuRow:
    """A line of a GPU file."""
    bandwidth = row.positive("bandwidth_gbs")
    if bandwidth is None:
        raise row.refuse("bandwidth_gbs is empty")
    columns = {c: c.removesuffix("_tflops").removesuffix("_tops") for c in GPU_COLUMNS if c.endswith(("flops", "tops"))}
    peaks = {dtype: value for column, dtype in columns.items() if (value := row.positive(column)) is not None}
    return GpuRow(
        row.text("name"), row.text("arch", required=False), bandwidth, peaks, _pattern(row, gpu_words),
        row.text("source"), row.day("date"), row.flag("doubtful"), row.text("note", required=False), origin,
    )  # fmt: skip


def model_row(row: Row, origin: Origin) -> ModelRow:
    """A line of a model file."""
    total, active = row.count("total_params"), row.count("active_params")
    if total is None:
        raise row.refuse("total_params is empty")
    if active is not None and active > total:
        raise row.refuse(f"active_params is {active}, more than total_params {total}")
    experts, per_token = row.count("experts"), row.count("experts_per_token")
    if (experts is None) != (per_token is None) or (experts or 0) < (per_token or 0):
        raise row.refuse("experts and experts_per_token do not go together")
    names = ("layers", "hidden_dim", "kv_heads", "head_dim", "kv_layers")
    layers, hidden, heads, dim, kv_layers = (row.count(n) for n in names)
    return ModelRow(
        row.text("name"), total, active, row.flag("moe"), layers, hidden, heads, dim, kv_layers,
        row.number("attention_coeff"), row.count("swa_window"), row.count("swa_layers"), _linear(row), experts,
        per_token, row.text("weight_dtype", required=False), _pattern(row, model_pattern_words), row.text("source"),
        row.day("date"), row.flag("doubtful"), row.text("note", required=False), origin,
    )  # fmt: skip


def price_row(row: Row) -> PriceRow:
    """A line of the price file of the catalogue."""
    price = row.positive("price_per_hour")
    if price is None:
        raise row.refuse("price_per_hour is empty")
    return PriceRow(
        row.text("gpu"), price, row.text("currency"), row.positive("spot_per_hour"), row.day("date"),
        row.text("source"), row.flag("doubtful"), row.text("note", required=False),
    )  # fmt: skip


def _pattern(row: Row, normal: Callable[[str], frozenset[str]]) -> Pattern:
    try:
        return Pattern.parse(row.text("match", required=False), row.text("also", required=False), normal)
    except ValueError as e:
        raise row.refuse(f"match is {row.cells['match'].strip()!r}: {e}") from None


def _linear(row: Row) -> LinearState | None:
    names = [c for c in MODEL_COLUMNS if c.startswith("linear_")]
    values = [row.count(n) for n in names]
    given = [v for v in values if v is not None]
    if given and len(given) != len(values):
        missing = [n for n, v in zip(names, values, strict=True) if v is None]
        raise row.refuse(f"{', '.join(missing)} is empty where other linear_ columns are given")
    return LinearState(*given) if given else None
