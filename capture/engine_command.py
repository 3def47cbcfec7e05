"""What an engine's process was told: its command line, and a few variables of its environment, by name.

No other variable is looked at: environments hold keys and passwords.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.capture.engine_names import KINDS, UNKNOWN, EngineKind
from gpuaudit.capture.environment import may_read
from gpuaudit.capture.processes import PROC

MAX_BYTES = 1 << 20
"""Of a command line or an environment: what Linux itself allows is 6 MiB, what a server has is a few kB."""

MAX_VALUE_CHARS = 1024

Setting = tuple[str, str, str, str]
"""Key, value as found, source, detail."""

_VLLM_FLAGS: dict[str, str] = {
    "model": "model", "served-model-name": "served_model_name", "dtype": "dtype", "quantization": "quantization",
    "q": "quantization", "kv-cache-dtype": "kv_cache_dtype", "max-model-len": "max_model_len",
    "max-num-seqs": "max_num_seqs", "max-num-batched-tokens": "max_num_batched_tokens", "block-size": "block_size",
    "num-gpu-blocks-override": "num_gpu_blocks_override", "gpu-memory-utilization": "gpu_memory_utilization",
    "enable-prefix-caching": "enable_prefix_caching", "enable-chunked-prefill": "enable_chunked_prefill",
    "tensor-parallel-size": "tensor_parallel_size", "tp": "tensor_parallel_size",
    "pipeline-parallel-size": "pipeline_parallel_size", "pp": "pipeline_parallel_size",
    "data-parallel-size": "data_parallel_size", "dp": "data_parallel_size",
    "enable-expert-parallel": "enable_expert_parallel", "enforce-eager": "enforce_eager",
    "cpu-offload-gb": "cpu_offload_gb", "swap-space": "swap_space_gib", "load-format": "load_format",
    "speculative-config": "speculative_config", "revision": "revision", "async-scheduling": "async_scheduling",
    "kv-offloading-size": "kv_offloading_size", "scheduling-policy": "scheduling_policy",
}  # fmt: skip
"""vLLM 0.32, vllm/engine/arg_utils.py."""

FLAGS: dict[str, dict[str, str]] = {
    "vllm": _VLLM_FLAGS,
    "sglang": {
        "model-path": "model", "model": "model", "served-model-name": "served_model_name", "dtype": "dtype",
        "quantization": "quantization", "kv-cache-dtype": "kv_cache_dtype", "context-length": "max_model_len",
        "max-running-requests": "max_num_seqs", "chunked-prefill-size": "chunked_prefill_size",
        "mem-fraction-static": "mem_fraction_static", "page-size": "block_size",
        "max-total-tokens": "max_total_tokens", "disable-radix-cache": "disable_radix_cache",
        "tp": "tensor_parallel_size", "tp-size": "tensor_parallel_size", "tensor-parallel-size": "tensor_parallel_size",
        "pp-size": "pipeline_parallel_size", "pipeline-parallel-size": "pipeline_parallel_size",
        "dp": "data_parallel_size", "dp-size": "data_parallel_size", "data-parallel-size": "data_parallel_size",
    },
    "tgi": {
        "model-id": "model", "dtype": "dtype", "quantize": "quantization", "kv-cache-dtype": "kv_cache_dtype",
        "num-shard": "tensor_parallel_size", "max-total-tokens": "max_model_len", "max-batch-size": "max_num_seqs",
        "max-batch-prefill-tokens": "max_num_batched_tokens", "max-batch-total-tokens": "max_batch_total_tokens",
        "max-concurrent-requests": "max_concurrent_requests", "cuda-memory-fraction": "gpu_memory_utilization",
    },
    "triton": {"model-repository": "model_repository", "model-store": "model_repository"},
    "llama_cpp": {
        "m": "model", "model": "model", "c": "ctx_size", "ctx-size": "ctx_size", "np": "max_num_seqs",
        "parallel": "max_num_seqs", "b": "max_num_batched_tokens", "batch-size": "max_num_batched_tokens",
        "ctk": "kv_cache_dtype", "cache-type-k": "kv_cache_dtype", "ngl": "gpu_layers", "n-gpu-layers": "gpu_layers",
    },
}  # fmt: skip
"""Flag without its hyphens → key. SGLang server_arguments, TGI launcher, Triton and llama-server --help."""

_SWITCHES = frozenset({
    "enable-prefix-caching", "enable-chunked-prefill", "enable-expert-parallel", "enforce-eager", "async-scheduling",
    "disable-radix-cache",
})  # fmt: skip

_PLAIN_VARIABLES = (
    "DTYPE", "QUANTIZATION", "MAX_MODEL_LEN", "MAX_NUM_SEQS", "GPU_MEMORY_UTILIZATION", "KV_CACHE_DTYPE",
    "ENABLE_CHUNKED_PREFILL", "BLOCK_SIZE", "ENABLE_PREFIX_CACHING", "ENFORCE_EAGER", "MAX_NUM_BATCHED_TOKENS",
    "TENSOR_PARALLEL_SIZE", "PIPELINE_PARALLEL_SIZE",
)  # fmt: skip
VARIABLES: dict[str, dict[str, str]] = {
    "vllm": {prefix + name: name.lower() for name in _PLAIN_VARIABLES for prefix in ("VLLM_", "")},
    "tgi": {
        "MODEL_ID": "model", "DTYPE": "dtype", "QUANTIZE": "quantization", "NUM_SHARD": "tensor_parallel_size",
        "MAX_TOTAL_TOKENS": "max_model_len", "MAX_BATCH_SIZE": "max_num_seqs",
        "MAX_BATCH_PREFILL_TOKENS": "max_num_batched_tokens", "CUDA_MEMORY_FRACTION": "gpu_memory_utilization",
    },
}  # fmt: skip
"""Variable → key. The first spelling in the table that is set counts."""

PLACE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME", "PORT")
"""Where a model that is named by its repository lies, and TGI's port. Used, not recorded."""

