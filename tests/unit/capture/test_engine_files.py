"""The model's folder: what its files say, and that nothing leads out of it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuaudit.capture.engine_command import EngineCommand, Setting, engine_command
from gpuaudit.capture.engine_config import Unreadable, of_answer, of_files
from gpuaudit.capture.engine_files import ModelFolder
from gpuaudit.capture.engine_names import BY_NAME


def command(model: str, **variables: str) -> EngineCommand:
    return engine_command(BY_NAME["vllm"], ["vllm", "serve", model], variables)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two shards, 2 × 3 bf16 and 4 f8 elements."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "num_hidden_layers": 2, "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8", "bits": 8},
        "text_config": {"hidden_size": 64}, "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": None, "auto_map": {"x": "y"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shard(folder / "a-1.safetensors", {"w": ("BF16", 12)})
    shard(folder / "a-2.safetensors", {"v": ("F8_E4M3", 4)})
    index = {"metadata": {"total_size": 16}, "weight_map": {"w": "a-1.safetensors", "v": "a-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def readable(model: Path) -> Path:
    """The model's folder, which every user can reach."""
    for folder in (model, *model.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    return model


def shard(path: Path, tensors: dict[str, tuple[str, int]]) -> None:
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [size], "data_offsets": [at, at + size]}  # type: ignore[dict-item]
        at += size
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(at))


def settings(path: Path | str, **variables: str) -> list[Setting]:
    return list(of_files(ModelFolder(os.getpid(), command(str(path), **variables)).open))


def test_what_the_files_say(model: Path) -> None:
    assert settings(model) == [
        ("num_hidden_layers", "2", "config.json", "num_hidden_layers"),
        ("torch_dtype", "bfloat16", "config.json", "torch_dtype"),
        ("quantization_config.quant_method", "fp8", "config.json", "quantization_config.quant_method"),
        ("quantization_config.bits", "8", "config.json", "quantization_config.bits"),
        ("hidden_size", "64", "config.json", "text_config.hidden_size"),
        ("layer_types", '["full_attention", "sliding_attention"]', "config.json", "layer_types"),
        ("total_size", "16", "safetensors index", "metadata.total_size"),
        ("bytes_bf16", "12", "safetensors header", "2 files"),
        ("bytes_f8_e4m3", "4", "safetensors header", "2 files"),
    ]  # fmt: skip


def test_one_file_without_an_index(model: Path) -> None:
    (model / "model.safetensors.index.json").unlink()
    shard(model / "model.safetensors", {"w": ("F32", 8)})
    found = settings(model)
    assert ("bytes_f32", "8", "safetensors header", "1 files") in found
    assert [s for s in found if s[0] == "unreadable"] == [
        ("unreadable", "cannot be opened: No such file or directory", *["model.safetensors.index.json"] * 2)
    ]


