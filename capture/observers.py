"""Other tools that watch while we do: tracers, profilers and debuggers, found by what they hold.

A process that holds a perf event, a tracing BPF program or its attachment, or that is the ptrace tracer of another one,
can slow the workload down or see it. It is recorded with the role ``observer``. What is not seen: programs that are
attached and held by nobody (pinned in bpffs, or in the kernel), and a tool that reads another's memory without ptrace.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.capture.processes import PROC

MAX_DESCRIPTORS = 4096
"""Descriptors of one process that are looked at: who holds more is a server, not a tracer. ours"""
FIRST_LOOK_NS, LAST_LOOK_NS = 250_000_000, 10_000_000_000
"""A process is looked at when it is first seen, and again after pauses that double from one to the other: a tool
attaches soon after its start, and a server that never did is not worth the time. ours"""

_PROGRAM_TYPES = {
    2: "kprobe", 5: "tracepoint", 7: "perf event", 17: "raw tracepoint", 24: "raw tracepoint", 26: "tracing", 29: "LSM",
}  # fmt: skip
"""BPF program types that watch (include/uapi/linux/bpf.h); those of sockets and cgroups do not."""
_LINK_TYPES = frozenset({"raw_tracepoint", "tracing", "perf", "kprobe_multi", "uprobe_multi"})
"""Names that the kernel gives its links in fdinfo; as numbers before Linux 5.13, then they do not count."""

_TRACER = re.compile(rb"^TracerPid:\s+([1-9][0-9]*)$", re.MULTILINE)


@dataclass
class _Seen:
    start_ns: int
    next_ns: int
    pause_ns: int
    told: str = ""


class Observers:
    """Remembers who was looked at and what was told."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def look(self, processes: Iterable[tuple[int, int]], now_ns: int) -> Iterator[tuple[int, str]]:
        """(pid, reason) of those that are found to watch and were not before. ``processes``: (pid, start_ns)."""
        alive: set[int] = set()
        tracers: dict[int, list[int]] = {}
        for pid, start_ns in processes:
            alive.add(pid)
            seen = self._seen.get(pid)
            if seen is None or seen.start_ns != start_ns:
                seen = self._seen[pid] = _Seen(start_ns, 0, FIRST_LOOK_NS // 2)
            if now_ns < seen.next_ns:
                continue
            seen.pause_ns = min(2 * seen.pause_ns, LAST_LOOK_NS)
            seen.next_ns = now_ns + seen.pause_ns
            if (tracer := tracer_of(pid)) is not None:
                tracers.setdefault(tracer, []).append(pid)
            if not seen.told and (reason := what_it_holds(pid)):
                seen.told = reason
                yield pid, reason
        for tracer, traced in sorted(tracers.items()):
            seen = self._seen.get(tracer)
            if seen is not None and not seen.told:
                seen.told = f"is the ptrace tracer of process {traced[0]}"
                yield tracer, seen.told
        for pid in self._seen.keys() - alive:
            del self._seen[pid]


def tracer_of(pid: int) -> int | None:
    """The process that traces ``pid`` with ptrace, None without one."""
    try:
        found = _TRACER.search(Path(f"{PROC}/{pid}/status").read_bytes())
    except OSError:
        return None
    return int(found[1]) if found else None


def what_it_holds(pid: int) -> str:
    """``holds 1 × BPF program (kprobe), 2 × perf event``; empty when it holds nothing that watches."""
    held: Counter[str] = Counter()
    try:
        with os.scandir(f"{PROC}/{pid}/fd") as entries:
            for entry, _ in zip(entries, range(MAX_DESCRIPTORS), strict=False):
                if kind := _kind(pid, entry.name):
                    held[kind] += 1
    except OSError:
        return ""
    return "holds " + ", ".join(f"{n} × {kind}" for kind, n in sorted(held.items())) if held else ""


def _kind(pid: int, descriptor: str) -> str:
    try:
        target = os.readlink(f"{PROC}/{pid}/fd/{descriptor}")  # noqa: PTH115 - a Path per descriptor is slow
        if not target.startswith("anon_inode:"):
            return ""
        if target == "anon_inode:[perf_event]":
            return "perf event"
        if target not in ("anon_inode:bpf-prog", "anon_inode:bpf_link", "anon_inode:[bpf_link]"):
            return ""
        details = Path(f"{PROC}/{pid}/fdinfo/{descriptor}").read_text("ascii", "replace")
    except OSError:
        return ""
    fields = dict(line.split(":", 1) for line in details.splitlines() if ":" in line)
    if target == "anon_inode:bpf-prog":
        number = fields.get("prog_type", "").strip()
        kind = _PROGRAM_TYPES.get(int(number) if number.isdigit() else -1)
        return f"BPF program ({kind})" if kind else ""
    link = fields.get("link_type", "").strip()
    return f"BPF link ({link})" if link in _LINK_TYPES else ""
