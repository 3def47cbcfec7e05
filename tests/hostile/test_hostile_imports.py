"""Recordings that somebody hostile has written: each ends in one line, and memory stays flat."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers import reading
from gpuaudit.capture.importers.run import ImportOptions, run_import
from tests.unit.capture.importers.test_nvidia_smi import LOG as SMI

POLL = {"t": 1795306119.24, "took_ms": 3.5, "status": 200}
TEXT = '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0",model_name="m"} 1.0\n'


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))


def refused(tmp_path: Path, data: bytes, match: str) -> None:
    path = tmp_path / "hostile"
    path.write_bytes(data)
    with pytest.raises(InputUnusable, match=match):
        run_import(ImportOptions((path,), tmp_path / "x.db"))
    assert not (tmp_path / "x.db").exists()
    assert not (tmp_path / "x.db.partial").exists()


def polls(*texts: object) -> bytes:
    return b"".join(
        json.dumps({**POLL, "t": 1795306119 + i, "text": text}).encode() + b"\n" for i, text in enumerate(texts)
    )


def test_gzip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_CONTENT_BYTES", 1 << 18)
    log = SMI.encode() + b" " * (1 << 20)
    refused(tmp_path, gzip.compress(log), "more than 262144 bytes of content")


def test_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1 << 16)
    refused(tmp_path, gzip.compress(b"x" * (1 << 20)), "line 1 is longer than 65536 bytes")


def test_fifo_in_place_of_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputUnusable, match="not an ordinary file"):
        run_import(ImportOptions((tmp_path / "fifo",), tmp_path / "x.db"))


def test_json_bomb_inside_a_line(tmp_path: Path) -> None:
    refused(tmp_path, b"[" * 200_000 + b"\n", "in no format")


@pytest.mark.parametrize(
    "t", ["NaN", "Infinity", "-1", "1e400", "1e999999999", "1" + "0" * 40, '"soon"', "true", "null", "[]"]
)
def test_times_that_are_none(tmp_path: Path, t: str) -> None:
    line = json.dumps({**POLL, "t": 0, "text": TEXT}).replace('"t": 0', f'"t": {t}', 1).encode()
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(polls(TEXT) + line + b"\n" + polls(TEXT, TEXT).splitlines()[1])
    result = run_import(ImportOptions((path,), tmp_path / "x.db"))
    (told,) = result.files
    assert told["unreadable"] == "1"
    assert told["rows"]["engine_scrapes"] == "2"  # type: ignore[index]


def test_malformed_answers_are_polls_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(polls(TEXT, TEXT + "a b c d\n", "\ud800", TEXT * 2, 'x{a="\\', TEXT))
    result = run_import(ImportOptions((path,), tmp_path / "x.db"))
    assert result.files[0]["rows"]["engine_scrapes"] == "6"  # type: ignore[index]


def test_metrics_of_nobody_are_no_engine(tmp_path: Path) -> None:
    refused(tmp_path, polls("up 1\n", "up 2\n"), "none of its polls has metrics")


def test_names_with_control_characters_stay_data(tmp_path: Path) -> None:
    path = tmp_path / "smi\x1b[31m.csv"
    path.write_text(SMI.replace("GPU-aa", "GPU-\x1b]0;x\x07"))
    result = run_import(ImportOptions((path,), tmp_path / "x.db"))
    assert result.files[0]["name"] == path.name
