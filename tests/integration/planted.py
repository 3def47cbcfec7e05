"""Causes planted in a launcher (tests/doubles/workload/planted.c), recorded with BPF and taken through the analysis.

The launcher says when each of its slow launches began and ended, and when the cause in it held: that is the truth that
shares are compared with. It stays true on a host that has other things to do, and in a machine whose hypervisor takes
its CPUs away: what the launcher was not switched out for is in no span.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import pytest

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.detect import Findings
from gpuaudit.analyze.chains.preempted import NOBODY
from gpuaudit.analyze.finding import Chain, Document
from gpuaudit.analyze.run import AnalyzeOptions, examine
from gpuaudit.analyze.store import Store
from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.rules import Rule
from gpuaudit.capture.selection import Selection
from tests.doubles.build import build
from tests.integration.recording import DEADLINE_S, Recording, Row, start, truth, wait_for_line
from tests.verifications import SEALED

SOURCES = frozenset({"cuda", "nccl", "off_cpu", "block_io", "memory", "tcp"})

TOLERANCE = Fraction(1, 20)
"""Five points, of the issue: so far a share may lie from the planted one."""

QUIET = Fraction(1, 50)
"""So much of its slow launches may others keep a launcher from its CPU whom nobody is to keep from it."""

ATTEMPTS = 5
"""So often is planted until nobody did. What the analysis says of a planting has no say in that."""

CPU = max(os.sched_getaffinity(0))
"""Where whoever is pinned is pinned."""

OTHER_CPU = min(os.sched_getaffinity(0))

PROGRAMS = ("planted", "planted-ranks")
"""Whose calls are recorded: names of programs."""

FILE_BYTES = 16 << 20
HOG = "the hog"
BURST_MS = 5

TICK_S = 0.25
"""So often is read what the kernel only counts; a session reads once a second, and launchers live longer than ours."""

SETTLE = ("--settle-ms", 1000, "--linger-ms", 1000)
"""Options of a launcher that is there for a few readings before and after its slow launches."""


Planted = TypeVar("Planted")


@dataclass(frozen=True)
class Victim:
    """What a launcher wrote down: its slow launches, and in them the spans of what was planted."""

    pid: int
    tid: int
    calls: intervals.Intervals
    spans: tuple[tuple[str, int, int], ...]
    throttled_ns: int
    """By how much the throttled time of its cgroup grew in them, where it looked."""
    stolen_ns: int
    """What a hypervisor took of this machine meanwhile."""
    other_ns: int
    """The longest of its other launches."""

    @property
    def slowest(self) -> bool:
        """Whether its slow launches are its slowest ones, and a first one, say, that had pages to fetch took less."""
        return self.other_ns < int((self.calls[:, 1] - self.calls[:, 0]).min())

    @property
    def slow_ns(self) -> int:
        """Time of its slow launches."""
        return intervals.measure(self.calls)

    def planted(self, what: str) -> Fraction:
        """Share of the time of the slow launches in which this held."""
        return covered(self.calls, self.spans, what)

    @property
    def stolen(self) -> Fraction:
        """The most that a hypervisor can have kept it from its CPU when it was woken, as a share of that time."""
        return Fraction(self.stolen_ns, self.slow_ns)


def victim(path: Path) -> Victim:
    """The truth file of one launcher."""
    head, *calls, end = truth(path)
    spans = tuple((str(w), int(a), int(b)) for c in calls for w, a, b in c["spans"])
    bounds = intervals.from_bounds([c["before_ns"] for c in calls], [c["after_ns"] for c in calls])
    throttled_ns = sum(int(c["throttled_ns"]) for c in calls)
    return Victim(
        int(head["pid"]), int(head["tid"]), bounds, spans, throttled_ns, int(end["stolen_ns"]), int(end["other_ns"])
    )  # fmt: skip


class Bench:
    """Folders for what launchers write and of the programs, a recording that runs, and the launchers that ran in it."""

    def __init__(self, folder: Path, programs: Path, recording: Recording) -> None:
        self.folder = folder
        self.programs = programs
        self.recording = recording
        self.victims: dict[str, Victim] = {}
        self.given_up: set[int] = set()
        """Processes of plantings that were not what they were meant to be, and were made again."""
        self.hogs: set[int] = set()

    def command(self, name: str, *options: object, priority: int = 1) -> list[str | Path]:
        """A launcher, by real-time priority kept from whatever else this host does."""
        out = self.folder / f"{name}.truth"
        return [
            self.programs / "planted", "--cudart", self.programs / "libcudart.so.9", "--out", out, "--name", name[:15],
            "--priority", str(priority), *map(str, options),
        ]  # fmt: skip

    def run(self, name: str, *options: object, prefix: Sequence[str | Path] = (), priority: int = 1) -> Victim:
        """Record a launcher from its start to its end."""
        self.follow(start(*prefix, *self.command(name, *options, priority=priority)))
        return self.ended(name)

    def follow(self, *processes: subprocess.Popen[str]) -> None:
        """Record until these have ended."""
        deadline, next_tick = time.monotonic() + DEADLINE_S, 0.0
        while any(p.poll() is None for p in processes):
            assert time.monotonic() < deadline, "the launcher does not end"
            self.recording.step()
            if time.monotonic() >= next_tick:
                self.recording.capture.tick()
                next_tick = time.monotonic() + TICK_S
            time.sleep(0.02)
        for p in processes:
            _, err = p.communicate()
            assert p.returncode == 0, err

    def released(self, go: Path, *processes: subprocess.Popen[str]) -> None:
        """Record launchers to their end, of which each says that it is ready and waits for this file."""
        for process in processes:
            wait_for_line(process, "at ready")
        go.touch()
        self.follow(*processes)

    def ended(self, name: str) -> Victim:
        """What the launcher wrote down."""
        if name in self.victims:
            self.given_up.add(self.victims[name].pid)
        self.victims[name] = victim(self.folder / f"{name}.truth")
        return self.victims[name]

    @contextmanager
    def hog(self, cpu: int = CPU, *options: object) -> Iterator[int]:
        """Somebody in bursts on one CPU, above the launcher's priority; its process."""
        spin = self.programs / "spin"
        process = start(
            spin, "--cpu", str(cpu), "--ms", "600000", "--name", HOG, "--burst-ms", str(BURST_MS), "--priority", "2",
            *map(str, options),
        )  # fmt: skip
        try:
            wait_for_line(process, "at spin")
            self.hogs.add(process.pid)
            yield process.pid
        finally:
            process.kill()
            process.communicate()


