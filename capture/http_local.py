"""HTTP/1.1 as far as a scrape needs it, with a peer that is not trusted: every length, count and time has a bound.

GET only. No proxy, no redirect, no name lookup, no compressed body: what connects is the attacher's dial desk
(:mod:`gpuaudit.capture.engine_dial`), this only talks over the socket it gives.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import gpuaudit
from gpuaudit.capture.redact import redact_text

MAX_BODY_BYTES = 4 << 20
"""A real vLLM server's metrics are 55 KB per model and engine index."""

MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 128
MAX_CHUNKS = 65_536
MAX_CHUNK_LINE_BYTES = 1024

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?\Z")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}):[ \t]*([^\0\r\n]*?)[ \t]*\Z")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\Z")
_REASON_CHARS = 200

FailureOp = Literal["timeout", "refused", "failed", "malformed"]
Dial = Callable[[float], socket.socket]
"""Gives a connected socket within so many seconds, or raises :class:`ExchangeFailed`."""


class ExchangeFailed(Exception):
    """A request that brought no body; ``op`` is that of ``engine_scrapes``."""

    def __init__(self, op: FailureOp, reason: str, *, status: int | None = None) -> None:
        super().__init__(reason)
        self.op = op
        self.reason = reason
        self.status = status


@dataclass(frozen=True)
class Answer:
    """A whole answer with status 200."""

    status: int
    body: bytes
    content_type: str


@dataclass(frozen=True)
class _Head:
    minor: int
    status: int
    headers: dict[str, str]

    def get(self, name: str) -> str:
        return self.headers.get(name, "")


