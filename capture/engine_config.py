"""What an engine answers of its settings, and what its model's files say: hostile JSON, into rows of ``engine_config``.

Every value is kept as found, with its source. Which of two that disagree counts is for analysis to say.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from gpuaudit.bundle.limits import MAX_JSON_COMMAS
from gpuaudit.capture.engine_command import FLAGS, MAX_VALUE_CHARS, Setting
from gpuaudit.capture.redact import is_secret, redact_text

MAX_ANSWER_BYTES = 1 << 20
MAX_CONFIG_BYTES = 4 << 20
MAX_INDEX_BYTES = 64 << 20
"""config.json of a real model has 1 to 100 kB, the index of one with 60,000 tensors 6 MB."""

MAX_HEADER_BYTES = 16 << 20
MAX_COMMAS = 65_536
"""Bounds the objects that settings become in memory; an index has one per tensor and is given more room."""

MAX_SHARDS = 512
MAX_SETTINGS = 512
"""Per source: a file with more keys than this is no model's."""

CONFIG_FILE, INDEX_FILE, ONE_FILE = "config.json", "model.safetensors.index.json", "model.safetensors"
INDEX_SOURCE, HEADER_SOURCE = "safetensors index", "safetensors header"
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}\Z")
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}\.safetensors\Z")
_INNER = ("text_config", "language_config", "llm_config", "thinker_config")
"""Where models with more than text keep what their language part is (transformers, configuration_*.py)."""

_NESTED = ("quantization_config", "rope_scaling", "rope_parameters", *_INNER)

DTYPES = frozenset({
    "F64", "I64", "U64", "F32", "I32", "U32", "F16", "BF16", "I16", "U16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8",
    "BOOL", "F6_E2M3", "F6_E3M2", "F4", "C64",
})  # fmt: skip
"""Types of tensors: safetensors/src/tensor.rs, ``Dtype``."""

OpenFile = Callable[[str], int]


class Unreadable(ValueError):
    """What was got is not what it should be; the text says why."""