@dataclass(frozen=True)
class Analysed:
    """The analysis of everything that was recorded, and the truth of each launcher."""

    document: Document
    causal: Findings
    victims: dict[str, Victim]
    given_up: frozenset[int]
    ours: frozenset[int]
    """Processes that were started here: this host may have others whose programs have the same name."""

    def beside(self, *pids: int) -> list[Chain]:
        """Chains about anything else than the launchers, these processes, plantings made again, and strangers."""
        known = {*pids, *self.given_up, *(v.pid for v in self.victims.values())}
        told = ((c, c.subject.get("pid")) for c in self.document.chains)
        return [c for c, pid in told if pid is None or int(pid) in self.ours - known]

    def chains(self, name: str) -> list[Chain]:
        """Every chain about a launcher."""
        pid = str(self.victims[name].pid)
        return [c for c in self.document.chains if c.subject.get("pid") == pid]

    def unexplained(self, name: str) -> Fraction:
        """Of the slow launches of a launcher, which are an effect: the share that no chain tells of."""
        told = self.victims[name]
        (effect,) = [e for e in self.causal.effects if (e.pid, e.tid, e.kind) == (told.pid, told.tid, "slow_call")]
        assert abs(effect.length_ns - told.slow_ns) <= told.slow_ns // 20
        return Fraction(intervals.measure(self.causal.allotments[effect.key].unexplained), effect.length_ns)

    def only(self, name: str, detector: str) -> Chain:
        """The one chain about a launcher, which is of this detector."""
        found = [c for c in self.chains(name) if not by_nobody(c)]
        assert [c.detector for c in found] == [detector], [(c.detector, c.values) for c in found]
        return found[0]

    def woken_late(self, name: str, chain: Chain) -> Fraction:
        """Share of its slow launches in which a launcher was ready to run, and who had its CPU was not seen.

        Between a wake-up and the switch is also what a hypervisor takes to let an idle CPU run again; no more than that
        may be claimed so.
        """
        told = self.victims[name]
        late = sum((Fraction(s.share.value or 0) for s in chain.shares if s.label.endswith(f": {NOBODY}")), Fraction(0))
        assert late <= told.planted("gap") + told.stolen + TOLERANCE, (late, told.stolen)
        return late


