"""A server of engine metrics for tests: replays a recorded series, or misbehaves in a way that has a name.

Raw sockets and one thread per connection: what it sends must be able to break HTTP.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ENGINE_TEXT = b'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0",model_name="m"} 1\n'
"""The least that is recognised as an engine."""

Handler = Callable[[socket.socket, str, "EngineServer"], None]
"""Answers one request for a path; the connection is kept while it returns and closed where it raises."""


class Close(Exception):
    """The connection is to be closed."""


def answer(body: bytes, *, status: str = "200 OK", headers: Sequence[str] = (), close: bool = False) -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: text/plain; version=0.0.4", f"Content-Length: {len(body)}", *headers]
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


class EngineServer:
    """Listens on loopback, or on a Unix socket at ``path``. ``requests`` counts per path what was asked."""

    def __init__(self, handler: Handler, path: Path | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._handler = handler
        if path is None:
            self._sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
            self.port = int(self._sock.getsockname()[1])
            self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        else:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sock.bind(str(path))
            path.chmod(0o666)
            self._sock.listen()
            self.url = f"unix://{path}"
        self.requests: dict[str, int] = {}
        self.connections = 0
        self.closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def wait_for(self, count: int, path: str = "/metrics", deadline_s: float = 60) -> None:
        """Until ``path`` was asked for so often."""
        end = time.monotonic() + deadline_s
        while self.requests.get(path, 0) < count:
            assert time.monotonic() < end, f"{path} was asked {self.requests.get(path, 0)} times, expected {count}"
            time.sleep(0.01)

    def close(self) -> None:
        """Stop listening; what is under way is let go."""
        self.closing.set()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts; only then is the port free again
        self._sock.close()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._sock.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            buffer = b""
            try:
                while True:
                    while b"\r\n\r\n" not in buffer:
                        data = connection.recv(65_536)
                        if not data:
                            return
                        buffer += data
                    head, _, buffer = buffer.partition(b"\r\n\r\n")
                    path = head.split(b" ")[1].decode()
                    self.requests[path] = self.requests.get(path, 0) + 1
                    self._handler(connection, path, self)
            except (OSError, Close):
                return


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


@contextmanager
def serving(handler: Handler, path: Path | None = None, *, host: str = "127.0.0.1") -> Iterator[EngineServer]:
    """An :class:`EngineServer` that ends with the block."""
    server = EngineServer(handler, path, host=host)
    try:
        yield server
    finally:
        server.close()


def always(text: bytes) -> Handler:
    """Metrics that never change, and nothing else."""

    def handle(connection: socket.socket, path: str, _: EngineServer) -> None:
        known = path == "/metrics"
        connection.sendall(answer(text if known else b"{}", status="200 OK" if known else "404 Not Found"))

    return handle


def recorded(path: Path) -> list[bytes]:
    """The texts of a recorded series (``{t, text, …}`` per line), polls that failed left out."""
    with gzip.open(path, "rt", encoding="utf-8") as f:
        polls = [json.loads(line) for line in f]
    return [p["text"].encode() for p in polls if "text" in p]


class Replay:
    """Hands out the texts of a series one after the other, one per request, then the last one for ever.

    ``answers``: what other paths say, as JSON.
    """

    def __init__(self, texts: Sequence[bytes], answers: dict[str, object] | None = None) -> None:
        self._texts = list(texts)
        self._answers = answers or {}
        self._next = 0
        self._lock = threading.Lock()
        self.all_sent = threading.Event()

    def __call__(self, connection: socket.socket, path: str, _: EngineServer) -> None:
        if path in self._answers:
            connection.sendall(answer(json.dumps(self._answers[path]).encode()))
        elif path != "/metrics":
            connection.sendall(answer(b"{}", status="404 Not Found"))
        else:
            with self._lock:
                text = self._texts[self._next]
                last = self._next == len(self._texts) - 1
                self._next += not last
            connection.sendall(answer(text))
            if last:
                self.all_sent.set()