class Connection:
    """Requests to one endpoint, over one connection for as long as the server keeps it."""

    def __init__(self, dial: Dial, host: str) -> None:
        self._dial = dial
        self._host = host
        self._sock: socket.socket | None = None
        self._buffer = bytearray()
        self._end_s = 0.0

    def get(self, path: str, deadline_s: float, *, accept: str = "text/plain; version=0.0.4") -> Answer:
        """The answer to ``GET path``. ExchangeFailed where it is not a whole one within ``deadline_s``."""
        self._end_s = time.monotonic() + deadline_s
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\nUser-Agent: gpu-audit/{gpuaudit.__version__}\r\n"
            f"Accept: {accept}\r\nAccept-Encoding: identity\r\nConnection: keep-alive\r\n\r\n"
        ).encode("ascii")
        try:
            head = self._ask(request)
            body = self._body(head)
        except ExchangeFailed:
            self.close()
            raise
        except TimeoutError:
            self.close()
            raise ExchangeFailed("timeout", f"no whole answer within {deadline_s:g} s") from None
        except OSError as e:
            self.close()
            raise ExchangeFailed("failed", f"the connection broke: {e.strerror or e}") from None
        if head.minor == 0 or "close" in head.get("connection").lower() or self._buffer:
            self.close()
        if 300 <= head.status < 400:
            to = redact_text(head.get("location")[:400])
            raise ExchangeFailed("refused", f"it redirects to {to!r:.120}, not followed", status=head.status)
        if head.status != 200:
            raise ExchangeFailed("failed", f"status {head.status}", status=head.status)
        return Answer(head.status, body, head.get("content-type"))

    def close(self) -> None:
        """Close the connection; the next request makes a new one."""
        self._buffer.clear()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _ask(self, request: bytes) -> _Head:
        """Send, and read the head. A kept connection that the server had closed is replaced once."""
        kept = self._sock is not None
        try:
            self._send(request)
            return self._head()
        except (ConnectionError, BrokenPipeError):
            if not kept or self._buffer:
                raise
        self.close()
        self._send(request)
        return self._head()

    def _send(self, request: bytes) -> None:
        if self._sock is None:
            self._sock = self._dial(self._left_s())
        self._sock.settimeout(self._left_s())
        self._sock.sendall(request)

    def _left_s(self) -> float:
        left = self._end_s - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _more(self) -> bool:
        """Read once; False at the end of the stream."""
        assert self._sock is not None  # noqa: S101 - something was sent over it
        self._sock.settimeout(self._left_s())
        data = self._sock.recv(1 << 16)
        self._buffer += data
        return bool(data)

    def _line(self, limit: int, what: str) -> bytes:
        """The next line without its end."""
        start = 0
        while (at := self._buffer.find(b"\n", start)) < 0:
            start = len(self._buffer)
            if start > limit:
                raise ExchangeFailed("malformed", f"{what} is longer than {limit} bytes")
            if not self._more():
                raise ConnectionResetError(0, f"it was closed within {what}")
        if at > limit:
            raise ExchangeFailed("malformed", f"{what} is longer than {limit} bytes")
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        return line.removesuffix(b"\r")

    def _head(self) -> _Head:
        line = self._line(MAX_CHUNK_LINE_BYTES, "the status line")
        status = _STATUS.match(line)
        if status is None:
            raise ExchangeFailed("malformed", f"it answers {line[:60]!r}, expected HTTP/1.1")
        headers = self._headers()
        code = int(status[2])
        if code < 200:
            raise ExchangeFailed("malformed", f"status {code}, which nothing asked for", status=code)
        return _Head(int(status[1]), code, headers)

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        room = MAX_HEAD_BYTES
        for _ in range(MAX_HEADERS):
            line = self._line(room, "the head")
            room -= len(line) + 1
            if not line:
                return headers
            found = _HEADER.match(line)
            if found is None or room < 0:
                raise ExchangeFailed("malformed", f"a header is {line[:60]!r}" if room >= 0 else "the head is too long")
            name, value = found[1].decode("ascii").lower(), found[2].decode("latin-1")
            if name in ("content-length", "transfer-encoding", "content-encoding") and name in headers:
                raise ExchangeFailed("malformed", f"header {name} stands twice")
            headers[name] = value
        raise ExchangeFailed("malformed", f"more than {MAX_HEADERS} headers")

    def _body(self, head: _Head) -> bytes:
        encoding = head.get("content-encoding").lower()
        if encoding not in ("", "identity"):
            raise ExchangeFailed(
                "malformed", f"the body is encoded ({encoding:.40}), not asked for", status=head.status
            )
        transfer, length = head.get("transfer-encoding").lower(), head.headers.get("content-length")
        if head.status in (204, 304):
            return b""
        if transfer:
            if transfer != "chunked" or length is not None:
                raise ExchangeFailed("malformed", f"transfer-encoding {transfer:.40}", status=head.status)
            return self._chunks(head.status)
        if length is not None:
            if not re.fullmatch(r"[0-9]{1,18}", length):
                raise ExchangeFailed("malformed", f"content-length is {length!r:.40}", status=head.status)
            return self._exactly(self._room(int(length), head.status))
        while self._more():
            self._room(len(self._buffer), head.status)
        body = bytes(self._buffer)
        self.close()  # the end of the connection was the end of the body
        return body

    def _room(self, size: int, status: int) -> int:
        if size > MAX_BODY_BYTES:
            raise ExchangeFailed("malformed", f"the body is longer than {MAX_BODY_BYTES} bytes", status=status)
        return size

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not self._more():
                raise ConnectionResetError(0, f"it was closed after {len(self._buffer)} of {size} bytes")
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return body

    def _chunks(self, status: int) -> bytes:
        body = bytearray()
        for _ in range(MAX_CHUNKS):
            line = self._line(MAX_CHUNK_LINE_BYTES, "a chunk's size")
            found = _CHUNK.match(line)
            if found is None:
                raise ExchangeFailed("malformed", f"a chunk's size is {line[:40]!r}", status=status)
            size = int(found[1], 16)
            if size == 0:
                self._headers()
                return bytes(body)
            self._room(len(body) + size, status)
            body += self._exactly(size)
            if self._line(2, "a chunk's end"):
                raise ExchangeFailed("malformed", "a chunk is longer than its size", status=status)
        raise ExchangeFailed("malformed", f"more than {MAX_CHUNKS} chunks", status=status)