_MODEL_FLAGS = ("model", "model-path", "model-id")


@dataclass(frozen=True)
class EngineCommand:
    """One server's process as it was started. ``flags``: name without hyphens → value, "" for one without."""

    kind: EngineKind
    flags: dict[str, str]
    variables: dict[str, str]
    model: str | None

    def settings(self) -> Iterator[Setting]:
        """What it was told, in the words of ``engine_config``."""
        names = FLAGS.get(self.kind.name, {})
        if self.model is not None and not any(names.get(f) == "model" for f in self.flags):
            yield "model", self.model[:MAX_VALUE_CHARS], "command line", "positional"
        for flag, value in self.flags.items():
            positive = flag.removeprefix("no-")
            if flag in names:
                yield names[flag], (value or "true")[:MAX_VALUE_CHARS], "command line", f"--{flag}"
            elif positive in _SWITCHES and positive in names:
                yield names[positive], "false", "command line", f"--{flag}"
        told = set()
        for variable, key in VARIABLES.get(self.kind.name, {}).items():
            found = self.variables.get(variable)
            if found and key not in told:
                told.add(key)
                yield key, found[:MAX_VALUE_CHARS], "environment", variable

    def port(self) -> int | None:
        """The port its metrics are to be on: that of its flag, of its variable, or its kind's own."""
        flag = self.flags.get("metrics-port" if self.kind.name == "triton" else "port")
        text = flag or (self.variables.get("PORT") if self.kind.name == "tgi" else None)
        if text is None:
            return self.kind.port
        return int(text) if re.fullmatch(r"[0-9]{1,5}", text) else None


def read_command(pid: int) -> EngineCommand | None:
    """The engine that ``pid`` was started as; None where its command line is not that of one."""
    arguments = _strings(f"{PROC}/{pid}/cmdline")
    kind = kind_of(arguments)
    if kind is UNKNOWN:
        return None
    wanted = {*VARIABLES.get(kind.name, {}), *PLACE_VARIABLES}
    return engine_command(kind, arguments, _variables(pid, wanted))


def engine_command(kind: EngineKind, arguments: Sequence[str], variables: dict[str, str]) -> EngineCommand:
    """From its parts."""
    flags = _flags(arguments)
    names = (*_MODEL_FLAGS, "m") if kind.name == "llama_cpp" else _MODEL_FLAGS  # -m of python is no model
    model = next((flags[f] for f in names if flags.get(f)), None) or variables.get("MODEL_ID")
    if model is None and kind.name == "vllm":
        model = _positional(arguments)
    return EngineCommand(kind, flags, variables, model)


def kind_of(arguments: Sequence[str]) -> EngineKind:
    """The kind of engine that a command line starts: by the program's name, or by the module after ``-m``."""
    head = list(arguments[:8])
    for i, argument in enumerate(head):
        name = argument.rpartition("/")[2]
        for kind in KINDS:
            if i < 3 and name in kind.commands:
                return kind
            if i and head[i - 1] == "-m" and argument.split(".")[0] in kind.commands:
                return kind
    return UNKNOWN


def _positional(arguments: Sequence[str]) -> str | None:
    """The model in ``vllm serve MODEL``."""
    for i, argument in enumerate(arguments[:-1]):
        if argument == "serve":
            following = arguments[i + 1]
            return None if following.startswith("-") else following
    return None


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    flags: dict[str, str] = {}
    for i, argument in enumerate(arguments):
        found = re.fullmatch(r"--?([A-Za-z][A-Za-z0-9_-]{0,63})(?:=(.*))?", argument, re.DOTALL)
        if found is None:
            continue
        name = found[1].replace("_", "-")
        following = arguments[i + 1] if i + 1 < len(arguments) else ""
        takes_next = found[2] is None and name not in _SWITCHES and not re.match(r"--?[A-Za-z]", following)
        flags[name] = found[2] if found[2] is not None else following if takes_next else ""
    return flags


def _variables(pid: int, wanted: set[str]) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in _strings(f"{PROC}/{pid}/environ"))
    return {name: value for name, _, value in pairs if name in wanted and may_read(name)}


def _strings(path: str) -> list[str]:
    """The NUL-separated strings of a file of /proc; none where it cannot be read."""
    try:
        with Path(path).open("rb") as f:
            raw = f.read(MAX_BYTES)
    except OSError:
        return []
    return [s.decode("utf-8", "backslashreplace") for s in raw.rstrip(b"\0").split(b"\0")] if raw else []
