"""A launcher that waits inside its slow launches, for a disk or for a lock that a sibling holds: found with its share.

The twins wait as long for the same, but between the launches, on another thread, or in another process, while their
slow launches compute: nothing is claimed. Nor is it of a launcher that naps, which is its own will.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.disks import folder_on_disk
from tests.integration.planted import (
    CPU,
    OTHER_CPU,
    TOLERANCE,
    Analysed,
    Bench,
    Victim,
    analysed,
    bench,
    close,
    cold_file,
    covered,
    effect_ns,
    kept_most,
    share,
    undisturbed,
)
from tests.integration.recording import start

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]


def together(b: Bench, **options: tuple[object, ...]) -> None:
    """Two launchers, each on a core of its own, that begin their slow launches together."""
    names = [name.replace("_", " ") for name in options]
    go = b.folder / "go"

    def plant() -> list[Victim]:
        go.unlink(missing_ok=True)
        plans = zip(names, options.values(), (CPU, OTHER_CPU), strict=True)
        processes = [start(*b.command(name, "--cpu", cpu, "--pause-file", go, *more)) for name, more, cpu in plans]
        b.released(go, *processes)
        return [b.ended(name) for name in names]

    undisturbed(plant, kept_most)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, bpf: None) -> Iterator[Analysed]:
    folder: Path = tmp_path_factory.mktemp("waits")
    if CPU == OTHER_CPU:
        pytest.skip("needs two CPUs")
    with folder_on_disk(folder) as place, bench(folder) as b:
        disk, futex = ("--cause", "disk", "--disk", cold_file(place)), ("--cause", "futex")
        together(b, disk_inside=disk, another_process=("--busy-ms", 30))
        together(b, futex_inside=futex, disk_thread=(*disk, "--where", "thread", "--busy-ms", 30))
        together(b, disk_between=(*disk, "--where", "between"), futex_between=(*futex, "--where", "between"))
        together(b, futex_thread=(*futex, "--where", "thread"), nap_inside=("--cause", "nap"))
        yield analysed(b)


@pytest.mark.parametrize(("cause", "detector"), [("disk", "blocking_io"), ("futex", "lock_wait")])
def test_what_the_launcher_waits_for_is_found(found: Analysed, cause: str, detector: str) -> None:
    """Two thirds of the time of its slow launches, as its own clock says; and nothing else is claimed."""
    name = f"{cause} inside"
    chain, told = found.only(name, detector), found.victims[name]
    assert told.planted(cause) > TOLERANCE
    got, want = share(chain) + found.woken_late(name, chain), told.planted(cause) + told.planted("gap")
    assert close(got, want), (got, want)
    assert abs(effect_ns(chain) - told.slow_ns) <= told.slow_ns // 20
    assert sum(s.share.value or 0 for s in chain.shares) == 1


def test_the_holder_of_the_lock_is_named(found: Analysed) -> None:
    chain = found.only("futex inside", "lock_wait")
    assert "holder" in str(chain.values["culprit"])


@pytest.mark.parametrize("cause", ["disk", "futex"])
@pytest.mark.parametrize("place", ["between", "thread"])
def test_the_same_wait_elsewhere_is_no_chain(found: Analysed, cause: str, place: str) -> None:
    name = f"{cause} {place}"
    assert found.unexplained(name) > 1 - TOLERANCE
    assert found.chains(name) == []


@pytest.mark.parametrize(("cause", "name"), [("disk", "another process"), ("futex", "disk thread")])
def test_a_neighbour_that_waits_meanwhile_is_no_chain(found: Analysed, cause: str, name: str) -> None:
    """It slept for the same, inside its slow launches, while those of this launcher computed."""
    told, neighbour = found.victims[name], found.victims[f"{cause} inside"]
    assert covered(told.calls, neighbour.spans, cause) > TOLERANCE
    assert found.unexplained(name) > 1 - TOLERANCE
    assert found.chains(name) == []


def test_a_sleeper_of_its_own_will_explains_nothing(found: Analysed) -> None:
    """The launch naps for two thirds of its time: that is no cause of anything."""
    assert found.victims["nap inside"].planted("nap") > TOLERANCE
    assert found.unexplained("nap inside") > 1 - TOLERANCE
    assert found.chains("nap inside") == []


def test_nothing_is_claimed_of_anybody_else(found: Analysed) -> None:
    assert found.beside() == []
