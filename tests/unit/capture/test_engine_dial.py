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
from gpuaudit.capture.engine_rights import Rights
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


def test_a_file_system_that_hangs_keeps_no_other_engine_waiting(desk: DialDesk) -> None:
    """Neither its files nor its socket's path: the others are answered while it hangs, and it has one thread."""
    asked_for, go_on = threading.Event(), threading.Event()

    def hang(name: str) -> int:
        asked_for.set()
        go_on.wait()
        return os.open("/dev/null", os.O_RDONLY)

    desk.add(0, Line(Endpoint("x", "x", "/", ()), open_file=hang))
    desk.add(1, Line(Endpoint("x", "x", "/", ()), open_file=lambda _: os.open("/dev/null", os.O_RDONLY)))
    asked, got = client(desk), []
    waits = threading.Thread(target=lambda: got.append(asked._ask(0, -1, b"config.json", 600)))
    waits.start()
    try:
        assert asked_for.wait(60)
        os.close(asked._ask(1, -1, b"config.json", 600))
        with pytest.raises(OSError, match="busy"):
            asked._ask(0, -1, b"config.json", 600)
        assert got == []
    finally:
        go_on.set()
        waits.join()
    os.close(got[0])


def test_an_answer_that_comes_too_late_is_passed_over(desk: DialDesk) -> None:
    go_on = threading.Event()

    def slow(name: str) -> int:
        go_on.wait()
        return os.open("/dev/null", os.O_RDONLY)

    desk.add(0, Line(Endpoint("x", "x", "/", ()), open_file=slow))
    asked = client(desk)
    with pytest.raises(TimeoutError):
        asked._ask(0, -1, b"config.json", 0.01)
    go_on.set()
    while desk._busy:
        pass
    os.close(asked._ask(0, -1, b"config.json", 600))


def test_a_defect_met_with_one_engine_does_not_end_the_desk(desk: DialDesk) -> None:
    def defect(name: str) -> int:
        raise ValueError("embedded null byte")

    desk.add(0, Line(Endpoint("x", "x", "/", ()), open_file=defect))
    desk.add(1, Line(Endpoint("x", "x", "/", (Address("a\0b"),))))
    asked = client(desk)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            asked.open_file(0, "config.json")
    with pytest.raises(ExchangeFailed, match="Input/output"):
        asked.connect(1, 1, 60)


@pytest.mark.parametrize(("kind", "word"), [("link", "symbolic links"), ("fifo", "non-socket"), ("file", "non-socket")])
def test_a_path_that_is_no_socket_is_not_connected_to(desk: DialDesk, tmp_path: Path, kind: str, word: str) -> None:
    """A link in the place of a socket the user named may be somebody else's: it is not followed."""
    here, path = Path.cwd(), tmp_path / "s"
    os.chdir(tmp_path)
    try:
        with serving(always(ENGINE_TEXT), Path("real")) as server:
            if kind == "link":
                path.symlink_to("real")
            elif kind == "fifo":
                os.mkfifo(path)
            else:
                path.touch()
            desk.add(0, Line(unix_endpoint(str(path))))
            with pytest.raises(ExchangeFailed, match=word):
                client(desk).connect(0, 1, 60)
            assert server.connections == 0
    finally:
        os.chdir(here)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_socket_that_the_process_may_not_reach_is_not_reached_for_it(desk: DialDesk, tmp_path: Path) -> None:
    """A process that names a link to root's socket as its own has root connect to nothing."""
    here = Path.cwd()
    os.chdir(tmp_path)
    nobody, root = Rights(65534, 65534, ()), os.open("/", os.O_PATH)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    try:
        with serving(always(ENGINE_TEXT), Path("private")) as server:
            Path("public").symlink_to(tmp_path / "private")
            desk.add(0, Line(unix_endpoint(str(tmp_path / "public")), None, os.dup(root), rights=nobody))
            asked = client(desk)
            asked.connect(0, 1, 60).close()
            Path("private").chmod(0o600)
            with pytest.raises(ExchangeFailed, match="Permission denied"):
                asked.connect(0, 1, 60)
            server.close()
    finally:
        os.chdir(here)
        os.close(root)


def test_a_desk_that_is_closed_answers_no_one() -> None:
    desk = DialDesk()
    desk.add(0, Line(parse_endpoint("http://127.0.0.1:1")))
    asked = client(desk)
    desk.close()
    with pytest.raises(OSError, match=r"."):
        asked.open_file(0, "config.json")
