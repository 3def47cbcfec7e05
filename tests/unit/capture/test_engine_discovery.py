"""Listening sockets of processes, and which endpoints are ours."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpuaudit.capture.engine_command import engine_command, read_command
from gpuaudit.capture.engine_discovery import Listener, _where, find_servers, listeners, listening_process, namespace_fd
from gpuaudit.capture.engine_endpoint import Address, is_loopback, parse_endpoint
from gpuaudit.capture.engine_names import BY_NAME


def test_our_own_listening_sockets_are_found(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with (
        socket.create_server(("127.0.0.1", 0)) as four, socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.socket(socket.AF_UNIX) as unix, socket.create_connection(four.getsockname()) as client,
    ):  # fmt: skip
        unix.bind(str(path))
        unix.listen()
        expected = {
            Address("127.0.0.1", four.getsockname()[1]), Address("::1", six.getsockname()[1]), Address(str(path))
        }  # fmt: skip
        found = {o.address for o in listeners(os.getpid())}
        assert expected <= found
        assert Address("127.0.0.1", client.getsockname()[1]) not in found
        for address in expected - {Address(str(path))}:
            assert listening_process(address) == os.getpid()
    assert not expected & {o.address for o in listeners(os.getpid())}


def test_a_port_of_somebody_else_is_not_asked(tmp_path: Path) -> None:
    """A process that calls itself an engine of our port has nobody connect there: it does not listen on it itself."""
    program = tmp_path / "vllm"
    program.write_text(
        "import socket, sys; sys.stdin.readline(); "
        "s = socket.create_server(('127.0.0.1', int(sys.argv[4])), reuse_port=True); print(flush=True); input()"
    )
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as ours:
        port = ours.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, program, "serve", "m", "--port", str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            command = read_command(process.pid)
            while command is None:  # it is not yet the program
                command = read_command(process.pid)
            assert command.port() == port
            assert list(find_servers({process.pid}, set())) == []
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            assert [s.address for s in find_servers({process.pid}, set())] == [Address("127.0.0.1", port)]
        finally:
            process.communicate(b"\n")


def test_our_own_namespace_needs_no_descriptor() -> None:
    assert namespace_fd(os.getpid()) is None


def test_a_process_that_is_gone_listens_nowhere() -> None:
    assert listeners((1 << 22) + 1) == []


EVERYWHERE = "0.0.0.0"  # noqa: S104 - what others listen on


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["127.0.0.1"], Address("127.0.0.1", 8000)), ([EVERYWHERE], Address("127.0.0.1", 8000)),
        (["::"], Address("::1", 8000)), (["::", EVERYWHERE], Address("127.0.0.1", 8000)),
        (["10.0.0.5", "127.0.0.2"], Address("127.0.0.2", 8000)), (["10.0.0.5"], None),
    ],
)  # fmt: skip
def test_where_a_server_is_asked(hosts: list[str], expected: Address | None) -> None:
    command = engine_command(BY_NAME["vllm"], ["vllm", "serve", "m"], {})
    listening = [Listener(Address(h, 8000), i) for i, h in enumerate(hosts)]
    other = [Listener(Address("127.0.0.1", 29500), 99)]
    found = _where([*other, *listening], command)
    assert found is not None
    assert found[0] == expected
    assert bool(found[1]) == (expected is None)
    assert _where(other, command) is None, "a port that its command line does not name is never asked"


@pytest.mark.parametrize(
    ("url", "addresses", "recorded"),
    [
        ("http://127.0.0.1:8000", [Address("127.0.0.1", 8000)], "http://127.0.0.1:8000/metrics"),
        ("http://127.9.9.9:1/x", [Address("127.9.9.9", 1)], "http://127.9.9.9:1/x"),
        ("http://[::1]:8000/", [Address("::1", 8000)], "http://[::1]:8000/metrics"),
        ("http://LOCALHOST:80", [Address("127.0.0.1", 80), Address("::1", 80)], "http://LOCALHOST:80/metrics"),
        ("unix:///run/e.sock", [Address("/run/e.sock")], "unix:/run/e.sock"),
        ("unix:/run/e.sock", [Address("/run/e.sock")], "unix:/run/e.sock"),
    ],
)
def test_endpoints(url: str, addresses: list[Address], recorded: str) -> None:
    endpoint = parse_endpoint(url)
    assert (list(endpoint.addresses), endpoint.url, endpoint.remote) == (addresses, recorded, False)


def test_a_remote_address_is_one_only_where_allowed() -> None:
    endpoint = parse_endpoint("http://192.0.2.1:8000", allow_remote=True)
    assert (endpoint.remote, endpoint.addresses) == (True, (Address("192.0.2.1", 8000),))
    assert not parse_endpoint("http://127.0.0.1:8000", allow_remote=True).remote


@pytest.mark.parametrize(
    "host",
    [
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::ffff:10.0.0.1",
        EVERYWHERE,
        "::",
        "128.0.0.1",
        "localhost",
        "",
        "127.0.0.1 ",
    ],
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
