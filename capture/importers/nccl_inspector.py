"""Logs of the NCCL Inspector (``ext-profiler/inspector`` of NCCL): JSON lines, one per collective or point-to-point.

Formats v4 and v5, by its README and the plugin's own keys; not verified against a log of a GPU host. Only verbose logs
(``NCCL_INSPECTOR_DUMP_VERBOSE=1``) say when an operation began: from these come a row of ``nccl_calls`` (the host's
call) and one of ``gpu_activities`` (its kernels, first start to last stop over the channels). Any other record tells
how long an operation took and not when: such are counted per second in which they were written (``period_totals``).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers.batches import Batches
from gpuaudit.capture.importers.cells import Unreadable
from gpuaudit.capture.importers.kineto_events import Pids
from gpuaudit.capture.importers.kineto_values import integer
from gpuaudit.capture.importers.model import MAX_TIME_NS, Format, Line, Request, RowSink, Told

VERSION = "inspector_output_format_version"
MAJOR_VERSIONS = (4, 5)

I32, U32, U64 = (1 << 31) - 1, (1 << 32) - 1, (1 << 64) - 1
MAX_US = MAX_TIME_NS // 1_000
MAX_CHANNELS = 1024
"""NCCL has at most 64 channels (MAXCHANNELS in nccl_common.h)."""

MAX_UNREADABLE = 10_000
MAX_HOSTS = 64
"""Hosts of one file; a log is of one process, unless somebody put several together."""

SECOND_NS = 1_000_000_000
MAX_WRITTEN_APART = 4_096
"""Totals per second that are kept at once: the dump thread writes in order, and operations of one second together."""

_NAME = re.compile(r"[A-Z][A-Za-z0-9]{1,63}\Z", re.ASCII)
_VERSION = re.compile(r"v([0-9]{1,4})(?:\.|\Z)", re.ASCII)
_KINDS = {"coll_perf": ("coll", "coll"), "p2p_perf": ("p2p", "p2p")}
"""Member of a record → key of the operation's name, and prefix of its other keys."""


@dataclass
class _Total:
    count: int = 0
    sum_ns: int = 0
    min_ns: int = U64
    max_ns: int = 0
    size_bytes: int = 0


