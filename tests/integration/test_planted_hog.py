"""A CPU hog pinned to the launcher's core: named, with its share; on another core or at another time, no chain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.planted import (
    BURST_MS,
    CPU,
    HOG,
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
    mistaken,
    share,
    undisturbed,
)
from tests.integration.recording import start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

BUSY = ("--busy-ms", 6 * BURST_MS)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, bpf: None) -> Iterator[tuple[Analysed, int]]:
    folder = tmp_path_factory.mktemp("hog")
    if CPU == OTHER_CPU:
        pytest.skip("needs two CPUs")
    with bench(folder) as b:
        with b.hog() as hog:
            undisturbed(lambda: [b.run("preempted", "--cpu", CPU, *BUSY)], mistaken)
            undisturbed(lambda: [b.run("another core", "--cpu", OTHER_CPU, *BUSY)], kept_most)
        undisturbed(lambda: [after_the_hog(b)], kept_most)
        yield analysed(b), hog


def after_the_hog(b: Bench) -> Victim:
    """The launcher is there while the hog is, and begins its slow launches when it has gone."""
    go = b.folder / "go"
    go.unlink(missing_ok=True)
    with b.hog():
        process = start(*b.command("another time", "--cpu", CPU, "--pause-file", go, *BUSY))
        wait_for_line(process, "at ready")
        b.recording.step()
    go.touch()
    b.follow(process)
    return b.ended("another time")


def test_the_hog_on_the_launcher_s_core_is_named(found: tuple[Analysed, int]) -> None:
    """About half of the time of its slow launches, as it says itself."""
    a, hog = found
    chain, told = a.only("preempted", "preempted"), a.victims["preempted"]
    assert chain.values["culprit"] == f"{HOG} ({hog})"
    assert chain.subject["culprit_pid"] == str(hog)
    assert close(share(chain), told.planted("gap")), (share(chain), told.planted("gap"))
    assert told.planted("gap") > TOLERANCE
    assert abs(effect_ns(chain) - told.slow_ns) <= told.slow_ns // 20
    assert sum(s.share.value or 0 for s in chain.shares) == 1


@pytest.mark.parametrize("name", ["another core", "another time"])
def test_the_hog_elsewhere_or_at_another_time_is_no_chain(found: tuple[Analysed, int], name: str) -> None:
    """The launches are as slow by their own work, and nothing is claimed of them."""
    a, _ = found
    assert a.unexplained(name) > 1 - TOLERANCE
    assert a.chains(name) == []


def test_nothing_is_claimed_of_anybody_else(found: tuple[Analysed, int]) -> None:
    a, _ = found
    assert a.beside() == []
