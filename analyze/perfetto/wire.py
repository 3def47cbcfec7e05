"""Packets of a Perfetto trace in protobuf's wire format: the few messages that slices, counters and flows need.

Field numbers are those of Perfetto's ``protos/perfetto/trace/trace_packet.proto`` and ``track_event/*.proto``, which
are stable by its own rule; a test reads what is written here with Perfetto's published definitions. Times are in ns on
CLOCK_BOOTTIME, the clock a trace has unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpuaudit.bundle.display import printable

MOST_I32 = (1 << 31) - 1
"""Process and thread ids are int32 in ThreadDescriptor."""

SEQUENCE = 1
"""All packets are of one sequence; ids start at 1."""

BEGIN, END, INSTANT, COUNTER = 1, 2, 3, 4
"""TrackEvent.Type."""

CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME = 1, 3, 6
"""BuiltinClock."""

Note = tuple[str, int | str]
"""Name and value of a debug annotation."""


def varint(value: int) -> bytes:
    """A base-128 number; a negative one as its 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """An integer field."""
    return varint(field << 3) + varint(value)


def fixed64(field: int, value: int) -> bytes:
    """A fixed64 field."""
    return varint(field << 3 | 1) + value.to_bytes(8, "little")


def message(field: int, data: bytes) -> bytes:
    """A message or bytes field."""
    return varint(field << 3 | 2) + varint(len(data)) + data


def text(field: int, value: str) -> bytes:
    """A string field; what evidence holds is made inert, as everywhere it is shown."""
    return message(field, printable(value).encode())


def _packet(body: bytes, at_ns: int | None = None) -> bytes:
    time = b"" if at_ns is None else number(8, at_ns)
    return message(1, time + number(10, SEQUENCE) + body)


def clocks(boot_ns: int, realtime_ns: int, monotonic_ns: int) -> bytes:
    """A ClockSnapshot: what UTC it was at a time of the trace."""
    pairs = ((CLOCK_BOOTTIME, boot_ns), (CLOCK_REALTIME, realtime_ns), (CLOCK_MONOTONIC, monotonic_ns))
    body = b"".join(message(1, number(1, clock) + number(2, at)) for clock, at in pairs)
    return _packet(message(6, body), boot_ns)


def process_track(uuid: int, pid: int, name: str) -> bytes:
    """A TrackDescriptor of a process."""
    return _packet(message(60, number(1, uuid) + message(3, number(1, pid) + text(6, name))))


def thread_track(uuid: int, parent: int, pid: int, tid: int, name: str) -> bytes:
    """A TrackDescriptor of a thread."""
    thread = number(1, pid) + number(2, tid) + text(5, name)
    return _packet(message(60, number(1, uuid) + number(5, parent) + message(4, thread)))


def track(uuid: int, parent: int, name: str, *, unit: str = "") -> bytes:
    """A TrackDescriptor of anything else below ``parent`` (0: the trace); with ``unit`` it is one of a counter."""
    body = number(1, uuid) + (number(5, parent) if parent else b"") + text(2, name)
    if unit:
        body += message(8, text(6, unit))
    return _packet(message(60, body))


def begin(track_uuid: int, at_ns: int, name: str, category: str, *, notes: Iterable[Note] = (),
          flows: Sequence[int] = (), ends: Sequence[int] = (), kind: int = BEGIN) -> bytes:  # fmt: skip
    """The beginning of a slice, or an instant; ``flows`` go on from it, ``ends`` end in it."""
    body = number(9, kind) + number(11, track_uuid) + text(22, category) + text(23, name)
    body += b"".join(fixed64(47, f) for f in flows) + b"".join(fixed64(48, f) for f in ends)
    for key, value in notes:
        said = text(6, value) if isinstance(value, str) else number(4 if value < 0 else 3, value)
        body += message(4, text(10, key) + said)
    return _packet(message(11, body), at_ns)


def end(track_uuid: int, at_ns: int) -> bytes:
    """The end of the innermost slice that is open on a track."""
    return _packet(message(11, number(9, END) + number(11, track_uuid)), at_ns)


def counter(track_uuid: int, at_ns: int, value: int) -> bytes:
    """A value of a counter."""
    return _packet(message(11, number(9, COUNTER) + number(11, track_uuid) + number(30, value)), at_ns)
