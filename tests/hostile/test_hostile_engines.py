"""Endpoints that misbehave, by name, all in one real capture beside one that behaves: each is a row, none delays it."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.bundle.errors import UsageError
from gpuaudit.bundle.verify import verify
from gpuaudit.capture import engine_series
from gpuaudit.capture.engine_series import SeriesTracker
from gpuaudit.capture.exposition import parse
from gpuaudit.capture.options import CaptureOptions
from gpuaudit.capture.session import run_capture
from tests.engine_server import ENGINE_TEXT, Close, EngineServer, Handler, always, answer, serving
from tests.integration.sessions import Session, capture, environment, rows, trust

NOBODY_LISTENS = "http://127.0.0.1:1"
OURS = ("--source", "engines", "--pid", str(os.getpid()))
"""Only what the tests started: another engine may run on this host."""


def raw(data: bytes) -> Handler:
    """Sends these bytes and closes."""

    def handle(connection: socket.socket, path: str, server: EngineServer) -> None:
        connection.sendall(data)
        raise Close

    return handle


def endless(head: bytes, piece: bytes) -> Handler:
    """Sends ``piece`` over and over, until the other side has had enough."""

    def handle(connection: socket.socket, path: str, server: EngineServer) -> None:
        connection.sendall(head)
        while not server.closing.is_set():
            connection.sendall(piece * (65_536 // len(piece) + 1))

    return handle


def drip(connection: socket.socket, path: str, server: EngineServer) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not server.closing.is_set():
        connection.sendall(b"#")
        time.sleep(0.05)


def hang(connection: socket.socket, path: str, server: EngineServer) -> None:
    server.closing.wait(120)
    raise Close


BOMB = gzip.compress(bytes(64 << 20), 9)
OK_HEAD = b"HTTP/1.1 200 OK\r\n"

MISBEHAVIOURS: dict[str, tuple[Handler, str, str]] = {
    "no metrics at all": (always(b"<html>hello</html>\n"), "malformed", "line 1"),
    "cut off in the middle": (always(ENGINE_TEXT[:-3]), "malformed", "cut off"),
    "a number past 64 bits": (always(b"vllm:x 1e999\n"), "malformed", "64 bits"),
    "not UTF-8": (always(b'vllm:x{a="\xff"} 1\n'), "malformed", "UTF-8"),
    "the same series twice": (always(b"vllm:x 1\nvllm:x 2\n"), "malformed", "stands twice"),
    "a length of a terabyte": (raw(OK_HEAD + b"Content-Length: 1099511627776\r\n\r\n"), "malformed", "longer than"),
    "a negative length": (raw(OK_HEAD + b"Content-Length: -1\r\n\r\n"), "malformed", "content-length"),
    "two lengths": (raw(OK_HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), "malformed", "twice"),
    "length and chunks": (
        raw(OK_HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "malformed", "chunked",
    ),
    "a body without end": (endless(OK_HEAD + b"\r\n", b"#" * 80 + b"\n"), "malformed", "longer than"),
    "headers without end": (endless(OK_HEAD, b"X-A: b\r\n"), "malformed", "headers"),
    "one header without end": (endless(OK_HEAD + b"X-A: ", b"b"), "malformed", "longer than"),
    "a huge chunk": (raw(OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"), "malformed", "longer than"),
    "a million chunks": (
        endless(OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n#\r\n"), "malformed", "chunks",
    ),
    "a chunk that lies": (
        raw(OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n"), "malformed", "chunk",
    ),
    "a gzip bomb": (
        raw(OK_HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB), "malformed", "gzip",
    ),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), "malformed", "expected HTTP/1.1"),
    "closes at once": (raw(b""), "failed", "closed"),
    "an error": (raw(answer(b"", status="500 Oh No", close=True)), "failed", "500"),
    "drips": (drip, "timeout", "no whole answer"),
    "hangs": (hang, "timeout", "no whole answer"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="gpuaudit-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def recorded(folder: Path) -> dict[str, Any]:
    """One capture with all of them; ends when each was asked twice, so that the first answer is a row."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(m[0])) for name, m in MISBEHAVIOURS.items()}
        good = stack.enter_context(serving(always(ENGINE_TEXT)))
        elsewhere = stack.enter_context(serving(always(ENGINE_TEXT)))
        moved = raw(answer(b"", status="302 Found", headers=[f"Location: {elsewhere.url}/metrics"], close=True))
        servers["redirects"] = stack.enter_context(serving(moved))
        urls = [NOBODY_LISTENS, good.url, *(s.url for s in servers.values())]
        out, env = folder / "a.db", environment(folder / "keys")
        named = [part for url in urls for part in ("--engine", url)]
        session = Session(["--out", out, "--duration", "10m", *OURS, *named], env)
        for server in servers.values():
            server.wait_for(2)
        code, said = session.end(signal.SIGTERM)
        assert code == 0, said
        engines = {r["url"].removesuffix("/metrics"): r for r in rows(out, "engines")}
        scrapes = rows(out, "engine_scrapes")
        by_engine = {n: [s for s in scrapes if s["engine"] == e["engine"]] for n, e in engines.items()}
        return {
            "out": out, "good": by_engine[good.url], "nobody": by_engine[NOBODY_LISTENS], "rows": scrapes,
            "engines": {name: engines[s.url] for name, s in servers.items()},
            "scrapes": {name: by_engine[s.url] for name, s in servers.items()}, "elsewhere": elsewhere.connections,
        }  # fmt: skip


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_a_misbehaving_endpoint_is_a_row(recorded: dict[str, Any], name: str) -> None:
    _, op, word = MISBEHAVIOURS[name]
    first = recorded["scrapes"][name][0]
    assert (first["op"], first["series"], first["full"]) == (op, None, 0), first
    assert word in first["reason"]
    engine = recorded["engines"][name]
    assert (engine["state"], engine["op"]) == ("refused", "unknown")
    assert engine["reason"]


