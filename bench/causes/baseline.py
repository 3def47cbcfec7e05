"""The field's usual rule: a tail ratio of 3, and any host evidence in the window, is that cause.

An operation of a process whose p99 is at least three times its p50 (at least ten calls) has a tail. A few slow calls in
a thousand are past any p99, so there is a second form, for which the longest call counts in its place. Every kind of
evidence that the window holds is then claimed to be a cause of it: intervals off the CPU and reclaims of the same
process, and block I/O, retransmits, throttling and the rest of the whole host. Nothing has to overlap with anything.
Kills are claimed whether there is a tail or not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from bench.causes.score import Claims
from tests.corpus.model import Played

TAIL_RATIO = 3
LEAST_CALLS = 10
THROTTLE_BITS = 0x8 | 0x20 | 0x40 | 0x80
"""Hardware slowdown, software and hardware thermal slowdown, power brake (nvml.h)."""

FUTEX = 202
"""System call number on x86-64."""

KNOWN = frozenset({
    "preempted", "lock_wait", "blocking_io", "tcp_retransmits", "memory_reclaim", "cpu_quota", "throttled", "oom_kill",
    "gpu_shared", "fabric_error",
})  # fmt: skip
"""Causes that it can name."""

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def claimed(played: Played, longest: bool = False) -> Claims:
    """What the rule says of a scenario; it knows no shares. ``longest``: its second form."""
    rows: Rows = played.scene.rows
    out: dict[tuple[str, int], Fraction | None] = {}
    for pid in tails(rows, longest):
        for cause in sorted(evidence(rows, pid)):
            out[cause, pid] = None
    for row in rows.get("oom_kills", []):
        out["oom_kill", row["pid"]] = None
    return out


def tails(rows: Rows, longest: bool = False) -> list[int]:
    """Processes with an operation whose p99 (or longest call) is three times its p50 or more."""
    durations: dict[tuple[int, str], list[int]] = defaultdict(list)
    for table in ("cuda_calls", "nccl_calls"):
        for row in rows.get(table, []):
            if row["duration_ns"] is not None:
                durations[row["pid"], row["op"]].append(row["duration_ns"])
    found = set()
    for (pid, _), some in durations.items():
        some.sort()
        n = len(some)
        p50, tail = some[-(-n // 2) - 1], some[-1 if longest else -(-99 * n // 100) - 1]
        if n >= LEAST_CALLS and tail >= TAIL_RATIO * p50:
            found.add(pid)
    return sorted(found)


def evidence(rows: Rows, pid: int) -> set[str]:
    """Causes for which the window holds a row of any kind."""
    off = [r for r in rows.get("off_cpu", []) if r["pid"] == pid]
    shared = defaultdict(set)
    for r in rows.get("nvml_processes", []):
        shared[r["gpu_uuid"]].add(r["pid"])
    there = {
        "preempted": any(r["op"] == "preempted" for r in off),
        "lock_wait": any(r["syscall"] == FUTEX for r in off),
        "blocking_io": bool(rows.get("block_io")),
        "tcp_retransmits": bool(rows.get("tcp_retransmits")),
        "memory_reclaim": any(r["pid"] == pid for r in rows.get("reclaims", []))
        or any(r["resource"] == "memory" and r["some_ns"] for r in rows.get("pressure", [])),
        "cpu_quota": any(r["throttled_ns"] for r in rows.get("cgroup_cpu", [])),
        "throttled": any(r["event_reasons"] & THROTTLE_BITS for r in rows.get("nvml_samples", [])),
        "gpu_shared": any(pid in pids and len(pids) > 1 for pids in shared.values()),
        "fabric_error": any(r["replay_errors"] for r in rows.get("nvml_links", []))
        or any(r["op"] == "xid" for r in rows.get("nvml_events", [])),
    }
    return {cause for cause, present in there.items() if present}
