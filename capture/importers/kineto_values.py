"""Values of a Kineto trace: times exact to the nanosecond, numbers that fit their columns, meanings of names.

Times are µs since the base of the trace, whole or with a decimal fraction (three digits in traces since 2024).
What is finer than a nanosecond is cut off, at the start and at the end alike, so that neighbours stay neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.model import MAX_TIME_NS

NS_PER_US = 1000
MAX_US = MAX_TIME_NS // NS_PER_US

MAX_NAME_CHARS = 4096
"""Longer names (of templates within templates) are cut, and counted."""

MAX_DETAIL_BYTES = 4096
"""As ``user_ranges.detail`` says."""

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
I32, I64 = (1 << 31) - 1, (1 << 63) - 1

DIRECTIONS: dict[str, int] = {"HtoH": 0, "HtoD": 1, "DtoH": 2, "DtoD": 3, "PtoP": 10}
"""Word in the name of a copy → cudaMemcpyKind, 10 for peer to peer (``memcpyKindString`` in Kineto's
CuptiActivity.cpp)."""

_IDENTITIES = frozenset({
    "External id", "external id", "Record function id", "Ev Idx", "Profiler Event Index", "Trace name", "correlation",
    "Trace iteration", "Sequence number", "Fwd thread id", "Python id", "Python parent id", "Python module id", "cbid",
})  # fmt: skip
"""Arguments that number an event within its trace: in a detail they would make every row differ from every other."""

_ENCODE = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode


def times(event: Mapping[str, Any], base_ns: int) -> tuple[int, int | None, bool]:
    """Start and duration in ns, and whether something finer was cut off; Unreadable where they are none."""
    start, finer = _ns(event.get("ts"), "ts")
    length = event.get("dur")
    if start + base_ns >= MAX_TIME_NS:
        raise Unreadable(f"ts is {event['ts']!r:.40} µs after a base of {base_ns} ns, which is no time")
    if length is None:
        return start + base_ns, None, finer
    whole, cut = _ns(length, "dur")
    if finer or cut:
        whole = _ns(Decimal(event["ts"]) + Decimal(length), "ts + dur")[0] - start
    return start + base_ns, whole, finer or cut


def _ns(value: Any, what: str) -> tuple[int, bool]:
    if type(value) is int and 0 <= value < MAX_US:
        return value * NS_PER_US, False
    if not isinstance(value, Decimal) or not 0 <= value < MAX_US:  # before it is multiplied: it may be past any range
        raise Unreadable(f"{what} is {value!r:.40}, expected microseconds")
    scaled = value * NS_PER_US
    whole = int(scaled)
    return whole, scaled != whole


def integer(value: Any, most: int, least: int = 0) -> int | None:
    """A whole number within bounds, written as a number or in digits; else nothing."""
    if type(value) is not int:
        if not isinstance(value, str) or len(value) > 20:
            return None
        try:
            value = int(value, 0)
        except ValueError:
            return None
    return value if least <= value <= most else None


def thread(value: Any) -> int | None:
    """A thread id; one that was printed as a signed number is put right."""
    tid = integer(value, U32, -I32 - 1)
    return tid & U32 if tid is not None else None


def text(value: Any) -> str | None:
    """Text that is there."""
    return value[:MAX_NAME_CHARS] if isinstance(value, str) and value else None


def three(value: Any) -> tuple[int | None, int | None, int | None]:
    """The dimensions of a grid or a block."""
    if not isinstance(value, list) or len(value) != 3:
        return None, None, None
    x, y, z = (integer(v, U32) for v in value)
    return x, y, z


def direction(name: str, kind: Any) -> int | None:
    """cudaMemcpyKind of a copy, from its own word or that in its name."""
    if isinstance(kind, str) and kind in DIRECTIONS:
        return DIRECTIONS[kind]
    return next((code for word, code in DIRECTIONS.items() if word in name), None)


def pageable(name: str) -> int | None:
    """Whether the host side of a copy was pageable (1) or pinned (0), where the name says so."""
    return 1 if "Pageable" in name else 0 if "Pinned" in name else None


def detail(args: Mapping[str, Any]) -> tuple[str | None, bool]:
    """What an event says of itself beside numbers of its own, as JSON; and whether it was too long and left out."""
    told = {k: v for k, v in args.items() if k not in _IDENTITIES and v not in ("", [], None)}
    if not told:
        return None, False
    try:
        written = _ENCODE(told)
    except RecursionError:
        return None, True
    return (written, False) if len(written) <= MAX_DETAIL_BYTES else (None, True)
