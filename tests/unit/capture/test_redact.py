"""Secrets do not get from a command line into the evidence; settings do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gpuaudit.capture.options import CaptureOptions
from gpuaudit.capture.processes import read_process
from gpuaudit.capture.redact import REDACTED, is_secret, redact_arguments, redact_text
from gpuaudit.capture.session import _open_body

SECRET = "Xq7-hunter2"  # noqa: S105 - of nobody


@pytest.mark.parametrize(
    "arguments",
    [
        ["vllm", "serve", "m", "--api-key", SECRET], ["vllm", "serve", "m", f"--api-key={SECRET}", "--port", "1"],
        ["vllm", "serve", "m", "--api_key", SECRET, SECRET + "2", "--port", "1"], ["x", "-token", SECRET],
        ["x", "--hf-token", SECRET], ["x", "--apiKey", SECRET], ["x", "--db.password", SECRET],
        ["env", f"HF_TOKEN={SECRET}", "python"], ["docker", "run", "-e", f"OPENAI_API_KEY={SECRET}", "image"],
        ["python", f"wandb.api_key={SECRET}"], ["bash", "-c", f"export HF_TOKEN='{SECRET}'; vllm serve m"],
        ["bash", "-c", f"vllm serve m --api-key {SECRET} --port 1"], [f"vllm serve m --api-key={SECRET} --port 1"],
        ["x", f'{{"model": "m", "api_key": "{SECRET}"}}'], ["x", f'{{\\"secret\\": \\"{SECRET}\\"}}'],
        ["curl", "-H", f"Authorization: Bearer {SECRET}"], ["curl", "-H", f"X-Api-Key: {SECRET}"],
        ["git", f"https://me:{SECRET}@host/x"], ["git", f"https://{SECRET}@host/x"], ["x", f"http://h/?token={SECRET}&a=b"],
        ["x", "sk-proj-" + SECRET], ["x", "hf_abcdefghijk" + SECRET.replace("-", "")],
    ],
)  # fmt: skip
def test_a_secret_is_replaced(arguments: list[str]) -> None:
    redacted = redact_arguments(arguments)
    assert len(redacted) == len(arguments)
    assert "hunter2" not in str(redacted)
    assert REDACTED in str(redacted)


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve org/model --port 8000 --max-num-batched-tokens 4096 --tokenizer t --max-num-seqs=64 -tp 2",
        "python -m sglang.launch_server --model-path m --max-total-tokens 9000 --chunked-prefill-size 8192",
        "text-generation-launcher --max-batch-prefill-tokens 4096 --max-total-tokens=2048",
        "python train.py --eos-token-id 2 --pad_token_id=0 --key-value x --seed 1 lr=0.1 tokens_per_batch=8",
        "llama-server -m /models/m.gguf -np 4 --keyframe 3", "http://127.0.0.1:8000/metrics", "unix:///run/vllm.sock",
        '{"audio_token_index":5,"num_key_value_heads":8,"bos_token":"<s>","tokenizer_class":"T","tokens_per_image":4}',
    ],
)  # fmt: skip
def test_settings_stay_as_they_are(line: str) -> None:
    assert redact_arguments(line.split()) == line.split()
    assert redact_text(line) == line


def test_what_follows_a_secret_stays() -> None:
    assert redact_arguments(["vllm", "serve", "m", "--api-key", "a", "--port", "1"])[-2:] == ["--port", "1"]


@pytest.mark.parametrize(("name", "secret"), [("HF_TOKEN", True), ("apiKey", True), ("max-tokens", False), ("", False)])
def test_names(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_command_lines_of_processes_come_without_secrets() -> None:
    arguments = ["--api-key", SECRET, "--max-num-seqs", "64"]
    command = [sys.executable, "-c", "print(flush=True); input()", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        info = read_process(process.pid)
    finally:
        process.communicate(b"\n")
    assert info is not None
    assert info.command_line is not None
    assert info.command_line.endswith(f"--api-key {REDACTED} --max-num-seqs 64")


def test_the_first_leaf_has_no_secret_of_the_command_nor_of_a_url() -> None:
    options = CaptureOptions(
        command=("vllm", "serve", "m", "--api-key", SECRET),
        allow_remote=(f"http://192.0.2.1:1/metrics?token={SECRET}",),
    )
    options_of_leaf = _open_body(options, {}, None)["options"]
    assert "hunter2" not in str(options_of_leaf)
    assert str(options_of_leaf).count(REDACTED) == 2


def test_a_long_text_of_one_letter_ends() -> None:
    for text in ("a" * 4096, "-a" * 2048, "a=" * 2048, '"' * 4096, "--token " * 512, "://" + "a" * 4096):
        redact_text(text)
