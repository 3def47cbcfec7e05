"""Both ways to drain a ring that the bench compares give the same records, and its probes are where it says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench import compile as compiler
from bench.bpftrace import SCRIPTS, BpfTrace
from bench.figures import probe
from bench.producer import RECORDS_PER_RUN, Producer, write
from bench.result import Plan
from bench.ring import CAPACITY, CallbackDrain, GeneratedRing, numpy_drain
from gpuaudit.bundle.errors import AuditError, HostUnfit

pytestmark = pytest.mark.root


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[GeneratedRing]:
    if shutil.which(compiler.CLANG) is None:
        pytest.skip(f"{compiler.CLANG} is not installed")
    try:
        made = GeneratedRing(compiler.bpf("generate.bpf.c", tmp_path))
    except HostUnfit as e:
        pytest.skip(f"BPF is not usable here: {e}")
    yield made
    made.close()


def test_both_ways_own_every_record(ring: GeneratedRing) -> None:
    callback = CallbackDrain(ring)
    taken = []
    for drain in (numpy_drain(ring), callback, numpy_drain(ring)):
        write(ring.program_fd, 10)
        taken.append(drain())
    callback.close()
    assert [len(t) for t in taken] == [10 * RECORDS_PER_RUN] * 3
    every = np.concatenate(taken)
    for cpu in np.unique(every["cpu"]):
        assert sorted(every["seq"][every["cpu"] == cpu].tolist()) == list(range((every["cpu"] == cpu).sum()))
    assert set(every["pid"].tolist()) == {os.getpid()}
    assert every["duration_ns"][:3].tolist() == [4000, 4001, 4002]
    assert ring.counts() == (30 * RECORDS_PER_RUN, 0)


def test_what_finds_the_ring_full_is_counted(ring: GeneratedRing) -> None:
    runs = CAPACITY // RECORDS_PER_RUN + 10
    write(ring.program_fd, runs)
    assert ring.counts() == (runs * RECORDS_PER_RUN, runs * RECORDS_PER_RUN - CAPACITY)


def test_the_producer_writes_what_it_is_told(ring: GeneratedRing) -> None:
    with Producer(ring.program_fd, min(os.sched_getaffinity(0))) as producer:
        producer.start(6_400, 64_000)
        while (seconds := producer.finished()) is None:
            pass
    assert seconds >= 0.09
    assert ring.counts() == (6_400, 0)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[probe._Target]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    with probe._target(Plan(1, 1, 0.01, tmp_path)) as made:
        yield made


@pytest.mark.parametrize("script", SCRIPTS)
def test_bpftrace_sees_every_call(target: probe._Target, script: str) -> None:
    if shutil.which("bpftrace") is None:
        pytest.skip("bpftrace is not installed")
    with BpfTrace(script, target.library, probe.FUNCTION) as tracer:
        target.ns_per_call()
    assert tracer.counted == target.made
    assert (tracer.lines > 0) == (script == "line")


def test_calls_that_bpftrace_does_not_see_are_not_measured(
    target: probe._Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("bpftrace") is None:
        pytest.skip("bpftrace is not installed")
    monkeypatch.setattr(probe, "FUNCTION", "cudaMemcpy")  # traced, and never called
    with pytest.raises(AuditError, match=f"counted 0 of {target.made} calls"):
        probe._bpftrace(target, "count", probe._Tally())


def test_a_probed_call_writes_one_record_or_none(target: probe._Target) -> None:
    tally = probe._Tally()
    for op in ("self test", probe.FUNCTION):
        try:
            probe._ours(target, op, tally)
        except HostUnfit as e:
            pytest.skip(f"BPF is not usable here: {e}")
    assert tally.mechanism in ("uprobe_multi", "perf uprobe")