def test_a_repository_in_the_cache_of_the_hub(model: Path, tmp_path: Path) -> None:
    """Its files are links to blobs beside them, which is within the model's own folder."""
    commit = "0123456789" * 4
    cached = tmp_path / "hub" / "models--org--m"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "blobs").mkdir()
    (model / "config.json").rename(cached / "blobs" / "x")
    (cached / "snapshots" / commit / "config.json").symlink_to("../../blobs/x")
    assert ("num_hidden_layers", "2", "config.json", "num_hidden_layers") in settings("org/m", HF_HOME=str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("target", ["../outside.json", "{tmp}/outside.json", "/proc/self/root{tmp}/outside.json"])
def test_nothing_leads_out_of_the_folder(model: Path, tmp_path: Path, name: str, target: str) -> None:
    (tmp_path / "outside.json").write_text('{"metadata": {"total_size": 4242}, "hidden": 4242}')
    (model / name).unlink()
    (model / name).symlink_to(target.format(tmp=tmp_path))
    assert "4242" not in str(settings(model))
    assert [s[0] for s in settings(model) if s[2] == name] == ["unreadable"]


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "config.json/../../x", "", "a/b.safetensors"])
def test_other_names_are_not_opened(model: Path, name: str) -> None:
    with pytest.raises(OSError, match="not a file of a model"):
        ModelFolder(os.getpid(), command(str(model))).open(name)


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_only_ordinary_files_are_read(model: Path, kind: str) -> None:
    (model / "config.json").unlink()
    if kind == "fifo":
        os.mkfifo(model / "config.json")
    elif kind == "folder":
        (model / "config.json").mkdir()
    else:
        (model / "config.json").symlink_to("/dev/zero")
    assert [s[0] for s in settings(model) if s[2] == "config.json"] == ["unreadable"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_rights_are_those_of_the_process(readable: Path) -> None:
    """What its user may not read, root does not read for it."""
    model = readable
    (model / "config.json").chmod(0o600)
    process = subprocess.Popen(["sleep", "600"], user=65534, group=65534)
    try:
        folder = ModelFolder(process.pid, command(str(model)))
        with pytest.raises(PermissionError):
            folder.open("config.json")
        os.close(folder.open("model.safetensors.index.json"))
    finally:
        process.kill()
        process.communicate()
    os.close(os.open(model / "config.json", os.O_RDONLY))


def started_as(script: str) -> subprocess.Popen[bytes]:
    """A process that has done what ``script`` says, and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os; {script}; print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("groups", "allowed"), [([], False), ([4242], False), ([4242, 0], True)])
def test_the_groups_are_those_of_the_process(readable: Path, groups: list[int], allowed: bool) -> None:
    """What root's group may read, root does not read for a process that is not in it."""
    (readable / "config.json").chmod(0o640)
    process, before = started_as(f"os.setgroups({groups}); os.setgid(65534); os.setuid(65534)"), os.getgroups()
    try:
        folder = ModelFolder(process.pid, command(str(readable)))
        if allowed:
            os.close(folder.open("config.json"))
        else:
            with pytest.raises(PermissionError):
                folder.open("config.json")
    finally:
        process.communicate(b"\n")
    assert os.getgroups() == before
    os.close(os.open(readable / "config.json", os.O_RDONLY))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("script", ["os.setresuid(65534, 0, 0)", "os.setresgid(65534, 0, 0)", "os.seteuid(65534)"])
def test_a_setuid_program_lends_nobody_its_rights(readable: Path, script: str) -> None:
    process = started_as(script)
    try:
        with pytest.raises(PermissionError):
            ModelFolder(process.pid, command(str(readable))).open("config.json")
    finally:
        process.communicate(b"\n")


def test_what_is_no_ordinary_file_is_not_even_opened(model: Path) -> None:
    """To open a device can do something: a watchdog would start. A FIFO stands for it; inotify sees each opening."""
    path = model / "config.json"
    path.unlink()
    os.mkfifo(path)
    libc, seen_open = ctypes.CDLL(None, use_errno=True), 0x20
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(path), seen_open) > 0
        assert [s[0] for s in settings(model) if s[2] == "config.json"] == ["unreadable"]
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        assert os.read(watch, 4096)
    finally:
        os.close(watch)


def test_a_huge_sparse_file_is_read_no_further_than_its_limit(model: Path) -> None:
    os.truncate(model / "config.json", 1 << 42)
    os.truncate(model / "a-1.safetensors", 1 << 42)
    found = settings(model)
    assert [s[1] for s in found if s[2] == "config.json"] == ["more than 4194304 bytes"]
    assert ("bytes_bf16", "12", "safetensors header", "2 files") in found


def test_settings_that_look_like_secrets_are_left_out(model: Path) -> None:
    (model / "config.json").write_text(
        '{"api_key": "hunter2", "note": "Bearer: hf_abcdefgh12345678", "eos_token_id": 2}'
    )
    found = settings(model)
    assert "hunter2" not in str(found)
    assert "hf_" not in str(found)
    assert ("eos_token_id", "2", "config.json", "eos_token_id") in found


