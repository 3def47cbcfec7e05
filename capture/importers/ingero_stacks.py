"""Stacks of an Ingero database: looked up when a row first refers to one, and told apart into Python and native frames.

The line it stores is the first line of the function (``co_firstlineno``), not the one that was executed; the file of a
native frame is a base name, and its address is not carried. Its hash cannot be checked, for the same reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from gpuaudit.capture.importers.batches import Batches
from gpuaudit.capture.importers.foreign_sqlite import ForeignDatabase
from gpuaudit.capture.importers.ingero_values import U32, U64, text

MAX_STACKS = 250_000
"""Distinct stacks that are carried; the first ones."""
MAX_STACK_CHARACTERS = 65_536
"""The tool's own merge skips longer ones."""
MAX_FRAMES = 512
"""Of one stack; it takes 64 native ones, and CPython's recursion limit is 1000."""
MAX_TEXT = 1024

TABLE = "stack_traces"


@dataclass(frozen=True)
class Kinds:
    """Which kinds of frames a stack has."""

    python: bool
    native: bool


NONE = Kinds(False, False)


class Stacks:
    """Carries each stack once, with the row that first refers to it."""

    def __init__(self, database: ForeignDatabase, out: Batches) -> None:
        self._database = database
        self._out = out
        self._known: dict[int, Kinds] = {}
        self.unresolved = 0
        self.unreadable = 0
        self.dangling = 0
        self.too_many = 0
        self._frames = ("frames" in database.columns(TABLE), "ips" in database.columns(TABLE))

    @property
    def carried(self) -> int:
        """Stacks that have rows now."""
        return sum(k != NONE for k in self._known.values())

    @property
    def referred(self) -> int:
        """Stacks of the table that a row refers to."""
        return len(self._known) - self.dangling

    def of(self, signed: int, pid: int, tid: int, start_ns: int) -> tuple[int | None, int | None]:
        """(native, python) identity of the stack with that hash, null where it has no such frames."""
        if not signed:
            return None, None
        kinds = self._known.get(signed)
        if kinds is None:
            if len(self._known) >= MAX_STACKS:
                self.too_many += 1
                return None, None
            kinds = self._known[signed] = self._carry(signed, pid, tid, start_ns)
        stack = signed & U64
        return stack if kinds.native else None, stack if kinds.python else None

    def _carry(self, signed: int, pid: int, tid: int, start_ns: int) -> Kinds:
        rows = list(self._database.read(TABLE, ("frames", "ips"), where=f"hash = {signed} LIMIT 1")) if any(
            self._frames) else []  # fmt: skip
        if not rows:
            self.dangling += 1
            return NONE
        frames = _frames(rows[0][0]) if isinstance(rows[0][0], str) and rows[0][0] else None
        if frames is None:
            self.unreadable += bool(rows[0][0])
            self.unresolved += not rows[0][0]
            return NONE
        depth = {"python": 0, "native": 0}
        for frame in frames[:MAX_FRAMES]:
            kind = "python" if text(_get(frame, "pfn"), MAX_TEXT) else "native"
            self._out.add("stack_frames", {
                "start_ns": start_ns, "pid": pid, "tid": tid, "stack": signed & U64, "kind": kind,
                "depth": depth[kind], **(_python(frame) if kind == "python" else _native(frame)),
            })  # fmt: skip
            depth[kind] += 1
        return Kinds(depth["python"] > 0, depth["native"] > 0)


def _get(frame: dict[str, object], key: str) -> str | int | None:
    value = frame.get(key)
    return value if isinstance(value, str | int) else None


def _frames(stored: str) -> list[dict[str, object]] | None:
    """The frames, innermost first; None where the text does not hold a list of them."""
    if len(stored) > MAX_STACK_CHARACTERS:
        return None
    try:
        frames = json.loads(stored)
    except (ValueError, RecursionError):
        return None
    if not isinstance(frames, list) or not all(isinstance(f, dict) for f in frames):
        return None
    return frames


def _python(frame: dict[str, object]) -> dict[str, object]:
    first = _get(frame, "pl")
    return {
        "path": text(_get(frame, "pf"), MAX_TEXT) or None, "symbol": text(_get(frame, "pfn"), MAX_TEXT),
        "first_line": first if isinstance(first, int) and 0 < first <= U32 else None,
        "reason": "the recording has the first line of the function, not the one that was executed",
    }  # fmt: skip


def _native(frame: dict[str, object]) -> dict[str, object]:
    symbol, _, offset = text(_get(frame, "s"), MAX_TEXT).partition("+0x")
    try:
        at = int(offset, 16) if offset and len(offset) <= 16 else None
    except ValueError:
        at = None
    out: dict[str, object] = {
        "path": text(_get(frame, "f"), MAX_TEXT) or None, "symbol": symbol or None, "symbol_offset": at,
    }  # fmt: skip
    return out if symbol else {**out, "reason": "not named when it was recorded"}
