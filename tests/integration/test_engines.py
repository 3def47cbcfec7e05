"""Engines in whole captures: a recorded series replayed over TCP and a Unix socket, found by itself, in a container."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.verify import verify
from gpuaudit.capture import processes
from gpuaudit.capture.engine_check import ask_engines
from gpuaudit.capture.exposition import parse
from tests.engine_server import Replay, free_port, recorded, serving
from tests.integration.recording import start, wait_for_line
from tests.integration.sessions import Session, capture, environment, rows, trust

SERIES = Path(__file__).parents[1] / "data" / "vllm" / "light.jsonl.gz"
VLLM = Path(__file__).parents[1] / "doubles" / "engine" / "vllm"
OURS = ("--source", "engines", "--pid", str(os.getpid()))
"""Only what the tests started: another engine may run on this host."""

SECRET = "hunter2-of-nobody"  # noqa: S105
MODELS: dict[str, object] = {
    "/v1/models": {"object": "list", "data": [{"id": "tiny", "root": "/m", "max_model_len": 2048}]}
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Like tmp_path, but other users can reach it, and short enough for a Unix socket."""
    path = Path(tempfile.mkdtemp(prefix="gpuaudit-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def values(path: Path, engine: int = 0) -> list[dict[tuple[str, str, float | None], float]]:
    """Per successful scrape every recorded value, from the rows alone."""
    names = {
        r["series"]: (r["metric"], r["labels"], r["le"]) for r in rows(path, "engine_series") if r["engine"] == engine
    }
    samples = [r for r in rows(path, "engine_samples") if r["engine"] == engine]
    current: dict[tuple[str, str, float | None], float] = {}
    out = []
    for scrape in (r for r in rows(path, "engine_scrapes") if r["engine"] == engine and r["op"] == "ok"):
        for r in (s for s in samples if s["start_ns"] == scrape["start_ns"]):
            if r["value"] is None:
                del current[names[r["series"]]]
            else:
                current[names[r["series"]]] = r["value"]
        out.append(dict(current))
    return out


def exported(text: bytes) -> dict[tuple[str, str, float | None], float]:
    """What is to be recorded of a text."""
    out: dict[tuple[str, str, float | None], float] = {}
    for s in parse(text).samples:
        if s.metric.startswith("vllm:") or s.metric in (
            "process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total",
        ):  # fmt: skip
            labels = {k: v for k, v in sorted(s.labels.items()) if k not in ("engine", "le")}
            le = float(s.labels["le"]) if s.type == "histogram_bucket" else None
            out[s.metric, json.dumps(labels, separators=(",", ":"), ensure_ascii=False), le] = s.value
    return out


@pytest.mark.parametrize("unix", [False, True], ids=["loopback", "unix socket"])
def test_a_recorded_series_is_recorded_again(folder: Path, unix: bool) -> None:
    """Every value of every poll of a real server, served and scraped, stands in the bundle; its settings too."""
    texts = recorded(SERIES)[::40]
    replay, out, env = Replay(texts, MODELS), folder / "a.db", environment(folder / "keys")
    with serving(replay, folder / "engine.sock" if unix else None) as server:
        session = Session(["--out", out, "--duration", "10m", *OURS, "--engine", server.url], env)
        assert replay.all_sent.wait(120)
        server.wait_for(len(texts) + 1)
        server.wait_for(1, "/version")
        code, said = session.end(signal.SIGTERM)
        assert code == 0, said
        assert server.connections == 1
    assert verify(out, trust=trust(folder / "keys")).status == "SEALED"
    got = values(out)
    assert got[: len(texts)] == [exported(t) for t in texts]
    (engine,) = rows(out, "engines")
    url = f"unix:{folder}/engine.sock" if unix else f"{server.url}/metrics"
    assert {k: engine[k] for k in ("op", "state", "url", "found_by", "remote", "pid")} == {
        "op": "vllm", "state": "scraped", "url": url, "found_by": "--engine", "remote": 0, "pid": os.getpid(),
    }  # fmt: skip
    config = {(r["op"], r["source"]): r["value"] for r in rows(out, "engine_config")}
    assert config["max_model_len", "/v1/models"] == "2048"
    assert config["model", "/v1/models"] == "tiny"
    assert config["block_size", "metric label"] == "128"
    assert all(s["reset"] == 0 for s in rows(out, "engine_scrapes"))


def test_a_restart_is_found(folder: Path) -> None:
    head = b"# TYPE vllm:tokens_total counter\n"
    texts = [
        head + b"vllm:tokens_total %d\nprocess_start_time_seconds %d\n" % v for v in [(5, 100), (9, 100), (2, 300)]
    ]
    replay, out = Replay(texts), folder / "a.db"
    with serving(replay) as server:
        session = Session(["--out", out, *OURS, "--engine", server.url], environment(folder / "keys"))
        server.wait_for(len(texts) + 1)
        code, said = session.end(signal.SIGTERM)
    assert code == 0, said
    scrapes = rows(out, "engine_scrapes")[:4]
    assert [s["reset"] for s in scrapes] == [0, 0, 1, 0][: len(scrapes)]
    assert scrapes[2]["reason"] == "process_start_time_seconds changed"


def test_an_engine_that_comes_later_is_scraped_when_it_is_there(folder: Path) -> None:
    port, out = free_port(), folder / "a.db"
    url = f"http://127.0.0.1:{port}"
    session = Session(["--out", out, *OURS, "--engine", url], environment(folder / "keys"))
    session.wait_for(folder / "a.db.receipt")
    process = _vllm(folder, "--port", str(port))
    try:
        wait_for_line(process, "all sent")
        code, said = session.end(signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()
    assert code == 0, said
    assert "ok" in {s["op"] for s in rows(out, "engine_scrapes")}
    (engine,) = rows(out, "engines")
    assert engine["state"] == "scraped"


def _vllm(folder: Path, *flags: str, **more: str) -> subprocess.Popen[str]:
    series = folder / "series.jsonl.gz"
    if not series.exists():
        _thin(series)
    model = folder / "model"
    if not model.exists():
        model.mkdir()
        (model / "config.json").write_text('{"num_hidden_layers": 4, "hidden_size": 64, "torch_dtype": "bfloat16"}')
    answers = json.dumps(MODELS)
    env = {**os.environ, "ENGINE_SERIES": str(series), "ENGINE_ANSWERS": answers, "DTYPE": "half", **more}
    env |= dict.fromkeys(("UNRELATED", "HF_TOKEN", "OPENAI_API_KEY", "VLLM_API_KEY"), SECRET)
    command = [sys.executable, str(VLLM), "serve", str(model), *flags, "--api-key", SECRET]
    process = start(*command, env=env)
    wait_for_line(process, "ready")
    return process


def _thin(path: Path) -> None:
    import gzip

    with gzip.open(SERIES, "rt") as f, gzip.open(path, "wt") as g:
        g.writelines(line for i, line in enumerate(f) if i % 60 == 0)


@pytest.fixture(params=["here", "own network", "own network, unix socket"])
def found(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """A capture of a server that nobody named."""
    own = request.param != "here"
    if own and os.geteuid() != 0:
        pytest.skip("entering another network namespace needs root")
    port = free_port()
    unix = "unix" in request.param
    flags = ("--uds", str(folder / "engine.sock")) if unix else ("--port", str(port), "--max-num-seqs", "32")
    process = _vllm(folder, *flags, **({"ENGINE_OWN_NETWORK": "1"} if own else {}))
    out = folder / "a.db"
    try:
        session = Session(
            ["--out", out, "--source", "engines", "--pid", str(process.pid)], environment(folder / "keys")
        )
        wait_for_line(process, "all sent")
        code, said = session.end(signal.SIGTERM)
        assert code == 0, said
    finally:
        process.kill()
        process.communicate()
    return {"out": out, "pid": process.pid, "unix": unix, "url": f"http://127.0.0.1:{port}/metrics"}


def test_a_server_is_found_by_its_listening_socket(found: dict[str, Any], folder: Path) -> None:
    (engine,) = rows(found["out"], "engines")
    assert (engine["op"], engine["pid"], engine["state"]) == ("vllm", found["pid"], "scraped")
    assert engine["found_by"] == "listening socket of a traced process"
    assert engine["url"] == (f"unix:{folder}/engine.sock" if found["unix"] else found["url"])
    config = {(r["op"], r["source"]): r["value"] for r in rows(found["out"], "engine_config")}
    assert config["model", "command line"] == str(folder / "model")
    assert config["dtype", "environment"] == "half"
    assert config["num_hidden_layers", "config.json"] == "4"
    assert config["torch_dtype", "config.json"] == "bfloat16"
    if not found["unix"]:
        assert config["max_num_seqs", "command line"] == "32"


@pytest.mark.parametrize("found", ["here"], indirect=True)
def test_no_secret_reaches_the_bundle(found: dict[str, Any]) -> None:
    """Neither from the environment nor from the command line: not in one value of one table, nor in leaf 0."""
    recorded_rows = {table: rows(found["out"], table) for table in TABLES}
    with Bundle.open(found["out"]) as bundle:
        beside = str(bundle.open_body)
    assert SECRET not in str(recorded_rows) + beside
    lines = [str(r["command_line"]) for r in recorded_rows["processes"] if r["pid"] == found["pid"]]
    assert lines
    assert all(line.endswith("--api-key [redacted]") for line in lines)


def test_a_server_elsewhere_on_this_host_is_not_asked(folder: Path) -> None:
    """Only the processes that are captured are looked at, where some are named."""
    port = free_port()
    process = _vllm(folder, "--port", str(port))
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        done = capture(
            ["--out", folder / "a.db", "--duration", "3", "--source", "engines", "--pid", str(other.pid)],
            environment(folder / "keys"),
        )
        assert done.returncode == 0, done.stderr
    finally:
        for p in (process, other):
            p.kill()
            p.wait()
    assert rows(folder / "a.db", "engines") == []


def test_only_the_attacher_connects_and_only_to_the_engine(folder: Path) -> None:
    """With an engine there are connections to its address and to nothing else; the recorder makes none at all."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace, replay = folder / "trace", Replay(recorded(SERIES)[:1], MODELS)
    with serving(replay) as server:
        prefix = ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=socket,connect,setns", "--"]
        arguments = ["--out", str(folder / "a.db"), *OURS, "--engine", server.url]
        session = Session(arguments, environment(folder / "keys"), prefix=prefix)
        server.wait_for(3)
        server.wait_for(1, "/version")
        recorder = next(p for p in _descendants(session.process.pid) if b"recorder_main" in _command(p))
        threads = {recorder, *(int(t.name) for t in Path(f"/proc/{recorder}/task").iterdir())}
        attacher = next(p for p in _descendants(session.process.pid) if b"recorder_main" not in _command(p))
        os.kill(attacher, signal.SIGTERM)
        code, said = session.result()
    assert code == 0, said
    lines = [line for line in trace.read_text().splitlines() if " connect(" in line or " socket(" in line]
    internet = [line for line in lines if "AF_INET" in line]
    connects = [line for line in internet if " connect(" in line]
    assert connects
    assert all(f"htons({server.port})" in line and '"127.0.0.1"' in line for line in connects), connects
    assert not [line for line in lines if int(line.split()[0]) in threads], "the recorder opened a socket"


def _descendants(pid: int) -> set[int]:
    return processes.children({pid}) - {pid}


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_check_asks_every_engine_it_finds(folder: Path) -> None:
    port = free_port()
    process = _vllm(folder, "--port", str(port))
    try:
        answers = list(ask_engines())
    finally:
        process.kill()
        process.communicate()
    (mine,) = (a for a in answers if str(port) in a.where)
    assert (mine.ok, mine.where) == (True, f"process {process.pid}, http://127.0.0.1:{port}/metrics")
    assert mine.detail.startswith("vllm, ")
