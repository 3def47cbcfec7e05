"""How many bits a weight and an element of the KV cache take, and what type the tensor cores compute in.

A quantisation that is named and whose bits are not certain gives nothing at all: taking 16 bits for it would make the
weights up to four times too large, and an engine that runs look as if it could not. 16 bits are assumed only where no
source said anything that was understood, and are then called a fallback.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.inference.formulas import Number

FALLBACK_BITS = 16

NVFP4_BITS = Fraction(9, 2)
"""4 bits and an 8-bit scale per 16 elements (NVIDIA, NVFP4)."""

MXFP4_BITS = Fraction(17, 4)
"""4 bits and an 8-bit scale per 32 elements (OCP Microscaling Formats 1.0, 2023)."""

_QUANTISATION: dict[str, tuple[Number, str]] = {
    "awq": (4, "bf16"), "awq_marlin": (4, "bf16"), "gptq": (4, "bf16"), "gptq_marlin": (4, "bf16"),
    "marlin": (4, "bf16"), "int8": (8, "int8"), "w8a8": (8, "int8"), "fp8": (8, "fp8"), "fbgemm_fp8": (8, "fp8"),
    "ptpc_fp8": (8, "fp8"), "w8a8_fp8": (8, "fp8"), "modelopt_fp8": (8, "fp8"), "nvfp4": (NVFP4_BITS, "fp4"),
    "modelopt_fp4": (NVFP4_BITS, "fp4"), "mxfp4": (MXFP4_BITS, "bf16"), "w4a16": (4, "bf16"), "w8a16": (8, "bf16"),
}  # fmt: skip
"""Name as engines have it: bits of a weight, and the type that is computed in. Weight-only methods compute in bf16."""

_FORMATS: dict[str, tuple[Number, str]] = {
    "float-quantized": (8, "fp8"), "int-quantized": (8, "int8"), "nvfp4-pack-quantized": (NVFP4_BITS, "fp4"),
}  # fmt: skip
"""Formats of compressed-tensors that keep weights in one width (compressed_tensors/config/base.py)."""

_NO_VALUE = frozenset({"", "none", "null", "auto", "false", "default", "unquantized"})

_DTYPES: tuple[tuple[tuple[str, ...], int, str], ...] = (
    (("fp8", "e4m3", "e5m2"), 8, "fp8"),
    (("bf16", "bfloat16"), 16, "bf16"),
    (("fp16", "float16", "half"), 16, "fp16"),
    (("fp32", "float32", "f32"), 32, "fp32"),
)

FP8_ARCHITECTURES = frozenset({"Ada", "Hopper", "Blackwell", "CDNA3", "CDNA4", "RDNA4"})
FP4_ARCHITECTURES = frozenset({"Blackwell", "CDNA4"})
"""Architectures whose tensor cores have the type; elsewhere the weights are widened and computed in bf16."""


@dataclass(frozen=True)
class WeightType:
    """Bits of a weight (None: not certain, and ``reason`` says why), the type computed in, and who said so."""

    bits: Number | None
    compute: str
    name: str
    source: str
    fallback: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Claim:
    """What one source says of the type of weights: ``kind`` quantization or dtype."""

    kind: str
    value: str
    source: str


def meaningful(value: str | None) -> bool:
    """Whether a setting says anything: not empty, none, null or auto."""
    return value is not None and value.strip().lower() not in _NO_VALUE


def weight_type(claims: Iterable[Claim], details: Mapping[str, str] | None = None) -> WeightType:
    """The first claim that is understood, in the order given; a quantisation of unknown bits ends the search.

    ``details`` are the fields of the model's own quantization_config, which say how many bits the general methods
    (compressed-tensors, modelopt, bitsandbytes, gptq) really use.
    """
    for claim in claims:
        if not meaningful(claim.value):
            continue
        name = claim.value.strip().lower()
        if claim.kind == "quantization":
            return _quantised(name, claim, details or {})
        found = dtype_bits(name)
        if found is not None:
            return WeightType(found[0], found[1], name, claim.source)
    return WeightType(FALLBACK_BITS, "bf16", "16 bits", "fallback", fallback=True)


def dtype_bits(name: str) -> tuple[int, str] | None:
    """Bits and computing type of a name such as bfloat16 or torch.float8_e4m3fn; None when not understood."""
    lower = name.strip().lower()
    return next(((bits, compute) for words, bits, compute in _DTYPES if any(w in lower for w in words)), None)


def _quantised(name: str, claim: Claim, details: Mapping[str, str]) -> WeightType:
    told = _told_bits(name, details)
    if told is not None:
        return WeightType(told[0], told[1], name, claim.source)
    known = _QUANTISATION.get(name.replace("-", "_"))
    if known is not None:
        return WeightType(known[0], known[1], name, claim.source)
    reason = f"{claim.source} says quantization {claim.value!r}, which does not tell how many bits a weight has"
    return WeightType(None, "", name, claim.source, reason=reason)


def _told_bits(name: str, details: Mapping[str, str]) -> tuple[Number, str] | None:
    """Bits that the model's quantization_config tells for a method with several widths."""
    algorithm = details.get("quant_algo", "").upper()
    if name in {"modelopt", "modelopt_fp4"} and algorithm in {"NVFP4", "FP8"}:
        return (NVFP4_BITS, "fp4") if algorithm == "NVFP4" else (8, "fp8")
    if name == "bitsandbytes":
        four, eight = details.get("load_in_4bit", "").lower(), details.get("load_in_8bit", "").lower()
        return (4, "bf16") if four == "true" else (8, "bf16") if eight == "true" else None
    if name in {"gptq", "gptq_marlin", "awq", "awq_marlin"}:
        return (int(bits), "bf16") if (bits := details.get("bits", "")) in {"2", "3", "4", "8"} else None
    if name in {"compressed-tensors", "compressed_tensors"}:
        return _compressed(details)
    return None