def read_json(raw: bytes, limit: int, commas: int = MAX_COMMAS) -> dict[str, Any]:
    """A JSON object of at most ``limit`` bytes and ``commas`` commas. Unreadable otherwise."""
    if len(raw) > limit:
        raise Unreadable(f"more than {limit} bytes")
    if raw.count(b",") > commas:
        raise Unreadable("more values than a settings file has")
    try:
        found = json.loads(raw, parse_int=_whole)
    except (ValueError, RecursionError) as e:
        raise Unreadable(f"no JSON: {str(e)[:80]}") from None
    if not isinstance(found, dict):
        raise Unreadable("JSON, but no object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > 30:
        raise ValueError("a number of more than 30 digits")
    return int(digits)


def of_answer(path: str, body: bytes) -> Iterator[Setting]:
    """Settings in the answer to one of :attr:`gpuaudit.capture.engine_names.EngineKind.ask`. Unreadable where none."""
    source = path.partition("?")[0]
    answer = read_json(body, MAX_ANSWER_BYTES)
    found = _ANSWERS[source](answer) if source in _ANSWERS else iter(())
    for count, (key, value, detail) in enumerate(found):
        text = _text(value)
        if text is not None and count < MAX_SETTINGS:
            yield key, redact_text(text), source, detail


Found = Iterator[tuple[str, Any, str]]


def _models(answer: dict[str, Any]) -> Found:
    listed = answer.get("data")
    first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
    for key, name in (("id", "model"), ("root", "root"), ("max_model_len", "max_model_len")):
        if key in first:
            yield name, first[key], f"data[0].{key}"


_SERVER_INFO = {
    "model_config": ("model", "dtype", "quantization", "max_model_len", "enforce_eager", "served_model_name"),
    "cache_config": (
        "block_size", "num_gpu_blocks", "gpu_memory_utilization", "enable_prefix_caching", "cache_dtype",
        "kv_cache_memory_bytes", "cpu_offload_gb",
    ),
    "parallel_config": (
        "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel",
    ),
    "scheduler_config": (
        "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "chunked_prefill_enabled", "policy",
    ),
    "speculative_config": ("method", "num_speculative_tokens"),
}  # fmt: skip
_RENAMED = {
    "cache_dtype": "kv_cache_dtype", "chunked_prefill_enabled": "enable_chunked_prefill",
    "policy": "scheduling_policy", "method": "speculative_method",
}  # fmt: skip


def _server_info(answer: dict[str, Any]) -> Found:
    """vLLM: vllm/entrypoints/serve/instrumentator/server_info.py, in development mode only."""
    config = answer.get("vllm_config")
    for part, keys in _SERVER_INFO.items():
        inner = config.get(part) if isinstance(config, dict) else None
        if not isinstance(inner, dict):
            continue
        for key in keys:
            if key in inner:
                yield _RENAMED.get(key, key), inner[key], f"vllm_config.{part}.{key}"


def _flat(kind: str) -> Callable[[dict[str, Any]], Found]:
    """An answer whose members are named as the flags of the command line."""

    def read(answer: dict[str, Any]) -> Found:
        for key, value in answer.items():
            name = FLAGS[kind].get(key.replace("_", "-"))
            if name is not None:
                yield name, value, key

    return read


def _info(answer: dict[str, Any]) -> Found:
    """TGI: router/src/server.rs, struct Info."""
    yield from _flat("tgi")(answer)
    if "model_dtype" in answer:
        yield "dtype", answer["model_dtype"], "model_dtype"


def _props(answer: dict[str, Any]) -> Found:
    """llama.cpp: tools/server/README.md, GET /props."""
    inner = answer.get("default_generation_settings")
    if isinstance(inner, dict) and "n_ctx" in inner:
        yield "max_model_len", inner["n_ctx"], "default_generation_settings.n_ctx"
    for key, name in (("total_slots", "max_num_seqs"), ("model_path", "model")):
        if key in answer:
            yield name, answer[key], key


def _version(answer: dict[str, Any]) -> Found:
    if "version" in answer:
        yield "engine_version", answer["version"], "version"


_ANSWERS: dict[str, Callable[[dict[str, Any]], Found]] = {
    "/v1/models": _models, "/server_info": _server_info, "/get_server_info": _flat("sglang"), "/info": _info,
    "/props": _props, "/version": _version, "/v2": _version,
}  # fmt: skip


def of_files(open_file: OpenFile) -> Iterator[Setting]:
    """What the files of the model's folder say; a file that is missing or cannot be read says nothing but that."""
    for name, read in ((CONFIG_FILE, _config_file), (INDEX_FILE, _index_file)):
        try:
            yield from read(open_file)
        except (OSError, Unreadable) as e:
            yield "unreadable", _why(e), name, name
    yield from _headers(open_file)


def _config_file(open_file: OpenFile) -> Iterator[Setting]:
    config = read_json(_whole_file(open_file(CONFIG_FILE), MAX_CONFIG_BYTES), MAX_CONFIG_BYTES)
    count = 0
    for path, value in _members(config):
        text = None if is_secret(path) else _text(value)
        if text is not None and (count := count + 1) <= MAX_SETTINGS:
            outer, _, rest = path.partition(".")
            yield rest if outer in _INNER else path, redact_text(text), CONFIG_FILE, path


def _members(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if not _KEY.match(key):
            continue
        if isinstance(value, dict) and key in _NESTED:
            for inner, deeper in value.items():
                if _KEY.match(inner):
                    yield f"{key}.{inner}", deeper
        else:
            yield key, value


def _index_file(open_file: OpenFile) -> Iterator[Setting]:
    index = read_json(_whole_file(open_file(INDEX_FILE), MAX_INDEX_BYTES), MAX_INDEX_BYTES, MAX_JSON_COMMAS)
    metadata = index.get("metadata")
    for key in ("total_size", "total_parameters"):
        value = metadata.get(key) if isinstance(metadata, dict) else None
        text = str(int(value)) if isinstance(value, float) and value == int(value) else _text(value)
        if text is not None:
            yield key, text, INDEX_SOURCE, f"metadata.{key}"


def _headers(open_file: OpenFile) -> Iterator[Setting]:
    """Bytes of the weights by type, from the headers of every shard; none of them where one cannot be read."""
    sizes: Counter[str] = Counter()
    try:
        shards = _shards(open_file)
        for name in shards:
            sizes.update(_header(open_file(name)))
    except (OSError, Unreadable, OverflowError) as e:
        yield "unreadable", _why(e), HEADER_SOURCE, ONE_FILE
        return
    for dtype, size in sorted(sizes.items()):
        yield f"bytes_{dtype.lower()}", str(size), HEADER_SOURCE, f"{len(shards)} files"


def _shards(open_file: OpenFile) -> list[str]:
    try:
        index = read_json(_whole_file(open_file(INDEX_FILE), MAX_INDEX_BYTES), MAX_INDEX_BYTES, MAX_JSON_COMMAS)
    except FileNotFoundError:
        return [ONE_FILE]
    weights = index.get("weight_map")
    names = {n for n in weights.values() if isinstance(n, str)} if isinstance(weights, dict) else set()
    if not names or len(names) > MAX_SHARDS or not all(_SHARD.match(n) for n in names):
        raise Unreadable("the index names no shards that could be looked at")
    return sorted(names)


def _header(fd: int) -> Counter[str]:
    """Bytes by type in one file: 8 bytes of length, little-endian, and as many of JSON (safetensors, README)."""
    with os.fdopen(fd, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise Unreadable(f"a header of {length} bytes")
        header = read_json(f.read(length), MAX_HEADER_BYTES, MAX_JSON_COMMAS)
        size = os.fstat(f.fileno()).st_size - 8 - length
    sizes: Counter[str] = Counter()
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or tensor.get("dtype") not in DTYPES:
            raise Unreadable("a tensor without type and place")
        begin, end = offsets
        if not isinstance(begin, int) or not isinstance(end, int) or not 0 <= begin <= end <= size:
            raise Unreadable("a tensor that is not within its file")
        sizes[str(tensor["dtype"])] += end - begin
    return sizes


def _whole_file(fd: int, limit: int) -> bytes:
    with os.fdopen(fd, "rb") as f:
        return f.read(limit + 1)


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be opened: {error.strerror or error}"[:MAX_VALUE_CHARS]
    return str(error)[:MAX_VALUE_CHARS]


def _text(value: Any) -> str | None:
    """As JSON writes it, a string without its quotes; None for an object, and for what is longer than a setting."""
    if value is None or isinstance(value, dict):
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_VALUE_CHARS else None
