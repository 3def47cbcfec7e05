"""Which servers become engines: each place once, a new process at an old place, and nobody fills the capture."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuaudit.capture import engine_desk, processes, session
from gpuaudit.capture.attacher import Plan
from gpuaudit.capture.engine_command import engine_command
from gpuaudit.capture.engine_desk import EngineDesk, endpoints
from gpuaudit.capture.engine_discovery import Server
from gpuaudit.capture.engine_endpoint import Address
from gpuaudit.capture.engine_names import BY_NAME
from gpuaudit.capture.options import CaptureOptions


@pytest.fixture
def alive() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.communicate()


def server(pid: int, host: str, *flags: str, start_ns: int | None = None) -> Server:
    command = engine_command(BY_NAME["vllm"], ["vllm", "serve", "/m", *flags], {})
    return Server(pid, start_ns or processes.start_ns(pid) or 0, command, Address(host, 8000))


def scanned(desk: EngineDesk, monkeypatch: pytest.MonkeyPatch, *found: Server) -> list[dict[str, Any]]:
    """What the desk says after it found these."""
    monkeypatch.setattr(engine_desk, "find_servers", lambda *_: iter(found))
    desk._next_scan_s = 0
    desk.scan_when_due()
    return desk.take_messages()


@pytest.fixture
def desk() -> Iterator[EngineDesk]:
    desk = EngineDesk((), lambda: None)
    yield desk
    desk.close()


def test_nobody_hides_an_engine_by_listening_beside_it(
    desk: EngineDesk, monkeypatch: pytest.MonkeyPatch, alive: int
) -> None:
    """127.0.0.9:8000 is another place than 127.0.0.1:8000."""
    told = scanned(desk, monkeypatch, server(alive, "127.0.0.9"), server(os.getpid(), "127.0.0.1"))
    assert [(t["engine"], t["pid"], t["host"]) for t in told] == [
        (0, alive, "127.0.0.9:8000"), (1, os.getpid(), "127.0.0.1:8000"),
    ]  # fmt: skip


def test_a_second_process_of_the_same_server_is_not_another(
    desk: EngineDesk, monkeypatch: pytest.MonkeyPatch, alive: int
) -> None:
    told = scanned(desk, monkeypatch, server(alive, "127.0.0.1"), server(os.getpid(), "127.0.0.1"))
    assert [t["pid"] for t in told] == [alive]


def test_a_server_that_was_started_again_is_the_same_engine_with_new_settings(
    desk: EngineDesk, monkeypatch: pytest.MonkeyPatch, alive: int
) -> None:
    process = subprocess.Popen(["sleep", "600"])
    (first,) = scanned(desk, monkeypatch, server(process.pid, "127.0.0.1", "--max-num-seqs", "8"))
    process.kill()
    process.communicate()
    (second,) = scanned(desk, monkeypatch, server(alive, "127.0.0.1", "--max-num-seqs", "9"))
    assert [(t["engine"], t["files"]) for t in (first, second)] == [(0, True), (0, True)]
    assert second["pid"] == alive
    values = [row["value"] for table, row in desk.take_rows() if row.get("op") == "max_num_seqs"]
    assert values == ["8", "9"]


def test_a_process_whose_number_is_another_s_by_now_is_passed_over(
    desk: EngineDesk, monkeypatch: pytest.MonkeyPatch, alive: int
) -> None:
    assert scanned(desk, monkeypatch, server(alive, "127.0.0.1", start_ns=1)) == []
    assert desk.take_rows() == []


def test_processes_that_only_look_like_engines_cannot_fill_the_capture_in_silence(
    monkeypatch: pytest.MonkeyPatch, alive: int
) -> None:
    """The rest is a gap, said once, and an engine that was named has its place whatever is found."""
    monkeypatch.setattr(engine_desk, "MAX_ENGINES", 2)
    desk = EngineDesk(endpoints(("http://127.0.0.1:9",), ()), lambda: None)
    try:
        told = scanned(desk, monkeypatch, *(server(alive, f"127.0.0.{n}") for n in range(2, 8)))
        assert len(told) == 3
        gaps = [row for table, row in desk.take_rows() if table == "gaps"]
        assert [g["source"] for g in gaps] == ["engines"]
        assert "more than 2 engines" in gaps[0]["reason"]
    finally:
        desk.close()


def test_a_long_look_is_followed_by_a_longer_rest(desk: EngineDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 150.0])
    monkeypatch.setattr(engine_desk, "time", SimpleNamespace(monotonic=lambda: next(now)))
    scanned(desk, monkeypatch)
    assert desk._next_scan_s == 150 + engine_desk.REST * 50


def test_a_name_is_resolved_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name that leads elsewhere when it is asked again leads the scraper nowhere else."""
    answers = iter([["192.0.2.7"], ["127.0.0.1"], ["127.0.0.1"]])

    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in next(answers)]

    seen: list[Plan] = []

    class Stopped(Exception):
        pass

    class Instead:
        def __init__(self, plan: Plan) -> None:
            seen.append(plan)
            EngineDesk(plan.engines, lambda: None).close()
            raise Stopped

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(session, "Attacher", Instead)
    monkeypatch.setattr(session, "protect_memory", lambda: None)  # of this process, which runs other tests too
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))
    options = CaptureOptions(out=tmp_path / "a.db", sources=("engines",), allow_remote=("http://example.org:8000",))
    with pytest.raises(Stopped):
        session.run_capture(options)
    ((endpoint, found_by),) = seen[0].engines
    assert (endpoint.addresses, endpoint.remote, found_by) == ((Address("192.0.2.7", 8000),), True, "--allow-remote")
    assert next(answers) == ["127.0.0.1"], "it was asked more than once"