def _compressed(details: Mapping[str, str]) -> tuple[Number, str] | None:
    """compressed-tensors: the format of the files where it tells, else every group has to have as many bits."""
    if (of_format := _FORMATS.get(details.get("format", ""))) is not None:
        return of_format
    widths = {v for k, v in details.items() if k.endswith("weights.num_bits")}
    kinds = {v.lower() for k, v in details.items() if k.endswith("weights.type")}
    inputs = {v for k, v in details.items() if k.endswith("input_activations.num_bits")}
    if len(widths) != 1 or len(kinds) > 1 or not widths <= {"4", "8"}:
        return None
    bits = int(widths.pop())
    if bits == 4 and kinds == {"float"}:
        return None  # nvfp4 and mxfp4 both say so, and differ in their scales
    if inputs == {"8"} and bits == 8:
        return bits, "fp8" if kinds == {"float"} else "int8"
    return bits, "bf16"


def computing_type(compute: str, architecture: str) -> str:
    """What the GPU's tensor cores really compute in: types that its architecture lacks are widened to bf16."""
    if compute == "fp8" and architecture not in FP8_ARCHITECTURES:
        return "bf16"
    if compute == "fp4" and architecture not in FP4_ARCHITECTURES:
        return "bf16"
    return compute


@dataclass(frozen=True)
class KvElement:
    """Bytes of one element of the KV cache; ``certainty`` explicit, auto, or unknown (not understood)."""

    size_bytes: int
    certainty: str
    source: str


def kv_element(value: str | None, source: str = "", model_dtype: str | None = None) -> KvElement:
    """From the label cache_dtype, else the configuration; "auto" or absent is the model's own type, 2 bytes."""
    if not meaningful(value):
        wide = model_dtype is not None and (dtype_bits(model_dtype) or (16, ""))[0] == 32
        return KvElement(4 if wide else 2, "auto", source or "not set")
    found = dtype_bits(value or "")
    if found is None or found[0] == 32:
        return KvElement(4, "explicit", source) if found else KvElement(2, "unknown", source)
    return KvElement(found[0] // 8, "explicit", source)
