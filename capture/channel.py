"""Messages between attacher and recorder: one JSON object per line over a socket pair.

Each side treats the other as possibly taken over: the recorder reads what untrusted processes caused to be recorded,
the attacher parses untrusted ELF files. So a line has a longest length, a message a known type, and a peer that breaks
the form is cut off with :class:`ChannelBroken`.
"""

from __future__ import annotations

import json
import select
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from gpuaudit.bundle.errors import AuditError

LINE_LIMIT_BYTES = 1 << 20
"""Longest message: 1 MiB holds 256 process rows with command lines of 4,096 bytes."""

QUEUE_LIMIT_MESSAGES = 4096
"""Messages read but not yet handled; past it the peer floods."""

SEND_DEADLINE_S = 30.0
"""A peer that reads nothing for this long is taken for dead: a commit on a slow disk takes seconds, not so long."""

TO_RECORDER = frozenset({"start", "rows", "engine", "signature", "finish"})
TO_ATTACHER = frozenset({"sign", "receipt", "status", "sealed", "failed"})

Message = dict[str, Any]


class ChannelBroken(AuditError):
    """The peer is gone, or sent what no honest peer sends."""


class Channel:
    """One end. ``accepts`` are the message types the peer may send."""

    def __init__(self, sock: socket.socket, accepts: frozenset[str]) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._accepts = accepts
        self._buffer = bytearray()
        self._queue: deque[Message] = deque()
        self._ended = False

    def fileno(self) -> int:
        """For select."""
        return self._sock.fileno()

    def send(self, kind: str, **body: object) -> None:
        """Send one message; ChannelBroken when the peer is gone, reads nothing, or the message is too long."""
        data = json.dumps({"type": kind, **body}, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
        if len(data) > LINE_LIMIT_BYTES:
            raise ChannelBroken(f"message {kind} is {len(data)} bytes, more than {LINE_LIMIT_BYTES}")
        view = memoryview(data)
        while view:
            if not select.select([], [self._sock], [], SEND_DEADLINE_S)[1]:
                raise ChannelBroken(f"the other process read nothing for {SEND_DEADLINE_S:.0f} s")
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                continue
            except OSError as e:
                raise ChannelBroken(f"the other process is gone ({e.strerror})") from None

    def can_send(self) -> bool:
        """Whether a short message would go out at once; status lines are skipped where not."""
        return bool(select.select([], [self._sock], [], 0)[1])

    def receive(self, timeout_s: float, wake: Sequence[int] = ()) -> list[Message]:
        """Messages that have come, waiting for the first at most ``timeout_s``, or until one of ``wake`` is readable.

        ChannelBroken when the peer closed (after everything it had sent was handed over) or broke the form.
        """
        if not self._queue and not self._ended:
            poll = select.poll()  # unlike select(2), it takes descriptors beyond 1,023: every probe may be one
            for fd in (self._sock.fileno(), *wake):
                poll.register(fd, select.POLLIN)
            if any(fd == self._sock.fileno() for fd, _ in poll.poll(timeout_s * 1000)):
                self._read()
        out = list(self._queue)
        self._queue.clear()
        if not out and self._ended:
            raise ChannelBroken("the other process closed the channel")
        return out

    def wait_for(self, kind: str, deadline_s: float) -> Message:
        """The next message of one type; others stay queued, in order. ChannelBroken when it does not come."""
        while True:
            for message in self._queue:
                if message["type"] == kind:
                    self._queue.remove(message)
                    return message
            if self._ended:
                raise ChannelBroken(f"the other process closed the channel before {kind}")
            if not select.select([self._sock], [], [], deadline_s)[0]:
                raise ChannelBroken(f"no {kind} within {deadline_s:.0f} s")
            self._read()

    def close(self) -> None:
        """Close this end; the peer sees the end of the stream."""
        self._sock.close()

    def _read(self) -> None:
        while True:
            try:
                data = self._sock.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._ended = True
                return
            self._buffer += data
            self._split()
            if len(self._queue) > QUEUE_LIMIT_MESSAGES // 2:
                return  # what is in the socket waits there, and the peer with it

    def _split(self) -> None:
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        if any(len(line) > LINE_LIMIT_BYTES for line in (*lines, rest)):
            raise ChannelBroken(f"the other process sent a line of more than {LINE_LIMIT_BYTES} bytes")
        for line in lines:
            if len(self._queue) >= QUEUE_LIMIT_MESSAGES:
                raise ChannelBroken(f"the other process sent more than {QUEUE_LIMIT_MESSAGES} messages at once")
            self._queue.append(self._parse(bytes(line)))

    def _parse(self, line: bytes) -> Message:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise ChannelBroken(f"the other process sent {line[:60]!r}, expected one JSON object per line") from None
        kind = message.get("type") if isinstance(message, Mapping) else None
        if not isinstance(kind, str) or kind not in self._accepts:
            raise ChannelBroken(
                f"the other process sent a message of type {kind!r:.60}, expected {sorted(self._accepts)}"
            )
        return dict(message)