@dataclass
class _Log:
    """The state of reading one log."""

    out: Batches
    told: Told
    pids: dict[str, Pids] = field(default_factory=dict)
    """By host: equal numbers of two hosts are two processes."""
    totals: dict[tuple[int, int, str], _Total] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)
    most_nodes: int = 1
    calls: int = 0

    def line(self, record: Mapping[str, Any]) -> None:
        """One record; Unreadable where it is none."""
        header, meta = _object(record, "header"), _object(record, "metadata")
        self._version(meta)
        kind = next((k for k in _KINDS if k in record), None)
        if kind is None:
            name = ", ".join(sorted(k[:64] for k in record if k not in ("header", "metadata"))) or "nothing"
            if len(self.others) < 64 or name in self.others:
                self.others[name] = self.others.get(name, 0) + 1
            return
        name_key, prefix = _KINDS[kind]
        body = _object(record, kind)
        operation = body.get(name_key)
        if not isinstance(operation, str) or not _NAME.match(operation):
            raise Unreadable(f"{name_key} is {operation!r:.40}, expected an operation like AllReduce")
        host = str(meta.get("hostname", ""))[:256]
        self.most_nodes = max(self.most_nodes, integer(header.get("nnodes"), I32) or 1)
        pid = self._pids(host).of(_number(meta.get("pid"), "pid", U32))
        self._operation(header, meta, body, (prefix, operation, pid))

    def _pids(self, host: str) -> Pids:
        if host not in self.pids:
            if len(self.pids) >= MAX_HOSTS:
                raise Unreadable(f"its host is one more than the {MAX_HOSTS} that a log may tell of")
            self.pids[host] = Pids(self.told)
            self.pids[host].rank = zlib.crc32(host.encode("utf-8", "backslashreplace"))
        return self.pids[host]

    def _operation(
        self, header: Mapping[str, Any], meta: Mapping[str, Any], body: Mapping[str, Any], what: tuple[str, str, int]
    ) -> None:
        prefix, operation, pid = what
        size = integer(body.get(f"{prefix}_msg_size_bytes"), U64)
        took_us = _number(body.get(f"{prefix}_exec_time_us"), f"{prefix}_exec_time_us", MAX_US)
        trace = body.get("event_trace_ts")
        start_us = integer(trace.get(f"{prefix}_start_ts"), MAX_US) if isinstance(trace, dict) else None
        if not isinstance(trace, dict) or not start_us:
            self._count(_number(meta.get("dump_timestamp_us"), "dump_timestamp_us", MAX_US), what, took_us, size)
            return
        stop_us = integer(trace.get(f"{prefix}_stop_ts"), MAX_US)
        comm = _hash(header.get("id"))
        self.told.at(start_us * 1_000)
        self.out.add("nccl_calls", {
            "start_ns": start_us * 1_000, "pid": pid, "tid": pid, "op": f"nccl{operation}", "comm_handle": comm,
            "duration_ns": (stop_us - start_us) * 1_000 if stop_us and stop_us >= start_us else None,
            "comm_id": comm, "rank": integer(header.get("rank"), I32), "nranks": integer(header.get("n_ranks"), I32),
            "peer": integer(body.get("p2p_peer"), I32), "size_bytes": size, "seq": self.calls,
        })  # fmt: skip
        self.calls += 1
        self._kernels(trace, header, what, size)

    def _kernels(
        self, trace: Mapping[str, Any], header: Mapping[str, Any], what: tuple[str, str, int], size: int | None
    ) -> None:
        """One row for the kernels of all channels, where each of them tells both times."""
        _, operation, pid = what
        events = trace.get("kernel_events")
        channels = [e for e in events[:MAX_CHANNELS] if isinstance(e, dict)] if isinstance(events, list) else []
        starts = [t for e in channels if (t := integer(e.get("kernel_start_ts"), MAX_US))]
        stops = [t for e in channels if (t := integer(e.get("kernel_stop_ts"), MAX_US))]
        if not starts or len(starts) < len(channels) or len(stops) < len(channels) or max(stops) < min(starts):
            return
        start, end = min(starts) * 1_000, max(stops) * 1_000
        self.told.at(start)
        self.told.at(end)
        self.out.add("gpu_activities", {
            "start_ns": start, "duration_ns": end - start, "pid": pid, "op": "kernel", "name": f"nccl{operation}",
            "size_bytes": size, "collective": operation, "group_name": f"{_hash(header.get('id')):016x}",
            "group_size": integer(header.get("n_ranks"), U32),
        })  # fmt: skip

    def _count(self, written_us: int, what: tuple[str, str, int], took_us: int, size: int | None) -> None:
        _, operation, pid = what
        second = written_us * 1_000 // SECOND_NS * SECOND_NS
        self.told.at(second)
        key = (second, pid, f"nccl{operation} execution")
        if key not in self.totals and len(self.totals) >= MAX_WRITTEN_APART:
            self.flush()
        t = self.totals.setdefault(key, _Total())
        t.count, t.sum_ns = t.count + 1, t.sum_ns + took_us * 1_000
        t.min_ns, t.max_ns = min(t.min_ns, took_us * 1_000), max(t.max_ns, took_us * 1_000)
        t.size_bytes += size or 0

    def flush(self) -> None:
        """Hand over the totals so far; a second that goes on has a further row."""
        for (second, pid, op), t in sorted(self.totals.items()):
            self.out.add("period_totals", {
                "start_ns": second, "duration_ns": SECOND_NS, "pid": pid, "op": op, "count": t.count, "kept": 0,
                "sum_ns": min(t.sum_ns, U64), "min_ns": t.min_ns, "max_ns": t.max_ns,
                "size_bytes": min(t.size_bytes, U64),
            })  # fmt: skip
            self.told.at(second + SECOND_NS)
        self.totals.clear()

    def _version(self, meta: Mapping[str, Any]) -> None:
        version = str(meta.get(VERSION, ""))[:16]
        if version in self.versions:
            return
        major = _VERSION.match(version)
        if major is None or int(major[1]) not in MAJOR_VERSIONS:
            raise InputUnusable(
                f"format {version!r} of the NCCL Inspector is not known; v4 and v5 are",
                hint="use the version of gpu-audit that reads it, or a newer one",
            )  # fmt: skip
        self.versions.add(version)


