"""A crowd of another cgroup, and interrupts, on the launcher's core: each is named with its share, and nothing else.

How long the launcher was ready to run and had no CPU is the kernel's own count (schedstat), read by the launcher. The
same on another core explains nothing; a crowd in the launcher's own cgroup is no neighbour, and is told by its names.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import pytest

from gpuaudit.analyze.causal.telling import UNEXPLAINED
from gpuaudit.capture.cgroups import cgroup_mount
from tests.integration.memory_cgroups import inside, remove
from tests.integration.network import network
from tests.integration.planted import (
    CPU,
    OTHER_CPU,
    TOLERANCE,
    Analysed,
    Bench,
    analysed,
    bench,
    close,
    effect_ns,
    explained,
    kept_most,
    lacking,
    mistaken,
    share,
    undisturbed,
)
from tests.integration.planted_interrupts import before_launchers, flood, handler, receive_slowly
from tests.integration.recording import start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

CROWD = {"stall one": 13, "stall two": 16, "stall three": 19}
"""Names, and the pause in ms after each burst: as they differ, none is always hidden behind another one."""

BURSTS = ("--burst-ms", 2, "--priority", 2, "--ms", 600_000)
"""Above the launcher, as it is above everybody else of this host: nobody but the crowd is in its way."""

BUSY = ("--busy-ms", 30)


@pytest.fixture(scope="module")
def stalls() -> Iterator[Path]:
    """A cgroup of version 2 of its own."""
    mount = cgroup_mount()
    if mount is None:
        pytest.skip("no hierarchy of cgroups of version 2 is mounted")
    folder = Path(mount) / f"gpuaudit-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    yield folder
    remove(folder)


@contextmanager
def crowd(b: Bench, *prefix: str, bursts: bool = True) -> Iterator[None]:
    """Three processes on the CPU of launchers until this ends: in bursts above their priority, or taking turns with
    them."""
    with ExitStack() as stack:
        for name, pause_ms in CROWD.items():
            how = ("--pause-ms", pause_ms, *BURSTS) if bursts else ("--ms", 600_000)
            options = ("--cpu", CPU, "--name", name, *how)
            process = start(*prefix, b.programs / "spin", *map(str, options))
            stack.callback(ended, process)
            wait_for_line(process, "at spin")
        yield


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, bpf: None, stalls: Path) -> Iterator[Analysed]:
    folder: Path = tmp_path_factory.mktemp("neighbour")
    if CPU == OTHER_CPU:
        pytest.skip("needs two CPUs")
    with network() as net, bench(folder) as b:
        with crowd(b, *inside(stalls)):
            undisturbed(lambda: [b.run("crowded", "--cpu", CPU, *BUSY)], mistaken)
            undisturbed(lambda: [b.run("another core", "--cpu", OTHER_CPU, *BUSY)], kept_most)
        with crowd(b, *inside(stalls), bursts=False):
            b.run("one of many", "--cpu", CPU, *BUSY, priority=0)
        with crowd(b):
            undisturbed(lambda: [b.run("at home", "--cpu", CPU, *BUSY)], mistaken)
        receive_slowly(net)
        with before_launchers(handler(CPU)), flood(net, OTHER_CPU, CPU):
            undisturbed(lambda: [b.run("interrupted", "--cpu", CPU, *BUSY)], lacking)
        with flood(net, OTHER_CPU, OTHER_CPU):
            undisturbed(lambda: [b.run("interrupts elsewhere", "--cpu", CPU, *BUSY)], kept_most)
        yield analysed(b)


def test_the_neighbours_cgroup_is_named(found: Analysed, stalls: Path) -> None:
    """A third of its slow launches, as the kernel counts for it; nothing else is claimed."""
    chain, told = found.only("crowded", "noisy_neighbour"), found.victims["crowded"]
    assert told.planted("gap") > 2 * TOLERANCE
    assert close(share(chain), told.planted("gap")), (share(chain), told.planted("gap"))
    assert str(chain.values["culprit"]) == f"the cgroup with id {stalls.stat().st_ino}"
    assert set(str(chain.values["names"]).split(", ")) <= CROWD.keys()
    assert abs(effect_ns(chain) - told.slow_ns) <= told.slow_ns // 20
    assert sum(s.share.value or 0 for s in chain.shares) == 1


def test_a_crowd_that_takes_turns_has_all_of_them(found: Analysed) -> None:
    """One wait has many turns; who else had the CPU, if for a moment, has that moment and no more.

    Each of the crowd has about as much as the launcher, and whoever else this host runs there has the rest.
    """
    told = found.victims["one of many"]
    gap = told.planted("gap")
    (chain,) = [c for c in found.chains("one of many") if c.detector == "noisy_neighbour"]
    others = {c.detector for c in found.chains("one of many") if c is not chain}
    assert others <= {"preempted"}
    assert share(chain) > min(gap, len(CROWD) * (1 - gap)) / 2 > TOLERANCE
    (nothing,) = [s.share.value or 0 for s in chain.shares if s.label == UNEXPLAINED]
    assert close(1 - Fraction(nothing), gap)


def test_interrupts_are_named(found: Analysed) -> None:
    """What of them took the CPU from it; what was served on top of it is time in which it had its CPU."""
    chain, told = found.only("interrupted", "irq_load"), found.victims["interrupted"]
    assert told.planted("gap") > TOLERANCE
    assert close(share(chain), told.planted("gap")), (share(chain), told.planted("gap"))
    assert chain.values["culprit"] == f"interrupt work of ksoftirqd/{CPU}, CPU {CPU}"
    assert abs(effect_ns(chain) - told.slow_ns) <= told.slow_ns // 20
    assert sum(s.share.value or 0 for s in chain.shares) == 1


@pytest.mark.parametrize("name", ["another core", "interrupts elsewhere"])
def test_the_same_on_another_core_is_no_chain(found: Analysed, name: str) -> None:
    assert found.unexplained(name) > 1 - TOLERANCE
    assert found.chains(name) == []


def test_the_same_crowd_in_its_own_cgroup_is_no_neighbour(found: Analysed) -> None:
    """It is told by its names, as what it is: preemption."""
    told, chains = found.victims["at home"], found.chains("at home")
    assert {c.detector for c in chains} == {"preempted"}
    assert close(explained(chains), told.planted("gap")), (explained(chains), told.planted("gap"))
    assert {str(c.values["culprit"]).partition(" (")[0] for c in chains} <= CROWD.keys()
