"""Deeds, the host on which they happen, and the truth that comes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, Protocol

from tests.scenes import MS, T0, S, Scene

Range = tuple[int, int]
"""From which a size or time is drawn, evenly, both ends included."""


@dataclass(frozen=True)
class Planted:
    """A cause that is there: ``pid`` is who lost time to it (0: the host or a GPU), ``lost_ns`` what it covers of the
    lengthened calls of ``op``; 0 where a share means nothing."""

    cause: str
    pid: int
    op: str = ""
    lost_ns: int = 0


@dataclass
class Host:
    """Where it happens: rows so far, the seed, and what was planted. ``also`` are (cause, pid) that would be right to
    say too, and that nobody has to: the same thing seen from elsewhere."""

    seed: int
    scene: Scene = field(default_factory=Scene)
    planted: list[Planted] = field(default_factory=list)
    also: set[tuple[str, int]] = field(default_factory=set)
    lengthened: dict[tuple[int, str], int] = field(default_factory=dict)
    """By process and operation: whole duration of the calls that took longer than they would have."""
    throttled: list[tuple[str, int, int]] = field(default_factory=list)
    """(cgroup, from, ns) of time in which a cgroup's quota was used up."""
    cgroups: dict[int, str] = field(default_factory=dict)
    """By process: the cgroup that limits its CPU time; of a process that it does not name, ``/train``."""
    draw: random.Random = field(init=False)
    end: int = T0

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    def of(self, r: Range) -> int:
        """A number of the range."""
        return self.draw.randint(*r)

    def around(self, median: int, sigma: float = 0.2) -> int:
        """A duration about a median: log-normal, as durations of calls are."""
        return max(500, round(median * self.draw.lognormvariate(0, sigma)))

    def off_cpu(self, pid: int, tid: int, at: int, ns: int, **more: object) -> None:
        """An interval off the CPU, asleep for a timer unless ``more`` says otherwise."""
        base = {
            "op": "blocked", "comm": "python3", "prev_state": 1, "next_pid": 0, "next_tid": 0, "next_comm": "swapper/0",
            "wake_ns": at + ns, "cpu_out": 2, "runqueue_ns": 0, "syscall": 230, "priority": 120, "cgroup_id": 40,
        }  # fmt: skip
        self.scene.add("off_cpu", start_ns=at, duration_ns=ns, pid=pid, tid=tid, **{**base, **more})

    def reaches(self, at: int) -> None:
        """The capture lasts at least until then."""
        self.end = max(self.end, at)


class Deed(Protocol):
    """Something that happens."""

    def happen(self, host: Host) -> None:
        """Write its rows, and what of it is a planted cause."""
        ...


Kind = Literal["single", "compound", "twin"]


@dataclass(frozen=True)
class Scenario:
    """``kind``: one cause, several, or the negative twin of one: the same disturbance where it can explain nothing."""

    name: str
    kind: Kind
    deeds: Callable[[], Sequence[Deed]]


@dataclass(frozen=True)
class Played:
    """A scenario with its rows and its truth."""

    scenario: Scenario
    scene: Scene
    planted: tuple[Planted, ...]
    also: frozenset[tuple[str, int]]
    lengthened: dict[tuple[int, str], int]

    @property
    def truth(self) -> frozenset[tuple[str, int]]:
        """(cause, process) of everything that was planted."""
        return frozenset((p.cause, p.pid) for p in self.planted)

    def share(self, cause: str, pid: int) -> Fraction | None:
        """What a cause covers of all lengthened calls of the operations it hit; None where a share means nothing."""
        mine = [p for p in self.planted if (p.cause, p.pid) == (cause, pid) and p.lost_ns]
        whole = sum(self.lengthened[pid, op] for op in {p.op for p in mine})
        return Fraction(sum(p.lost_ns for p in mine), whole) if whole else None


def play(scenario: Scenario, seed: int = 0) -> Played:
    """What happens with this seed; equal seeds give equal rows."""
    host = Host(sum(map(ord, scenario.name)) * 1_000 + seed)
    for deed in scenario.deeds():
        deed.happen(host)
    _cgroups(host)
    if "clock" not in host.scene.rows:
        host.scene.clock(T0, host.end + 10 * MS, max(S, (host.end - T0) // 4))
    for rows in host.scene.rows.values():
        rows.sort(key=lambda r: r["start_ns"])
        for i, row in enumerate(rows):
            if "seq" in row:
                row["seq"] = i
    return Played(scenario, host.scene, tuple(host.planted), frozenset(host.also), host.lengthened)


def _cgroups(host: Host) -> None:
    """Counters of the cgroups that were throttled, read every second and at the end, and who is in which."""
    known = {r["pid"] for r in host.scene.rows.get("process_samples", [])}
    pids = {r["pid"] for r in host.scene.rows["processes"] if r["role"] == "traced"} if "processes" in (
        host.scene.rows
    ) else set()  # fmt: skip
    for pid in sorted((pids | set(host.cgroups)) - known):
        for at in (*range(T0, host.end, S), host.end):
            host.scene.add(
                "process_samples", start_ns=at, pid=pid, user_ns=(at - T0) // 3, system_ns=(at - T0) // 20,
                resident_bytes=1 << 30, threads=4, cpu_cgroup=host.cgroups.get(pid, "/train"), cpu_cgroup_version=1,
            )  # fmt: skip
    for cgroup in sorted({c for c, _, _ in host.throttled}):
        mine = [(at, ns) for c, at, ns in host.throttled if c == cgroup]
        for at in (*range(T0, host.end, S), host.end):
            done = [ns for start, ns in mine if start + ns <= at]  # the kernel adds it when the throttling ends
            host.scene.add(
                "cgroup_cpu", start_ns=at, cgroup=cgroup, version=1, usage_ns=(at - T0) // 3,
                periods=(at - T0) // (100 * MS), throttled_periods=len(done), throttled_ns=sum(done),
                quota_ns=50 * MS, period_ns=100 * MS,
            )  # fmt: skip