def _object(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    if not isinstance(value, dict):
        raise Unreadable(f"{key} is no object")
    return value


def _number(value: Any, what: str, most: int) -> int:
    """A number that must be there; what is finer than its unit is cut off, as v4 writes some times with a fraction."""
    if isinstance(value, float) and 0 <= value <= most:
        return int(value)
    found = integer(value, most)
    if found is None:
        raise Unreadable(f"{what} is {value!r:.40}, expected 0 to {most}")
    return found


def _hash(value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"0x[0-9A-Fa-f]{1,16}", value):
        raise Unreadable(f"id is {value!r:.40}, expected a communicator's hash like 0x7f8c")
    return int(value, 16)


def read(name: str, lines: Iterable[Line], sink: RowSink, request: Request, told: Told) -> None:  # noqa: ARG001
    """Rows of one log; see :class:`gpuaudit.capture.importers.model.Reader`."""
    log = _Log(Batches(sink, told), told)
    for number, text in lines:
        told.lines = number
        if not text.strip():
            continue
        try:
            log.line(_record(text))
        except Unreadable as e:
            told.refuse(number, str(e))
            if told.unreadable > MAX_UNREADABLE:
                raise InputUnusable(
                    f"{name}: more than {MAX_UNREADABLE} of its lines cannot be read, as: {e}"
                ) from None
    log.flush()
    log.out.finish()
    _tell(log, sink, told)


def _record(text: str) -> Mapping[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Unreadable(f"no JSON: {str(e)[:80]}") from None
    if not isinstance(record, dict):
        raise Unreadable("not an object")
    return record


def _tell(log: _Log, sink: RowSink, told: Told) -> None:
    told.facts = {"tool": "NCCL Inspector", "versions": sorted(log.versions), "hosts": sorted(log.pids)}
    told.assume("The format is read by NCCL's documentation of its inspector, not verified against a GPU host's log.")
    if told.rows["nccl_calls"]:
        told.assume("Times are of whole µs; the thread that called is not told, and taken to be the main thread.")
        told.assume("A communicator is told by the inspector's hash, which is no identity that NCCL hands out.")
    if told.rows["period_totals"]:
        told.assume("An operation without times of its own counts in the second in which its record was written.")
        told.weak("C", "operations of the NCCL Inspector's log have no times of their own: how long each took is "
                       "known, and when is not (NCCL_INSPECTOR_DUMP_VERBOSE=1 tells it)", ("nccl_calls",))  # fmt: skip
    if log.most_nodes > 1:
        told.weak("C", "ranks of several hosts, each with its own wall clock: how far these are apart is not known",
                  ("nccl_calls",), kind="clocks")  # fmt: skip
    told.not_carried += [f"records of {what}: {n}" for what, n in sorted(log.others.items())]
    told.not_carried.append("bandwidths, algorithm, protocol, and times of single channels")
    found = sorted((recorded, pid) for pids in log.pids.values() for recorded, pid in pids.all.items())
    if told.first_ns is not None and found:
        made = [
            {"start_ns": told.first_ns, "pid": pid, "op": "found", "role": "traced", "seen_ns": told.first_ns,
             "comm": "name not recorded", "pid_in_namespace": recorded if pid != recorded else None}
            for recorded, pid in found
        ]  # fmt: skip
        sink.add_records("processes", made)
        told.rows["processes"] += len(made)


def recognises(head: Sequence[str]) -> bool:
    """Whether a line of the beginning says that the inspector wrote it."""
    return any(f'"{VERSION}"' in line and '"header"' in line for line in head[:4])


FORMAT = Format("NCCL Inspector log", "nccl", recognises, read)
