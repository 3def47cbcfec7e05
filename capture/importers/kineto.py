"""Traces of the PyTorch profiler (Kineto), in Chrome's JSON form, compressed or not: one file per rank.

The file is read twice: once for ``baseTimeNanoseconds``, which stands at its end and which all times count from, and
once for its events, as they come. Without it, times are since 1970 (traces before 2024), or of an axis of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers import kineto_values as values
from gpuaudit.capture.importers.batches import Batches
from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.json_stream import Malformed, Skipped, members
from gpuaudit.capture.importers.kineto_events import Events
from gpuaudit.capture.importers.model import Format, Request, RowSink, Told, not_of_lines, unrecorded
from gpuaudit.capture.importers.reading import Recording

EVENTS, BASE = "traceEvents", "baseTimeNanoseconds"
WANTED = frozenset({BASE, "distributedInfo", "deviceProperties", "schemaVersion", "traceName", "record_shapes"})

WALL_CLOCK_FROM_NS = 1_262_304_000_000_000_000
"""2010-01-01 UTC: a time without a base that lies before it counts from the start of a host; CUPTI is of 2011."""

MAX_UNREADABLE = 10_000
"""A trace with more events that cannot be read is not a trace."""

MAX_DEVICES = 64

_BASE = re.compile(rb'"baseTimeNanoseconds"\s*:\s*([0-9]{1,19})\b')
_OVERLAP = 64
"""Bytes of a block that are looked at again with the next one: longer than what :data:`_BASE` matches."""


def read_file(recording: Recording, sink: RowSink, request: Request, told: Told) -> None:  # noqa: ARG001
    """Rows of one trace; see :class:`gpuaudit.capture.importers.model.FileReader`."""
    base_ns = _base_ahead(recording.blocks_ahead())
    events = Events(Batches(sink, told), told, base_ns or 0)
    facts: dict[str, Any] = {}
    others: list[str] = []
    for key, value in members(recording.name, recording.blocks(), EVENTS, WANTED):
        if key == EVENTS:
            told.lines += 1
            _event(recording.name, events, value, told)
        elif isinstance(value, Skipped | Malformed):
            others.append(key[:64])
        else:
            facts[key] = value
            if key == "distributedInfo" and isinstance(value, dict):
                events.pids.rank = values.integer(value.get("rank"), values.U32)
    if facts.get(BASE) != base_ns:
        raise InputUnusable(
            f"{recording.name}: {BASE} is {facts.get(BASE)!r:.40} and {base_ns} elsewhere in the file",
            hint="a trace has one base of its times; write it again",
        )
    events.finish()
    told.wall_clock = base_ns is not None or told.first_ns is None or told.first_ns >= WALL_CLOCK_FROM_NS
    _tell(told, facts, events, others)
    _processes(sink, told, facts, events)


def _base_ahead(blocks: Iterable[bytes]) -> int | None:
    """The last base of times in the file, in ns since 1970."""
    found, tail = None, b""
    for block in blocks:
        data = tail + block
        if b"baseTime" in data:
            for match in _BASE.finditer(data):
                found = int(match[1])
        tail = data[-_OVERLAP:]
    return found


def _event(name: str, events: Events, value: Any, told: Told) -> None:
    try:
        if isinstance(value, Malformed):
            raise Unreadable(f"no JSON: {value.reason}")
        if not isinstance(value, dict):
            raise Unreadable(f"not an object but {value!r:.40}")
        events.add(value)
    except Unreadable as e:
        told.refuse(told.lines, str(e))
        if told.unreadable > MAX_UNREADABLE:
            raise InputUnusable(
                f"{name}: more than {MAX_UNREADABLE} of its events cannot be read; of event {told.lines}: {e}",
                hint="write the trace again, or leave these events out of it",
            ) from None


def _tell(told: Told, facts: Mapping[str, Any], events: Events, others: Sequence[str]) -> None:
    """What the import says of the file beside its rows."""
    told.facts = {"base_ns": str(facts[BASE]) if BASE in facts else None, **_distributed(facts.get("distributedInfo"))}
    devices = facts.get("deviceProperties")
    if isinstance(devices, list):
        told.facts["devices"] = [_device(d) for d in devices[:MAX_DEVICES] if isinstance(d, dict)]
    for key in ("schemaVersion", "traceName", "record_shapes"):
        if isinstance(facts.get(key), str | int):
            told.facts[key] = str(facts[key])[:256]
    told.not_carried += [f"{what}: {n}" for what, n in sorted(events.left_out.items())]
    told.not_carried += [f"member {key}" for key in sorted(set(others))[: values.MAX_NAME_CHARS // 64]]
    told.not_carried.append(
        "registers, occupancy, warps per SM, bandwidth and split sizes of GPU work; numbers of operators within the "
        "trace; which call was made inside which"
    )
    for count, what in (
        (events.cut_names, f"names past {values.MAX_NAME_CHARS} characters, cut"),
        (events.long_details, f"details past {values.MAX_DETAIL_BYTES} bytes, left out"),
    ):
        if count:
            told.not_carried.append(f"{what}: {count}")
    if events.finer:
        told.assumptions.append(f"Times finer than a nanosecond are cut off, in {events.finer} events.")
    if BASE not in facts:
        told.assumptions.append(
            "Times count from 1970 UTC, as in traces without a base of times." if told.wall_clock
            else "Times are those of a clock of the host that is no wall clock, and stand as they are."
        )  # fmt: skip


def _distributed(info: Any) -> dict[str, object]:
    """Rank, size and groups; of a trace without them, nothing."""
    if not isinstance(info, dict):
        return {"rank": None, "world_size": None, "backend": None}
    return {
        "rank": _text(values.integer(info.get("rank"), values.U32)),
        "world_size": _text(values.integer(info.get("world_size"), values.U32)),
        "backend": values.text(info.get("backend")),
        "process_groups": _text(len(info["pg_config"])) if isinstance(info.get("pg_config"), list) else None,
    }


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


def _device(properties: Mapping[str, Any]) -> dict[str, object]:
    return {
        "index": _text(values.integer(properties.get("id"), values.I32)),
        "name": values.text(properties.get("name")),
        "memory_total_bytes": _text(values.integer(properties.get("totalGlobalMem"), values.U64)),
        "multiprocessors": _text(values.integer(properties.get("numSms"), values.U32)),
    }


def _processes(sink: RowSink, told: Told, facts: Mapping[str, Any], events: Events) -> None:
    """A row per process with events of its own; its rank, where the trace says it."""
    info = facts.get("distributedInfo")
    info = info if isinstance(info, dict) else {}
    rank = values.integer(info.get("rank"), values.U32)
    rows: list[dict[str, object]] = [
        {
            "start_ns": told.first_ns, "pid": pid, "op": "found", "role": "traced", "seen_ns": told.first_ns,
            "comm": events.names.get(recorded, "name not recorded"), "rank": rank if pid == events.process else None,
            "world_size": values.integer(info.get("world_size"), values.U32),
            "rank_source": "distributedInfo of the trace" if rank is not None and pid == events.process else None,
            "pid_in_namespace": recorded if pid != recorded else None,
        }
        for recorded, pid in sorted(events.pids.all.items())
    ]  # fmt: skip
    if rows and told.first_ns is not None:
        sink.add_records("processes", rows)
        told.rows["processes"] += len(rows)
        told.assume("A process is taken to have begun no later than the first event of its trace.")


def recognises(head: Sequence[str]) -> bool:
    """Whether it begins as a trace: an object with one of Kineto's members, or an array of events."""
    text = "\n".join(head).lstrip("\ufeff \t\r\n")
    if text.startswith("{"):
        return any(f'"{word}"' in text for word in (EVENTS, "deviceProperties", "distributedInfo"))
    return text.startswith("[") and re.match(r'\[\s*\{[^{}]*"ph"\s*:', text) is not None


def gpus(head: Sequence[str]) -> Iterator[dict[str, object]]:
    """GPUs that the trace lists before its events, for leaf 0."""
    text = "\n".join(head)
    listed = re.search(r'"deviceProperties"\s*:\s*(?=\[)', text)
    if listed is None:
        return
    for d in _whole(text[listed.end() :]):
        index = values.integer(d.get("id"), 1023) if isinstance(d, dict) else None
        if index is not None:
            yield {"index": index, "uuid": unrecorded(index), "name": values.text(d.get("name")) or "not recorded",
                   "driver": "not recorded"}  # fmt: skip


def _whole(text: str) -> list[Any]:
    """The elements of an array that may be cut off."""
    found: list[Any] = []
    end = text.find("]") + 1 or len(text)
    with suppress(InputUnusable):
        for _, value in members("", [text[:end].encode("utf-8", "replace")], "", ()):
            found.append(value)
    return found[:MAX_DEVICES]


FORMAT = Format(
    "PyTorch profiler trace (Kineto)", "cuda", recognises, not_of_lines, lambda head: list(gpus(head)), read_file
)
