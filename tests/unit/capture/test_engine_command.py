"""Command lines and environments of engines: which kind, which settings, and nothing that was not asked for."""

from __future__ import annotations

import pytest

from gpuaudit.capture.engine_command import engine_command, kind_of
from gpuaudit.capture.engine_names import BY_NAME, identify, is_recorded


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("/usr/bin/python3 /opt/bin/vllm serve m", "vllm"), ("vllm serve m --port 1", "vllm"),
        ("python -u -m vllm.entrypoints.openai.api_server --model m", "vllm"),
        ("python3 -m sglang.launch_server --model-path m", "sglang"), ("text-generation-router --port 3000", "tgi"),
        ("/opt/tritonserver/bin/tritonserver --model-repository=/m", "triton"),
        ("./llama-server -m m.gguf", "llama_cpp"),
        ("python train.py --model vllm", "unknown"), ("python -m vllmish.server", "unknown"), ("", "unknown"),
        ("bash -c vllm", "vllm"), ("audit capture -- vllm serve m", "unknown"), ("VLLM::EngineCore", "unknown"),
    ],
)  # fmt: skip
def test_kinds(line: str, kind: str) -> None:
    assert kind_of(line.split()).name == kind


def test_settings_of_vllm() -> None:
    line = (
        "vllm serve org/model --max-num-seqs=64 --max_model_len 4096 -tp 2 --no-enable-prefix-caching --enforce-eager "
        "--quantization fp8 --api-key secret --gpu-memory-utilization 0.85 --port 8001 -1"
    )
    command = engine_command(
        BY_NAME["vllm"], line.split(), {"VLLM_DTYPE": "bfloat16", "DTYPE": "half", "MAX_NUM_SEQS": "9", "HOME": "/h"}
    )
    assert command.model == "org/model"
    assert command.port() == 8001
    assert list(command.settings()) == [
        ("model", "org/model", "command line", "positional"), ("max_num_seqs", "64", "command line", "--max-num-seqs"),
        ("max_model_len", "4096", "command line", "--max-model-len"),
        ("tensor_parallel_size", "2", "command line", "--tp"),
        ("enable_prefix_caching", "false", "command line", "--no-enable-prefix-caching"),
        ("enforce_eager", "true", "command line", "--enforce-eager"),
        ("quantization", "fp8", "command line", "--quantization"),
        ("gpu_memory_utilization", "0.85", "command line", "--gpu-memory-utilization"),
        ("dtype", "bfloat16", "environment", "VLLM_DTYPE"), ("max_num_seqs", "9", "environment", "MAX_NUM_SEQS"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "line", "variables", "port", "setting"),
    [
        ("sglang", "python -m sglang.launch_server --model-path m --max-running-requests 7", {}, 30000,
         ("max_num_seqs", "7", "command line", "--max-running-requests")),
        ("tgi", "text-generation-launcher", {"PORT": "80", "MODEL_ID": "m"}, 80,
         ("model", "m", "environment", "MODEL_ID")),
        ("triton", "tritonserver --metrics-port 9002 --http-port 1", {}, 9002, None),
        ("llama_cpp", "llama-server -m /m.gguf -np 4", {}, 8080, ("max_num_seqs", "4", "command line", "--np")),
    ],
)  # fmt: skip
def test_other_kinds(
    kind: str, line: str, variables: dict[str, str], port: int, setting: tuple[str, str, str, str] | None
) -> None:
    command = engine_command(BY_NAME[kind], line.split(), variables)
    assert command.port() == port
    settings = list(command.settings())
    assert setting in settings if setting else settings == []


def test_the_module_that_python_runs_is_no_model() -> None:
    line = "python -m vllm.entrypoints.cli.main serve org/m"
    assert engine_command(BY_NAME["vllm"], line.split(), {}).model == "org/m"


@pytest.mark.parametrize("port", ["x", "99999999", "-1"])
def test_a_port_that_is_none(port: str) -> None:
    assert engine_command(BY_NAME["vllm"], ["vllm", "serve", "m", f"--port={port}"], {}).port() is None


@pytest.mark.parametrize(
    ("metrics", "kind"),
    [
        (["vllm:num_requests_running"], "vllm"), (["vllm_num_requests_running"], "vllm"), (["ray_vllm_x"], "vllm"),
        (["sglang:num_running_reqs", "python_info"], "sglang"), (["tgi_queue_size"], "tgi"),
        (["nv_inference_request_success", "nv_gpu_utilization", "vllm:x"], "triton"), (["llamacpp:x"], "llama_cpp"),
        (["python_info", "http_requests_total"], "unknown"), ([], "unknown"),
    ],
)  # fmt: skip
def test_metrics_tell_the_kind(metrics: list[str], kind: str) -> None:
    assert identify(metrics).name == kind


def test_what_is_recorded() -> None:
    vllm = BY_NAME["vllm"]
    assert is_recorded("vllm:anything_new", vllm)
    assert is_recorded("process_start_time_seconds", vllm)
    assert not is_recorded("http_requests_total", vllm)
    assert not is_recorded("sglang:x", vllm)