def analysed(bench: Bench) -> Analysed:
    """End the recording and analyse all of it."""
    r = bench.recording
    r.finish()
    assert r.lost() == 0
    tables = {t: from_records(TABLES[t], rows) for t, rows in r.rows.items() if rows}
    store = Store.from_tables(tables)
    document, context = examine(store, SEALED, AnalyzeOptions())
    given_up, ours = frozenset(bench.given_up), frozenset(bench.hogs | _started_here(r.rows["processes"]))
    assert ours >= {v.pid for v in bench.victims.values()}
    return Analysed(document, context.causal, bench.victims, given_up, ours)


def _started_here(processes: Sequence[Row]) -> set[int]:
    """Recorded processes that this one started, or that those did."""
    parents, me = {row["pid"]: row["parent_pid"] for row in processes}, os.getpid()
    return {pid for pid, parent in parents.items() if me in (parent, parents.get(parent))}


def undisturbed(plant: Callable[[], Planted], kept: Callable[[Planted], Fraction]) -> Planted:
    """Plant, and again while those whom nobody was to keep from their CPUs were kept from them, by their own word."""
    for _ in range(ATTEMPTS):
        planted = plant()
        if kept(planted) <= QUIET:
            return planted
    share = float(kept(planted))
    pytest.fail(f"this host disturbed each of {ATTEMPTS} plantings, {share:.1%} of the last one")


def kept_most(victims: Sequence[Victim]) -> Fraction:
    """Of the launcher that was kept most from its CPU: the share of its slow launches, if those are the slowest."""
    return max(*(v.planted("gap") for v in victims), mistaken(victims))


def mistaken(victims: Sequence[Victim]) -> Fraction:
    """1 if another launch took longer than one that was to be slow: by its clock, it is what is slow of that one."""
    return Fraction(not all(v.slowest for v in victims))


def lacking(victims: Sequence[Victim]) -> Fraction:
    """1 if one that was to be kept from its CPU hardly was: then nothing was planted. Or if one is mistaken."""
    kept = all(v.planted("gap") > 2 * TOLERANCE for v in victims)
    return max(mistaken(victims), Fraction(not kept))


@contextmanager
def bench(folder: Path, sources: frozenset[str] = SOURCES) -> Iterator[Bench]:
    """A recording with the libraries of launchers and ranks probed before anybody starts.

    ``folder`` is one of pytest's temporary ones: the programs are built once, beside it.
    """
    programs = _programs(folder.parent / "planted-programs")
    # Only our programs: this host may run others that use these libraries.
    r = Recording(Selection(sources=sources, rules=tuple(Rule("comm", name) for name in PROGRAMS)))
    try:
        r.capture.prepare([str(programs / name) for name in ("libcudart.so.9", "libcudart.so.13", "libnccl.so.2")])
        yield Bench(folder, programs, r)
    finally:
        r.capture.close()


def _programs(folder: Path) -> Path:
    last = folder / "planted-ranks"
    if not last.exists():
        folder.mkdir(exist_ok=True)
        for name in ("inside", "planted", "spin", "cudart", "nccl", "ranks"):
            build(name, folder)
        (folder / "ranks").rename(last)
    return folder


def cold_file(folder: Path) -> Path:
    """A file on a disk, to be read past the cache: written out, or its reader would wait for that first."""
    path = folder / "cold"
    with path.open("wb") as f:
        f.write(os.urandom(FILE_BYTES))
        os.fsync(f.fileno())
    return path


def covered(time: intervals.Intervals, spans: Sequence[tuple[str, int, int]], what: str) -> Fraction:
    """Share of a time in which spans of one kind hold."""
    chosen = [(a, b) for name, a, b in spans if name == what]
    held = intervals.from_bounds([a for a, _ in chosen], [b for _, b in chosen])
    return Fraction(intervals.measure(intervals.intersect(time, held)), intervals.measure(time))


def share(chain: Chain) -> Fraction:
    """How much of its effects a chain explains."""
    value = next(v for k, v in chain.values.items() if k == "share")
    assert not isinstance(value, str)
    assert value.value is not None
    return Fraction(value.value)


def close(got: Fraction, want: Fraction) -> bool:
    """Within five points."""
    return abs(got - want) <= TOLERANCE


def by_nobody(chain: Chain) -> bool:
    """Whether it tells that somebody had the thread's CPU who was not seen."""
    return chain.detector == "preempted" and chain.values["culprit"] == NOBODY


def explained(chains: Sequence[Chain]) -> Fraction:
    """How much of the slow launches of one launcher several chains explain."""
    return sum((share(c) for c in chains), Fraction(0))


def effect_ns(chain: Chain) -> int:
    """Time of the effects of a chain."""
    value = chain.values["effect_time"]
    assert not isinstance(value, str)
    return int(value.value or 0)
