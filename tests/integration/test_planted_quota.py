"""A launcher in a cgroup whose CPU quota is used up: the quota is named with its share; elsewhere, or lifted, none."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import pytest

from tests.integration.planted import (
    CPU,
    OTHER_CPU,
    SETTLE,
    TOLERANCE,
    Analysed,
    Bench,
    Victim,
    analysed,
    bench,
    close,
    effect_ns,
    explained,
    kept_most,
    mistaken,
    share,
    undisturbed,
)
from tests.integration.planted_quota import LIFTED, PERIOD_US, Group, group
from tests.integration.recording import DEADLINE_S, start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

QUOTA_US = 10_000
BUSY = ("--busy-ms", 30, "--slow", 6, "--rest-ms", 120)
"""Each slow launch begins with a quota that is there again, and needs three of them.

So it waits long next to what a throttled thread takes to leave its CPU, which on an emulated one is milliseconds.
"""


@contextmanager
def elsewhere() -> Iterator[None]:
    """The recorder leaves the CPU of the group to it: while that is throttled, the CPU goes idle."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPU})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def throttled(b: Bench, g: Group) -> list[Victim]:
    """A launcher in the group, and one next door that nobody keeps from its CPU."""
    inside = b.command("throttled", "--cpu", OTHER_CPU, *BUSY, *SETTLE, "--stat", g.folder / "cpu.stat", priority=0)
    with elsewhere():
        b.follow(start(*g.inside(), *inside), start(*b.command("next door", "--cpu", CPU, *BUSY, *SETTLE)))
    return [b.ended(name) for name in ("throttled", "next door")]


def while_busy(b: Bench, g: Group, until: int) -> None:
    """Somebody in the group uses its quota up so many times more, while the recording goes on."""
    before, deadline = g.throttled(), time.monotonic() + DEADLINE_S
    busy = start(*g.inside(), b.programs / "spin", "--ms", "600000")
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
        undisturbed(lambda: throttled(b, g), lambda both: max(mistaken(both), kept_most(both[1:])))
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
    """A tenth of a CPU: most of each slow launch is waiting for the next period, as the launcher saw in its cgroup."""
    a, group_name = found
    told = a.victims["throttled"]
    (chain,) = [c for c in a.chains("throttled") if c.detector == "cpu_quota"]
    others = [c for c in a.chains("throttled") if c is not chain]
    throttled, gaps = Fraction(told.throttled_ns, told.slow_ns), told.planted("gap")
    assert gaps + TOLERANCE >= throttled > Fraction(1, 2)
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
    told = a.victims[name]
    assert a.unexplained(name) > 1 - told.planted("gap") - TOLERANCE
    # Next door nobody could keep it from its CPU; the other one may have had to wait for what else this host does.
    assert {c.detector for c in a.chains(name)} <= ({"preempted"} if name == "lifted" else set())
    assert explained(a.chains(name)) <= told.planted("gap") + told.stolen + TOLERANCE


def test_nothing_is_claimed_of_anybody_else(found: tuple[Analysed, str]) -> None:
    a, _ = found
    assert a.beside() == []
