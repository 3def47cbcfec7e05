"""A launcher whose cgroup is short of memory: the reclaim in its slow launches is named with its share, and its death.

How long its thread had to free memory is the kernel's own count (delay accounting), which knows nothing of ours. The
twin has to free as much in a cgroup of its own, at the same time, but between its launches: nothing is claimed. Of two
launchers whose cgroup runs out of memory, one is killed, which is told with whose allocation it was, and of the other
one, whose neighbour is killed, nothing is.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpuaudit.analyze.finding import Chain, Quantity
from tests.integration.disks import folder_on_disk
from tests.integration.memory_cgroups import inside, memory_cgroup
from tests.integration.planted import (
    ATTEMPTS,
    CPU,
    OTHER_CPU,
    TOLERANCE,
    Analysed,
    Bench,
    Victim,
    analysed,
    bench,
    close,
    effect_ns,
    kept_most,
    share,
    undisturbed,
)
from tests.integration.recording import DEADLINE_S, start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

LIMIT_BYTES, FILE_BYTES = 16 << 20, 64 << 20
"""Of a cgroup, and of the file that is mapped in it: each page that is touched pushes another one out."""

HELD_BYTES, EATEN_BYTES = LIMIT_BYTES // 4, 2 * LIMIT_BYTES
"""What the launcher keeps in memory, and what another process wants to keep beside it."""

EATER = ("tail", "-c", "1G")
"""Keeps what it is given."""

ACCOUNTING = Path("/proc/sys/kernel/task_delayacct")


@dataclass(frozen=True)
class Killed:
    """Two processes whose cgroup ran out of memory: the launcher, and who asked for more than there was."""

    launcher: int
    status: int
    eater: int


@contextmanager
def delay_accounting() -> Iterator[None]:
    """The kernel counts the delays of threads that begin meanwhile."""
    if not ACCOUNTING.exists():
        pytest.skip("this kernel has no delay accounting (CONFIG_TASK_DELAY_ACCT)")
    before = ACCOUNTING.read_text("ascii")
    ACCOUNTING.write_text("1", "ascii")
    try:
        yield
    finally:
        ACCOUNTING.write_text(before, "ascii")


def holes(folder: Path, size_bytes: int) -> Path:
    """A file without blocks: its pages come into memory without a disk, and leave it as those of any file do.

    Except those of a file system that is memory, which stay.
    """
    path = folder / f"holes-{size_bytes}"
    path.touch()
    os.truncate(path, size_bytes)
    return path


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A new folder on a file system that is memory."""
    folder = Path(tempfile.mkdtemp(prefix="gpuaudit-test-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def together(b: Bench, file: Path, groups: tuple[Path, Path]) -> None:
    """Two launchers, each on a core and in a cgroup of its own."""
    memory = ("--cause", "memory", "--map", file, "--hold-ms", 20)
    plans = {"inside": (CPU, "--busy-ms", 2), "between": (OTHER_CPU, "--busy-ms", 20, "--where", "between")}

    def plant() -> list[Victim]:
        commands = [b.command(name, "--cpu", cpu, *memory, *more) for name, (cpu, *more) in plans.items()]
        b.follow(*(start(*inside(group), *command) for group, command in zip(groups, commands, strict=True)))
        return [b.ended(name) for name in plans]

    undisturbed(plant, kept_most)


def out_of_memory(b: Bench, name: str, group: Path, held: Path, *, victim: str) -> Killed:
    """A launcher waits in a cgroup where another process asks for more than there is; one of them has to go first."""
    go = b.folder / f"{name}.go"
    go.unlink(missing_ok=True)
    launcher = start(*inside(group), *b.command(name, "--slow", 1, "--pause-file", go, "--map", held))
    eater = start(*inside(group), *EATER, stdin=subprocess.PIPE)
    try:
        wait_for_line(launcher, "at ready")
        b.recording.step()
        first = {"launcher": launcher, "eater": eater}[victim]
        goes(first, 1000)
        if first is eater:
            with suppress(PermissionError):  # or the kernel kills it too, where the first one takes long to be gone
                goes(launcher, -1000)
        eater.communicate("." * EATEN_BYTES, timeout=DEADLINE_S)
        go.touch()
        launcher.communicate(timeout=DEADLINE_S)
    finally:
        for process in (launcher, eater):
            process.kill()
            process.communicate()
    assert first.returncode == -signal.SIGKILL
    b.recording.step()
    return Killed(launcher.pid, launcher.returncode, eater.pid)


def goes(process: subprocess.Popen[str], likely: int) -> None:
    """How likely the kernel is to choose it when memory is short: -1000 is never."""
    Path(f"/proc/{process.pid}/oom_score_adj").write_text(str(likely), "ascii")


def spared_by(b: Bench, group: Path, held: Path) -> Killed:
    """Once more where the launcher went too, which the kernel may do to anybody whom it was not forbidden."""
    for _ in range(ATTEMPTS):
        spared = out_of_memory(b, "spared", group, held, victim="eater")
        if spared.status == 0:
            break
        b.given_up.add(spared.launcher)
    return spared


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, bpf: None) -> Iterator[tuple[Analysed, Killed, Killed]]:
    folder: Path = tmp_path_factory.mktemp("memory")
    if CPU == OTHER_CPU:
        pytest.skip("needs two CPUs")
    with (
        folder_on_disk(folder) as place,
        delay_accounting(),
        memory_cgroup(LIMIT_BYTES) as one,
        memory_cgroup(LIMIT_BYTES) as other,
        folder_in_memory() as memory,
        bench(folder) as b,
    ):
        together(b, holes(place, FILE_BYTES), (one, other))
        held = holes(memory, HELD_BYTES)
        killed = out_of_memory(b, "killed", one, held, victim="launcher")
        spared = spared_by(b, other, held)
        a = analysed(b)
        # What the twins are to have nothing claimed of is in the evidence.
        assert b.recording.of("reclaims", tid=b.victims["between"].tid)
        assert b.recording.of("oom_kills", pid=spared.eater)
        yield a, killed, spared


def kills(a: Analysed, pid: int) -> list[Chain]:
    """Every chain about a process."""
    return [c for c in a.document.chains if c.subject.get("pid") == str(pid)]


def test_the_want_of_memory_is_named(found: tuple[Analysed, Killed, Killed]) -> None:
    """So much of its slow launches as the kernel counts itself; nothing else is claimed."""
    a = found[0]
    chain, told = a.only("inside", "memory_reclaim"), a.victims["inside"]
    assert told.planted("memory") > 2 * TOLERANCE
    assert close(share(chain), told.planted("memory")), (share(chain), told.planted("memory"))
    assert chain.values["culprit"] == "the memory of its cgroup, at its limit"
    assert abs(effect_ns(chain) - told.slow_ns) <= told.slow_ns // 20
    assert sum(s.share.value or 0 for s in chain.shares) == 1


def test_a_want_of_memory_of_others_or_of_another_time_is_no_chain(found: tuple[Analysed, Killed, Killed]) -> None:
    """Another process has to free memory at the same time; it itself does before each of its slow launches."""
    a = found[0]
    assert a.unexplained("between") > 1 - TOLERANCE
    assert a.chains("between") == []


def test_the_killed_launcher_is_named_and_whose_allocation_it_was(found: tuple[Analysed, Killed, Killed]) -> None:
    a, killed, _ = found
    (chain,) = kills(a, killed.launcher)
    assert (chain.detector, chain.text, chain.confidence) == ("oom_kill", "oom_kill", "high")
    assert chain.against == ()
    # Once there is no memory left, either of the two may be the one that cannot get any.
    assert str(chain.values["culprit"]).endswith((f"({killed.eater})", f"({killed.launcher})"))
    resident = chain.values["resident"]
    assert isinstance(resident, Quantity)
    assert resident.value is not None
    assert HELD_BYTES <= resident.value < LIMIT_BYTES


def test_of_a_launcher_whose_neighbour_is_killed_nothing_is_told(found: tuple[Analysed, Killed, Killed]) -> None:
    """It was in the same cgroup, and the kernel did kill: the evidence has the neighbour's death."""
    a, _, spared = found
    assert spared.status == 0
    assert kills(a, spared.launcher) == []
