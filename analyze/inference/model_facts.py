"""What is known of the model that an engine serves: its files and settings first, the catalogue last.

Every value has a source and a provenance: ``measured`` as recorded (a size in the safetensors index), ``derived``
where it is computed from what was recorded (parameters counted from config.json), ``estimated`` from the catalogue,
``assumed`` from a user's overlay. Where two sources disagree the better one counts and the conflict is listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

from gpuaudit.analyze.catalogue import Catalogue, provenance
from gpuaudit.analyze.catalogue_rows import ModelRow
from gpuaudit.analyze.finding import Provenance
from gpuaudit.analyze.inference import architecture
from gpuaudit.analyze.inference.dtypes import Claim, KvElement, WeightType, kv_element, meaningful, weight_type
from gpuaudit.analyze.inference.formulas import Number
from gpuaudit.analyze.inference.memory import KvShape, weight_gb
from gpuaudit.analyze.inference.model import GIVEN
from gpuaudit.analyze.matching import names_quantisation

T = TypeVar("T")

CONFIG_FILE = "config.json"
INDEX_FILE = "safetensors index"
HEADERS = "safetensors header"
REPORTED = ("/server_info", "/get_server_info", "/info", "/props", "/v1/models", "metric label")
COMMAND_LINE = ("command line", GIVEN)
ENVIRONMENT = "environment"

CATALOGUE, OVERLAY = "catalogue", "user's overlay"
OVER_COUNTED = "over counted parameters"
"""Sources of values that no recording told."""

QUANTIZATION_KEYS = ("quantization",)
DTYPE_KEYS = ("dtype", "torch_dtype")

LANGUAGE_PARTS = ("text_config", "language_config", "llm_config", "thinker_config")
"""Where the config.json of a model with more than text keeps its language part."""

PACKED = "pack-quantized"
"""Format of compressed-tensors for weights alone, as integers packed into 32 bits."""

_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")

FLOAT_BYTES = {"bytes_bf16": 2, "bytes_f16": 2, "bytes_f32": 4, "bytes_f64": 8}
"""Bytes of an element by the recorded sum of a file's tensors of that type (safetensors format)."""

TOLERANCE = Fraction(5, 100)
"""Catalogue counts are rounded (70e9 for 70.6e9): a difference within 5 % is no conflict."""


@dataclass(frozen=True)
class Recorded:
    """One row of ``engine_config``: key, value, source and where in the source."""

    key: str
    value: str
    source: str
    detail: str = ""


@dataclass(frozen=True)
class Fact(Generic[T]):
    """A value, where it is from, and what it may call itself."""

    value: T
    source: str
    provenance: Provenance


@dataclass(frozen=True)
class ModelFacts:
    """One served model. None is "not known", and ``missing`` says why, by the name of the field.

    ``total`` and ``active`` are parameters (``active``: those that a token uses, the same as ``total`` of a dense
    model), ``weights`` the GB (1e9) of all weights over all GPUs, ``hidden_dim`` and ``attention_coeff`` what the
    attention part of prefill depends on. ``mixture``: of experts, whose number may be unknown. ``row`` is the
    catalogue's, where it has the model.
    """

    name: str | None
    total: Fact[int] | None
    active: Fact[int] | None
    weights: Fact[Fraction] | None
    weight_type: WeightType
    kv: Fact[KvShape] | None
    kv_element: KvElement
    layers: int | None
    hidden_dim: int | None
    attention_coeff: Fraction | None
    experts: int | None
    experts_per_token: int | None
    row: ModelRow | None
    conflicts: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    mixture: bool = False

    def why_missing(self, field: str) -> str:
        """Why a field is None."""
        return dict(self.missing).get(field, "")


