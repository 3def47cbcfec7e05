"""A launcher in Python that waits for the interpreter's lock in its slow steps: found, with its share.

CPython waits 5 ms at a time, and only the last wait is ended by a thread, so this is where waits that time out and are
asked for again have to be one. The twin, another process on another core at the same time, computes in its slow steps
itself: nothing is claimed of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from gpuaudit.analyze import intervals
from tests.doubles.build import HERE
from tests.integration.planted import (
    CPU,
    OTHER_CPU,
    PROGRAMS,
    TOLERANCE,
    Analysed,
    Bench,
    Victim,
    analysed,
    bench,
    close,
    mistaken,
    share,
    undisturbed,
)
from tests.integration.recording import start

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]


def together(b: Bench) -> None:
    """Two interpreters, each on a core of its own, that begin their slow steps together."""
    python, go = b.folder / PROGRAMS[0], b.folder / "go"
    python.symlink_to(Path(sys.executable).resolve())  # a selection goes by the name of the program
    work, cudart = HERE / "workload" / "interpreter_lock.py", b.programs / "libcudart.so.13"
    environment = {**os.environ, "DOUBLE_CUDA_KERNEL_US": "50"}

    def plant() -> list[Victim]:
        go.unlink(missing_ok=True)
        processes = [
            start(python, "-I", "-S", work, cudart, b.folder / f"{plan}.truth", go, str(cpu), plan, env=environment)
            for plan, cpu in (("lock", CPU), ("compute", OTHER_CPU))
        ]  # fmt: skip
        b.released(go, *processes)
        return [b.ended(plan) for plan in ("lock", "compute")]

    undisturbed(plant, mistaken)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, bpf: None) -> Iterator[Analysed]:
    folder: Path = tmp_path_factory.mktemp("interpreter")
    if CPU == OTHER_CPU:
        pytest.skip("needs two CPUs")
    with bench(folder) as b:
        together(b)
        yield analysed(b)


def slow_steps(found: Analysed, name: str) -> tuple[int, Fraction]:
    """Length of the slow steps of a launcher, as the analysis has them, and the unexplained share of it."""
    told = found.victims[name]
    (effect,) = [e for e in found.causal.effects if (e.pid, e.tid, e.kind) == (told.pid, told.tid, "slow_step")]
    unexplained = intervals.measure(found.causal.allotments[effect.key].unexplained)
    return effect.length_ns, Fraction(unexplained, effect.length_ns)


def test_the_interpreters_lock_is_named_with_who_had_it(found: Analysed) -> None:
    told = found.victims["lock"]
    chain = found.only("lock", "lock_wait")
    length_ns, _ = slow_steps(found, "lock")
    assert abs(length_ns - told.slow_ns) <= told.slow_ns // 20
    got, want = share(chain) + found.woken_late("lock", chain), told.planted("more")
    assert want > Fraction(1, 2)
    assert close(got, want), (float(got), float(want))
    assert "of its own process" in str(chain.values["culprit"])
    assert chain.subject["culprit_tid"] != str(told.tid)


def test_of_one_that_computes_itself_nothing_is_claimed(found: Analysed) -> None:
    """Its slow steps are as slow, at the same time, and it has a thread beside it too."""
    assert found.victims["compute"].planted("more") > Fraction(1, 2)
    assert slow_steps(found, "compute")[1] > 1 - TOLERANCE
    assert found.chains("compute") == []


def test_nothing_is_claimed_of_anybody_else(found: Analysed) -> None:
    assert found.beside() == []
