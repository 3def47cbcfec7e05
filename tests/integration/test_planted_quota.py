"""A launcher in a cgroup whose CPU quota is used up: the quota is named with its share; elsewhere, or lifted, none."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import pytest

from gpuaudit.capture.cgroup_files import Hierarchy, hierarchies, read_counters
from tests.integration.planted import (
    CPU,
    OTHER_CPU,
    SETTLE,
    TOLERANCE,
    Analysed,
    Bench,
    analysed,
    bench,
    close,
    effect_ns,
    explained,
    share,
)
from tests.integration.recording import DEADLINE_S, start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

PERIOD_US, QUOTA_US, LIFTED = 100_000, 20_000, -1
BUSY = ("--busy-ms", 30, "--slow", 6, "--rest-ms", 120)
"""Each slow launch begins with a quota that is there again, and needs half as much again."""


class Group:
    """A cgroup of the controller cpu, of either version, whose threads nobody else keeps from a CPU for long."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.name = f"gpuaudit-test-{uuid.uuid4().hex[:8]}"
        self.folder = hierarchy.mount / self.name
        self.version = hierarchy.version
        self.folder.mkdir()
        weight = ("cpu.weight", 10_000) if self.version == 2 else ("cpu.shares", 262_144)
        (self.folder / weight[0]).write_text(str(weight[1]), "ascii")

    def limit(self, quota_us: int) -> None:
        if self.version == 2:
            allowed = "max" if quota_us == LIFTED else quota_us
            (self.folder / "cpu.max").write_text(f"{allowed} {PERIOD_US}", "ascii")
        else:
            (self.folder / "cpu.cfs_period_us").write_text(str(PERIOD_US), "ascii")
            (self.folder / "cpu.cfs_quota_us").write_text(str(quota_us), "ascii")

    def throttled(self) -> int:
        return read_counters(self.folder / "cpu.stat")["nr_throttled"]

    def inside(self) -> tuple[str, ...]:
        """What to put before a command that is to run in it."""
        return ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(self.folder))

    def remove(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while (self.folder / "cgroup.procs").read_text("ascii"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.folder.rmdir()


@contextmanager
def group() -> Iterator[Group]:
    for h in hierarchies():
        enabled = h.mount / "cgroup.subtree_control"
        if "cpu" in h.controllers or (enabled.exists() and "cpu" in enabled.read_text("ascii").split()):
            made = Group(h)
            break
    else:
        pytest.skip("no hierarchy of cgroups with the controller cpu can be used")
    try:
        yield made
    finally:
        made.remove()


def while_busy(b: Bench, g: Group, until: int) -> None:
    """Somebody in the group uses its quota up so many times more, while the recording goes on."""
    before, deadline = g.throttled(), time.monotonic() + DEADLINE_S
    busy = start(*g.inside(), b.folder / "spin", "--ms", "600000")
    try:
        while g.throttled() < before + until:
            assert time.monotonic() < deadline, "the quota is never used up"
            b.recording.step()
            b.recording.capture.tick()
            time.sleep(0.2)
    finally:
        busy.kill()
        busy.communicate()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, bpf: None) -> Iterator[tuple[Analysed, str]]:
    folder: Path = tmp_path_factory.mktemp("quota")
    with ExitStack() as stack:
        g = stack.enter_context(group())
        b = stack.enter_context(bench(folder))
        g.limit(QUOTA_US)
        inside = b.command("throttled", "--cpu", OTHER_CPU, *BUSY, *SETTLE, "--stat", g.folder / "cpu.stat", priority=0)
        b.follow(start(*g.inside(), *inside), start(*b.command("next door", "--cpu", CPU, *BUSY, *SETTLE)))
        for name in ("throttled", "next door"):
            b.ended(name)
        go = folder / "go"
        process = start(*g.inside(), *b.command("lifted", "--cpu", OTHER_CPU, "--pause-file", go, *BUSY, priority=0))
        wait_for_line(process, "at ready")
        while_busy(b, g, 5)
        g.limit(LIFTED)
        go.touch()
        b.follow(process)
        b.ended("lifted")
        yield analysed(b), g.name


def test_the_quota_is_named(found: tuple[Analysed, str]) -> None:
    """A fifth of a CPU: most of each slow launch is waiting for the next period, as the launcher saw in its cgroup."""
    a, group_name = found
    told = a.victims["throttled"]
    (chain,) = [c for c in a.chains("throttled") if c.detector == "cpu_quota"]
    others = [c for c in a.chains("throttled") if c is not chain]
    throttled, gaps = Fraction(told.throttled_ns, told.slow_ns), told.planted("gap")
    assert gaps >= throttled > Fraction(1, 2)
    assert close(share(chain), throttled), (share(chain), throttled)
    # Where this host has other things to do, it waits for a CPU when the quota is there again: that is told apart.
    assert {c.detector for c in others} <= {"preempted"}
    assert share(chain) + explained(others) <= gaps + TOLERANCE
    assert str(chain.values["culprit"]).endswith(f"/{group_name}")
    assert abs(effect_ns(chain) - told.slow_ns) <= told.slow_ns // 20
    values = {k: v.value for k, v in chain.values.items() if not isinstance(v, str)}
    assert (values["quota"], values["period"]) == (QUOTA_US * 1000, PERIOD_US * 1000)
    assert sum(s.share.value or 0 for s in chain.shares) == 1


@pytest.mark.parametrize("name", ["next door", "lifted"])
def test_a_quota_of_others_or_of_another_time_is_no_chain(found: tuple[Analysed, str], name: str) -> None:
    """At the same time, in no limited cgroup; and in the same cgroup, after its quota was lifted."""
    a, _ = found
    assert a.unexplained(name) > 1 - a.victims[name].planted("gap") - TOLERANCE
    assert not [c for c in a.chains(name) if c.detector == "cpu_quota"]


def test_next_door_nothing_is_claimed(found: tuple[Analysed, str]) -> None:
    """The launcher that nobody could keep from its CPU."""
    a, _ = found
    assert a.chains("next door") == []