def model_facts(rows: Iterable[Recorded], catalogue: Catalogue) -> ModelFacts:
    """Everything that the rows of one engine and the catalogue say of its model."""
    recorded = tuple(rows)
    fields = config_fields(recorded)
    name = _first(recorded, ("model",))
    row = next((r for n in _names(recorded) if (r := catalogue.model(n)) is not None), None)
    text_part = "" in fields
    counted = architecture.counted(fields)
    kind = _packed(weight_type(claims(recorded, fields, row, name), _quantization_fields(fields)), recorded, counted)
    conflicts: list[str] = []
    total = _total(recorded, None if text_part else counted, kind, row, conflicts)
    active = _active(counted, text_part, total, row)
    shape = architecture.kv_shape(fields)
    return ModelFacts(
        name=name,
        total=total,
        active=active,
        weights=_weights(recorded, fields, total, kind),
        weight_type=kind,
        kv=Fact(shape, CONFIG_FILE, "derived") if shape else _catalogue_fact(row, row.kv_shape if row else None),
        kv_element=_kv_element(recorded, fields),
        layers=_number(fields, "num_hidden_layers") or (row.layers if row else None),
        hidden_dim=_number(fields, "hidden_size") or (row.hidden_dim if row else None),
        attention_coeff=row.attention_coeff if row and not row.doubtful else None,
        mixture=counted.experts is not None if counted else bool(row and row.mixture),
        experts=counted.experts if counted else row.experts if row else None,
        experts_per_token=counted.experts_per_token if counted else row.experts_per_token if row else None,
        row=row,
        conflicts=(*conflicts, *_type_conflicts(recorded, kind)),
        missing=tuple(_missing(name, fields, total, kind, shape=shape, row=row)),
    )


def config_fields(recorded: Sequence[Recorded]) -> dict[str, str]:
    """Fields of the model's config.json by path; those of the language part of a larger model stand in for its own.

    ``""`` as a key says which part that was.
    """
    out: dict[str, str] = {}
    for r in recorded:
        if r.source == CONFIG_FILE:
            path = r.detail if _PATH.match(r.detail) else r.key
            out.setdefault(path, r.value)
    if "num_hidden_layers" not in out:
        for part in LANGUAGE_PARTS:
            inner = {k.removeprefix(f"{part}."): v for k, v in out.items() if k.startswith(f"{part}.")}
            if "num_hidden_layers" in inner:
                return out | inner | {"": part}
    return out


def claims(recorded: Sequence[Recorded], fields: dict[str, str], row: ModelRow | None, name: str | None) -> list[Claim]:
    """What says how the weights are kept, best first.

    What the server reports, then its command line and environment, then the model's own files, then the catalogue. A
    quantisation is asked of all of them before a plain type is: an engine that quantises keeps its dtype for
    activations.
    """
    out = []
    for kind, keys in (("quantization", QUANTIZATION_KEYS), ("dtype", DTYPE_KEYS)):
        for sources in (REPORTED, COMMAND_LINE, (ENVIRONMENT,)):
            out += [Claim(kind, r.value, f"{r.source} {kind}") for r in _of(recorded, keys, sources)]
        if kind == "quantization" and (method := fields.get("quantization_config.quant_method")):
            out.append(Claim(kind, method, f"{CONFIG_FILE} quantization_config"))
    out += [Claim("dtype", fields[k], f"{CONFIG_FILE} {k}") for k in DTYPE_KEYS if k in fields]
    if name is not None and names_quantisation(name) and not any(c.kind == "quantization" for c in out):
        out.append(Claim("quantization", name.rsplit("/", 1)[-1], "the model's name"))
    elif row is not None and row.weight_dtype:
        out.append(Claim("dtype", row.weight_dtype, _row_name(row)))
    return out


def _of(recorded: Sequence[Recorded], keys: tuple[str, ...], sources: tuple[str, ...]) -> list[Recorded]:
    return [r for s in sources for k in keys for r in recorded if r.key == k and r.source == s]


def _first(recorded: Sequence[Recorded], keys: tuple[str, ...]) -> str | None:
    found = [r for r in recorded if r.key in keys and meaningful(r.value)]
    return found[0].value if found else None


def _names(recorded: Sequence[Recorded]) -> list[str]:
    """Names of the model, the served one first, then where it was loaded from."""
    return [r.value for key in ("model", "root", "served_model_name") for r in recorded if r.key == key]


def _number(fields: dict[str, str], key: str) -> int | None:
    text = fields.get(key, "").strip()
    return int(text) if text.isascii() and text.isdigit() and 0 < len(text) <= 15 and int(text) > 0 else None