def test_a_redirect_is_not_followed(recorded: dict[str, Any]) -> None:
    first = recorded["scrapes"]["redirects"][0]
    assert (first["op"], first["http_status"]) == ("refused", 302)
    assert "not followed" in first["reason"]
    assert recorded["elsewhere"] == 0


def test_nobody_listens(recorded: dict[str, Any]) -> None:
    assert {r["op"] for r in recorded["nobody"]} == {"failed"}
    assert "cannot connect" in recorded["nobody"][0]["reason"]


def test_none_of_them_delays_the_one_that_behaves(recorded: dict[str, Any]) -> None:
    assert {r["op"] for r in recorded["good"]} == {"ok"}
    hanging = recorded["scrapes"]["hangs"][0]
    end_ns = hanging["start_ns"] + hanging["duration_ns"]
    meanwhile = [r for r in recorded["good"] if hanging["start_ns"] < r["start_ns"] < end_ns]
    assert meanwhile, "it waited for the one that hangs"


def test_the_bundle_of_such_a_capture_verifies(recorded: dict[str, Any], folder: Path) -> None:
    assert verify(recorded["out"], trust=trust(folder / "keys")).status == "SEALED"
    reasons = {g["source"] for g in rows(recorded["out"], "gaps") if g["source"] == "engines"}
    assert reasons == {"engines"}


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1:8000", "http://0.0.0.0:8000", "http://[::]:8000", "http://[::ffff:127.0.0.1]:8000",
        "http://example.org:8000", "http://127.0.0.1.example.org:8000", "http://localhost.example.org:8000",
        "http://127.1:8000", "http://2130706433:8000", "http://[fe80::1]:8000",
    ],
)  # fmt: skip
def test_what_is_not_loopback_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="neither loopback nor a Unix socket"):
        run_capture(CaptureOptions(out=tmp_path / "a.db", sources=("engines",), engines=(url,)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:8000", "http://user:pass@127.0.0.1:8000", "http://127.0.0.1:0", "http://127.0.0.1:65536",
        "http://127.0.0.1:8000/a b", "http://127.0.0.1:8000/\r\nX: y", "file:///etc/passwd", "unix:relative", "",
    ],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="is no endpoint"):
        run_capture(CaptureOptions(out=tmp_path / "a.db", sources=("engines",), engines=(url,)))


def test_another_address_is_scraped_where_it_is_allowed_and_marked(folder: Path) -> None:
    """A second address of the loopback network would not do: it must be one that is not loopback. One's own is."""
    own = _own_address()
    if own is None:
        pytest.skip("this host has no address but loopback")
    with serving(always(ENGINE_TEXT), host=own) as server:
        out = folder / "remote.db"
        refused = capture(["--out", out, *OURS, "--engine", server.url], environment(folder / "keys"))
        assert refused.returncode == 2
        assert server.connections == 0
        session = Session(
            ["--out", out, *OURS, "--engine", server.url, "--allow-remote", server.url],
            environment(folder / "keys"),
        )
        server.wait_for(2)
        code, said = session.end(signal.SIGTERM)
    assert code == 0, said
    (engine,) = rows(out, "engines")
    assert (engine["remote"], engine["state"], engine["found_by"]) == (1, "scraped", "--allow-remote")


def _own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))  # no datagram is sent: the kernel only chooses a source
        except OSError:
            return None
        own = str(s.getsockname()[0])
    return None if own.startswith("127.") else own


def test_labels_that_change_with_every_scrape_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_series, "MAX_SERIES", 50)
    tracker, numbers = SeriesTracker(0, count()), count()
    named = 0
    for turn in range(20):
        text = "".join(f'vllm:x{{id="{next(numbers)}"}} 1\n' for _ in range(10))
        rows_of = tracker.scrape(turn, 1, parse(text).samples)
        named += len(rows_of.series)
    assert named == 50
    assert rows_of.scrape["series"] == 0
    assert rows_of.scrape["skipped"] == 10
    assert "10 series are past what is recorded" in rows_of.scrape["reason"]


def test_long_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_series, "MAX_LABEL_BYTES", 10_000)
    tracker = SeriesTracker(0)
    text = "".join(f'vllm:x{{id="{"a" * 900}{i}"}} 1\n' for i in range(40))
    assert len(tracker.scrape(0, 1, parse(text).samples).series) <= 12


@pytest.mark.parametrize("value", ["NaN", "-5", "+Inf", "-Inf", "1e308", "-1e-320"])
def test_odd_values_are_kept_as_they_are(value: str) -> None:
    (sample,) = parse(f"# TYPE vllm:x gauge\nvllm:x {value}\n").samples
    assert repr(sample.value) == repr(float(value))


@pytest.mark.parametrize("more", [{"synthetic": "late-rank"}, {"sources": ("nvml",)}])
def test_an_engine_that_would_not_be_scraped_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="cannot be scraped"):
        run_capture(CaptureOptions(out=tmp_path / "a.db", engines=("http://127.0.0.1:8000",), **more))
    assert list(tmp_path.iterdir()) == []