HOSTILE = {
    "no JSON": b"{", "no object": b"[]", "deep": b'{"a":' * 20_000, "many": b'{"a":[' + b"{}," * (1 << 20) + b"{}]}",
    "a number of a million digits": b'{"a":' + b"1" * 1_000_000 + b"}", "not UTF-8": b'{"a":"\xff"}',
    "too long": b'{"a":"' + b"x" * (5 << 20) + b'"}',
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_one_sentence(model: Path, name: str) -> None:
    (model / "config.json").write_bytes(HOSTILE[name])
    found = [s for s in settings(model) if s[2] == "config.json"]
    assert [s[0] for s in found] == ["unreadable"]
    assert len(found[0][1]) < 200
    with pytest.raises(Unreadable):
        list(of_answer("/v1/models", HOSTILE[name]))


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\xff" * 8, (4).to_bytes(8, "little") + b"[{}]", (9).to_bytes(8, "little") + b'{"w": {}}',
        (64).to_bytes(8, "little") + b'{"w": {"dtype": "BF16", "data_offsets": [0, 999999]}}'.ljust(64),
        (64).to_bytes(8, "little") + b'{"w": {"dtype": "BF16", "data_offsets": [5, 1]}}'.ljust(64),
        (64).to_bytes(8, "little") + b'{"w": {"dtype": "EVIL", "data_offsets": [0, 0]}}'.ljust(64),
    ],
)  # fmt: skip
def test_a_broken_header_gives_no_bytes(model: Path, raw: bytes) -> None:
    (model / "a-2.safetensors").write_bytes(raw)
    assert [s[0] for s in settings(model) if s[2] == "safetensors header"] == ["unreadable"]


def test_shards_that_lead_elsewhere(model: Path) -> None:
    index = {"weight_map": {"w": "../../x.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [s[0] for s in settings(model) if s[2] == "safetensors header"] == ["unreadable"]


ANSWERS: dict[str, tuple[object, list[tuple[str, str]]]] = {
    "/v1/models": (
        {"data": [{"id": "m", "root": "/r", "max_model_len": 4096}]},
        [("model", "m"), ("root", "/r"), ("max_model_len", "4096")],
    ),
    "/server_info?config_format=json": (
        {"vllm_config": {"scheduler_config": {"max_num_seqs": 8}, "cache_config": {"cache_dtype": "fp8"}}},
        [("kv_cache_dtype", "fp8"), ("max_num_seqs", "8")],
    ),
    "/get_server_info": (
        {"model_path": "m", "tp_size": 2, "api_key": "secret", "max_running_requests": None},
        [("model", "m"), ("tensor_parallel_size", "2")],
    ),
    "/info": ({"model_id": "m", "model_dtype": "torch.float16"}, [("model", "m"), ("dtype", "torch.float16")]),
    "/props": (
        {"default_generation_settings": {"n_ctx": 512}, "total_slots": 4, "model_path": "/m.gguf"},
        [("max_model_len", "512"), ("max_num_seqs", "4"), ("model", "/m.gguf")],
    ),
    "/version": ({"version": "0.32.0"}, [("engine_version", "0.32.0")]),
    "/elsewhere": ({"model": "m"}, []),
}  # fmt: skip


@pytest.mark.parametrize("path", ANSWERS)
def test_answers(path: str) -> None:
    body, expected = ANSWERS[path]
    found = list(of_answer(path, json.dumps(body).encode()))
    assert [(key, value) for key, value, _, _ in found] == expected
    assert {source for _, _, source, _ in found} <= {path.partition("?")[0]}


def _odd(value: object) -> Iterator[bytes]:
    for shape in ({"data": value}, {"data": [value]}, {"vllm_config": value}, {"vllm_config": {"model_config": value}}):
        yield json.dumps(shape).encode()


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [[]], {"id": {"a": 1}}, {"id": [1] * 2000}])
def test_answers_of_another_shape_say_nothing(value: object) -> None:
    for body in _odd(value):
        for path in ANSWERS:
            for key, text, _, _ in of_answer(path, body):
                assert re.fullmatch(r"[a-z_]+", key)
                assert len(text) <= 1024