def _quantization_fields(fields: dict[str, str]) -> dict[str, str]:
    prefix = "quantization_config."
    return {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}


def _index(recorded: Sequence[Recorded], *keys: str) -> int | None:
    found = {r.key: r.value for r in recorded if r.source == INDEX_FILE}
    return next((n for k in keys if (n := _number(found, k)) is not None), None)


def _file_bytes(recorded: Sequence[Recorded]) -> tuple[int | None, str]:
    """Bytes of all tensors of the model's files, and who says so."""
    sizes = [_number({"": r.value}, "") for r in recorded if r.source == HEADERS and r.key.startswith("bytes_")]
    if sizes and None not in sizes:
        return sum(n for n in sizes if n is not None), f"{HEADERS}: bytes of all tensors"
    return _index(recorded, "total_size"), f"{INDEX_FILE}: total_size"


def _file_params(recorded: Sequence[Recorded], fields: dict[str, str]) -> tuple[int | None, str]:
    """Elements of all tensors of files that keep every weight as a plain float."""
    sizes = {r.key: _number({"": r.value}, "") for r in recorded if r.source == HEADERS and r.key.startswith("bytes_")}
    plain = "quantization_config.quant_method" not in fields and sizes and set(sizes) <= set(FLOAT_BYTES)
    if plain and all(n is not None and n % FLOAT_BYTES[k] == 0 for k, n in sizes.items()):
        return sum((n or 0) // FLOAT_BYTES[k] for k, n in sizes.items()), f"{HEADERS}: elements of all tensors"
    return _index(recorded, "total_parameters"), f"{INDEX_FILE}: total_parameters"


def _packed(kind: WeightType, recorded: Sequence[Recorded], counted: architecture.Counted | None) -> WeightType:
    """Bits of packed integers of a width that nobody tells: bytes of the files over the parameters counted."""
    size, who = _file_bytes(recorded)
    told = {r.detail: r.value for r in recorded if r.source == CONFIG_FILE}
    if kind.bits is not None or told.get("quantization_config.format") != PACKED or size is None or counted is None:
        return kind
    return WeightType(Fraction(size * 8, counted.total), "bf16", kind.name, f"{who} {OVER_COUNTED}")


def _total(
    recorded: Sequence[Recorded],
    counted: architecture.Counted | None,
    kind: WeightType,
    row: ModelRow | None,
    conflicts: list[str],
) -> Fact[int] | None:
    size, plain = _index(recorded, "total_size"), kind.bits in {16, 32} and not kind.fallback
    elements, who = _file_params(recorded, config_fields(recorded))
    candidates: list[tuple[int | None, str, Provenance]] = [
        (elements, who, "measured"),
        (counted.total if counted else None, f"counted from {CONFIG_FILE}", "derived"),
        (_whole(size, kind.bits) if plain else None, f"{INDEX_FILE}: total_size by {kind.name}", "derived"),
        (row.total_params if row else None, _row_source(row), provenance(row) if row else "estimated"),
    ]
    known = [Fact(v, s, p) for v, s, p in candidates if v is not None]
    for other in known[1:]:
        if abs(other.value - known[0].value) > TOLERANCE * known[0].value:
            conflicts.append(
                f"parameters: {known[0].value} ({known[0].source}), {other.value} ({other.source}); the first counts"
            )
    return known[0] if known else None


def _whole(size_bytes: int | None, bits: Number | None) -> int | None:
    return None if size_bytes is None or not bits else int(Fraction(size_bytes * 8) / bits)


def _active(
    counted: architecture.Counted | None, text_part: bool, total: Fact[int] | None, row: ModelRow | None
) -> Fact[int] | None:
    if counted is not None and (counted.active is not None or text_part):
        what = "the text part" if text_part else "those of a token"
        return Fact(counted.active or counted.total, f"counted from {CONFIG_FILE}: {what}", "derived")
    if counted is None and row is not None and row.active_params is not None:
        return Fact(row.active_params, _row_source(row), provenance(row))
    return total


def _weights(
    recorded: Sequence[Recorded], fields: dict[str, str], total: Fact[int] | None, kind: WeightType
) -> Fact[Fraction] | None:
    """Bytes of the files where the engine loads them as they are, else parameters times bits."""
    size, who = _file_bytes(recorded)
    own = kind.source.startswith((CONFIG_FILE, CATALOGUE, OVERLAY, HEADERS, INDEX_FILE)) or kind.fallback
    same = fields.get("quantization_config.quant_method", "").lower() == kind.name
    if size is not None and (own or same or _same_type(fields, kind)):
        return Fact(Fraction(size, 10**9), who, "measured")
    gb = weight_gb(total.value if total else None, kind.bits)
    if gb is None or total is None:
        return None
    made: Provenance = "derived" if total.provenance == "measured" else total.provenance
    bits = type_provenance(kind)
    if bits == "assumed" or (bits == "estimated" and made == "derived"):
        made = bits
    return Fact(gb, f"{total.source}, {kind.name} ({kind.source})", made)


def type_provenance(kind: WeightType) -> Provenance:
    """What the bits of a weight may call themselves."""
    if kind.source.startswith((OVERLAY, GIVEN)):
        return "assumed"
    if kind.fallback or kind.source.startswith(CATALOGUE):
        return "estimated"
    return "derived" if kind.source.endswith(OVER_COUNTED) else "measured"


def _same_type(fields: dict[str, str], kind: WeightType) -> bool:
    """Whether the files hold the plain type that the engine says it uses."""
    told = next((fields[k].removeprefix("torch.") for k in DTYPE_KEYS if k in fields), None)
    return "quantization_config.quant_method" not in fields and told is not None and told == kind.name


def _catalogue_fact(row: ModelRow | None, shape: KvShape | None) -> Fact[KvShape] | None:
    if row is None or shape is None or shape.kv_heads is None or shape.head_dim is None or shape.layers is None:
        return None
    return Fact(shape, _row_source(row), provenance(row))


def _row_source(row: ModelRow | None) -> str:
    if row is None:
        return ""
    doubt = ", doubtful" if row.doubtful else ""
    return f"{_row_name(row)} ({row.date}{doubt})"


def _row_name(row: ModelRow) -> str:
    return f"{CATALOGUE if row.origin == 'catalogue' else OVERLAY}, {row.name}"


def _kv_element(recorded: Sequence[Recorded], fields: dict[str, str]) -> KvElement:
    order = (*reversed(REPORTED), *COMMAND_LINE, ENVIRONMENT)
    found = next(iter(_of(recorded, ("kv_cache_dtype", "cache_dtype"), order)), None)
    plain = next((r.value for r in _of(recorded, DTYPE_KEYS, (*REPORTED, *COMMAND_LINE)) if meaningful(r.value)), None)
    model_dtype = plain or next((fields[k] for k in DTYPE_KEYS if k in fields), None)
    return kv_element(found.value if found else None, found.source if found else "", model_dtype)


def _type_conflicts(recorded: Sequence[Recorded], kind: WeightType) -> list[str]:
    """Sources that name a quantisation other than the one that counts."""
    every = [r for r in recorded if r.key in QUANTIZATION_KEYS and meaningful(r.value)]
    others = sorted({f"{r.value} ({r.source})" for r in every if r.value.strip().lower() != kind.name})
    return [f"type of weights: {kind.name} ({kind.source}), but also {', '.join(others)}"] if others else []


def _missing(
    name: str | None, fields: dict[str, str], total: Fact[int] | None, kind: WeightType, *, shape: KvShape | None,
    row: ModelRow | None,
) -> Iterable[tuple[str, str]]:  # fmt: skip
    told = f"{CONFIG_FILE} has type {fields['model_type']!r}" if "model_type" in fields else f"no {CONFIG_FILE}"
    named = f"the catalogue has no model {name!r}" if name else "the engine names no model"
    if total is None:
        yield "total", f"{told} that parameters can be counted from, no safetensors index, and {named}"
    if kind.bits is None:
        yield "bits", kind.reason
    if shape is None and (row is None or _catalogue_fact(row, row.kv_shape) is None):
        yield "kv", f"{told} that tells the KV cache, and {named if row is None else 'the catalogue does not either'}"
