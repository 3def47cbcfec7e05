"""The dial desk gives what was offered and nothing else, whatever a recorder that was taken over asks."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuaudit.capture.engine_dial import ASK, REPLY, DialClient, DialDesk, Line
from gpuaudit.capture.engine_endpoint import Address, Endpoint, parse_endpoint, unix_endpoint
from gpuaudit.capture.http_local import ExchangeFailed
from tests.engine_server import ENGINE_TEXT, always, free_port, serving


@pytest.fixture
def desk() -> Iterator[DialDesk]:
    desk = DialDesk()
    yield desk
    desk.close()


def client(desk: DialDesk) -> DialClient:
    return DialClient(os.dup(desk.theirs.fileno()))


def test_a_connection_is_one_to_the_engine(desk: DialDesk) -> None:
    with serving(always(ENGINE_TEXT)) as server:
        desk.add(7, Line(parse_endpoint(server.url)))
        asked = client(desk)
        with asked.connect(7, 1, 10) as sock:
            assert sock.getpeername() == ("127.0.0.1", server.port)
            assert not os.get_inheritable(sock.fileno())
        asked.close()


def test_the_second_address_is_tried(desk: DialDesk) -> None:
    with serving(always(ENGINE_TEXT), host="::1") as server:
        desk.add(0, Line(parse_endpoint(f"http://localhost:{server.port}")))
        with client(desk).connect(0, 2, 10) as sock:
            assert sock.getpeername()[0] == "::1"


def test_nobody_listens(desk: DialDesk) -> None:
    desk.add(0, Line(parse_endpoint(f"http://127.0.0.1:{free_port()}")))
    with pytest.raises(ExchangeFailed, match="cannot connect: Connection refused"):
        client(desk).connect(0, 1, 10)


def test_a_long_path_of_a_socket(desk: DialDesk, tmp_path: Path) -> None:
    """Longer than an address can be (108 bytes): it is reached through a descriptor."""
    folder = tmp_path / ("a" * 120)
    folder.mkdir()
    here = Path.cwd()
    os.chdir(folder)  # the server itself needs a short name
    try:
        with serving(always(ENGINE_TEXT), Path("s")):
            desk.add(0, Line(unix_endpoint(str(folder / "s"))))
            client(desk).connect(0, 1, 10).close()
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("engine", "address", "name", "expected"),
    [
        (1, 0, b"", errno.ENOENT), (0, 1, b"", errno.EDESTADDRREQ), (0, 2**31 - 1, b"", errno.EDESTADDRREQ),
        (0, -1, b"config.json", errno.ENOENT), (2**32 - 1, -1, b"/etc/shadow", errno.ENOENT),
    ],
)  # fmt: skip
def test_what_was_not_offered_is_not_given(
    desk: DialDesk, engine: int, address: int, name: bytes, expected: int
) -> None:
    desk.add(0, Line(Endpoint("x", "x", "/", (Address("127.0.0.1", 1),))))
    asked = socket.socket(fileno=os.dup(desk.theirs.fileno()))
    with asked:
        asked.settimeout(60)
        asked.send(ASK.pack(5, engine, address, name))
        data, fds, _, _ = socket.recv_fds(asked, REPLY.size, 1)
    assert (REPLY.unpack(data), fds) == ((5, expected), [])


@pytest.mark.parametrize("junk", [b"x", b"\xff" * ASK.size, b"y" * (ASK.size + 1), b"z" * 5000])
def test_junk_is_passed_over(desk: DialDesk, junk: bytes) -> None:
    with serving(always(ENGINE_TEXT)) as server:
        desk.add(0, Line(parse_endpoint(server.url)))
        asked = client(desk)
        asked._sock.send(junk)
        asked.connect(0, 1, 30).close()


def test_names_of_files_go_to_the_engines_own_folder(desk: DialDesk, tmp_path: Path) -> None:
    """The desk hands the very name on; what may be opened is for the folder to say."""
    told: list[str] = []

    def open_file(name: str) -> int:
        told.append(name)
        if name != "config.json":
            raise OSError(errno.EACCES, "no")
        return os.open("/dev/null", os.O_RDONLY)

    desk.add(0, Line(Endpoint("x", "x", "/", ()), open_file=open_file))
    asked = client(desk)
    os.close(asked.open_file(0, "config.json"))
    for name in ("../x", "a" * 128):
        with pytest.raises(PermissionError):
            asked.open_file(0, name)
    with pytest.raises(OSError, match="too long"):
        asked.open_file(0, "a" * 129)
    assert told == ["config.json", "../x", "a" * 128]


def test_threads_may_ask_at_once(desk: DialDesk) -> None:
    """Each gets the answer to its own question."""
    with serving(always(ENGINE_TEXT)) as one, serving(always(ENGINE_TEXT)) as two:
        ports = {0: one.port, 1: two.port}
        for engine, server in ((0, one), (1, two)):
            desk.add(engine, Line(parse_endpoint(server.url)))
        asked, wrong = client(desk), []

        def ask(engine: int) -> None:
            for _ in range(20):
                with asked.connect(engine, 1, 60) as sock:
                    if sock.getpeername()[1] != ports[engine]:
                        wrong.append(engine)

        threads = [threading.Thread(target=ask, args=(i % 2,)) for i in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert wrong == []


def test_a_desk_that_is_closed_answers_no_one() -> None:
    desk = DialDesk()
    desk.add(0, Line(parse_endpoint("http://127.0.0.1:1")))
    asked = client(desk)
    desk.close()
    with pytest.raises(OSError, match=r"."):
        asked.open_file(0, "config.json")
