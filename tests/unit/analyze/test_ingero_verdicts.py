"""The verdicts on four real databases and on five that nobody has seen before, reached from their rows alone.

Names of processes in the first are those of the recordings; no rule of ours knows them.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from gpuaudit.analyze.finding import Chain, Document, Quantity, Section
from tests.ingero_bundles import EMPTY_CACHE, NODE_1, NODE_2, STARVATION, document, folder, original, store
from tests.ingero_maker import SCENARIOS, Maker, Truth


def chains(d: Document) -> set[tuple[str, str, str]]:
    """(detector, text, process) of every chain."""
    return {(c.detector, c.text, c.subject["pid"]) for c in d.chains}


def chain(d: Document, detector: str, op: str = "") -> Chain:
    (found,) = [c for c in d.chains if c.detector == detector and (not op or c.subject.get("op") == op)]
    return found


def verdicts(d: Document) -> dict[tuple[str, str], str]:
    """(operation, alleged cause) → what our evidence says."""
    table = conclusions(d).tables[0]
    return {(str(r[3]), str(r[4])): str(r[5]) for r in table.rows}


def conclusions(d: Document) -> Section:
    return next(s for s in d.sections if s.id == "stored_conclusions")


def number(value: Quantity | str | None) -> int | Fraction | None:
    assert isinstance(value, Quantity)
    return value.value


def test_starved_of_input() -> None:
    """Supported: silence of the trainer while the processes it had started filled four CPUs."""
    d = document(original(STARVATION))
    found = chain(d, "input_starvation")
    assert (found.subject["pid"], found.text, found.confidence) == ("2233", "saturated", "medium")
    assert number(found.values["explained"]) == 22_987_537_316  # 23 samples of a second, one of them shared
    assert number(found.values["cpu_least"]) == 91
    assert number(found.values["switches_share"]) > Fraction(98, 100)  # type: ignore[operator]
    assert found.grade == "C", "a selection of rows supports nothing better"
    assert sum(number(s.share) for s in found.shares) == 1  # type: ignore[misc]
    assert chains(d) == {("input_starvation", "saturated", "2233"), ("cold_start", "kernel", "2233")}


def test_a_launch_tail_is_one_cold_start() -> None:
    """Unsupported that it was preempted: one launch, the first of all, and no switch row near it."""
    d = document(original(STARVATION))
    found = chain(d, "cold_start")
    assert found.subject["op"] == "cudaLaunchKernel"
    assert number(found.values["effect_time"]) == number(found.values["explained"]) == 25_799_899
    assert any("of 16 calls" in a for a in found.against)
    told = verdicts(d)
    assert set(told.values()) == {"unsupported"}
    assert ("cudaLaunchKernel", "its thread was off a CPU") in told
    assert {a for _, a in told} == {"its thread was off a CPU", "full CPUs", "memory of the host"}
    texts = [s.text for s in conclusions(d).statements]
    assert texts
    assert all(t.startswith("Stored conclusion, evidence absent") for t in texts)


def test_a_release_burst_and_not_the_scheduler() -> None:
    """Refuted: forty releases in 19 ms, none of which overlaps an interval off the CPU of its thread."""
    d = document(original(EMPTY_CACHE))
    found = chain(d, "allocation_burst")
    assert (found.text, found.subject["op"], found.subject["pid"]) == ("releases", "cudaFree", "30581")
    assert number(found.values["frees"]) == 40
    assert 18_000_000 < number(found.values["longest"]) < 21_000_000  # type: ignore[operator]
    assert not {c.detector for c in d.chains} & {"preempted", "lock_wait", "blocking_io"}
    assert set(verdicts(d).values()) == {"refuted"}
    row = next(r for r in conclusions(d).tables[0].rows if r[3] == "cudaFree")
    assert [number(c) for c in row[7:]] == [40, 0, 1_904_932, 1_904_932, 0]


def test_nineteen_seconds_off_a_cpu_are_those_of_a_daemon() -> None:
    d = document(original(EMPTY_CACHE))
    stated, whose = conclusions(d).tables[1:]
    assert number(stated.rows[0][0]) == 19_044_412_000
    first = whose.rows[0]
    assert (first[0], first[1], number(first[2])) == ("779 (atopacctd)", "bystander", 4_262_141_460)
    assert not [c for c in d.chains if c.subject["pid"] != "30581"], "whoever sleeps loses nothing"


def test_blocking_disk_reads_and_no_contention() -> None:
    """Refuted: what was off the CPU waited for reads of its own."""
    d = document(original(NODE_1))
    found = chain(d, "blocking_io")
    assert chains(d) == {("blocking_io", "blocking_io_unknown", "1887")}
    assert number(found.values["effect_time"]) == 75_141_782
    assert number(found.values["share"]) > Fraction(98, 100)  # type: ignore[operator]
    told = verdicts(d)
    assert {v for (_, alleged), v in told.items() if alleged == "its thread was off a CPU"} == {"refuted"}
    assert {v for (_, alleged), v in told.items() if alleged == "disk requests"} == {"unsupported"}
    assert d.quality["grade"] == "C"


def test_the_recorders_own_writes_are_no_finding() -> None:
    """Refuted: the workload sleeps in a loop and wrote nothing."""
    d = document(original(NODE_2))
    assert d.chains == []
    assert d.findings == []
    assert set(verdicts(d).values()) == {"refuted"}
    roles = dict(store(original(NODE_2)).sql("SELECT pid, role FROM processes"))
    assert roles == {96: "bystander", 4599: "workload", 4607: "recorder"}
    row = next(r for r in conclusions(d).tables[0].rows if r[4] == "disk requests")
    assert "none is of the callers" in str(row[6])
    assert "no call as long as it states has a row" in str(row[6])


def test_every_cell_of_a_verdict_has_rows_behind_it() -> None:
    for name in (STARVATION, EMPTY_CACHE, NODE_1, NODE_2):
        d = document(original(name))
        known = {e.id: e for e in d.evidence}
        for row in conclusions(d).tables[0].rows:
            for cell in row:
                if isinstance(cell, Quantity):
                    assert cell.evidence
                    assert all(known[e].rows for e in cell.evidence)


@cache
def made(scenario: str, seed: int) -> tuple[Path, Truth]:
    maker = Maker(seed)
    truth = SCENARIOS[scenario](maker)
    return maker.write(folder() / f"{scenario}-{seed}.db"), truth


@pytest.mark.parametrize(
    ("scenario", "seed"), [("disk", 3), ("starvation", 4), ("release", 5), ("sleeper", 6), ("left_out", 7)]
)
def test_a_database_that_nobody_has_seen(scenario: str, seed: int) -> None:
    """Other ids, names, times and causes: the planted cause with its exact share, and nothing else."""
    path, truth = made(scenario, seed)
    d = document(path)
    if truth.detector is None:
        assert d.chains == []
        assert d.findings == []
    else:
        assert {(c.detector, c.subject["pid"]) for c in d.chains} == {(truth.detector, str(truth.pid))}
        assert number(chain(d, truth.detector).values["share"]) == truth.share
    roles = dict(store(path).sql("SELECT pid, role FROM processes"))
    assert roles[truth.pid] in ("workload", "traced")
    assert [p for p, r in roles.items() if r == "recorder"] == ([truth.recorder] if truth.recorder else [])
    assert {roles[p] for p in truth.bystanders} <= {"bystander"}
    names = {"off_cpu": "its thread was off a CPU", "block_io": "disk requests", "host_cpu": "full CPUs"}
    assert {a: v for (_, a), v in verdicts(d).items()} == {names[a]: v for a, v in truth.verdicts.items()}


def test_the_order_of_a_databases_rows_changes_nothing() -> None:
    """The file that a tool wrote in another order has the same rows, so that everything else is the same too."""
    path, _ = made("disk", 3)
    maker = Maker(3)
    SCENARIOS["disk"](maker)
    maker.random.seed(99)
    other = maker.write(folder() / "reordered.db")
    assert other.read_bytes() != path.read_bytes()
    for table in ("off_cpu", "block_io", "cuda_calls", "processes", "stored_conclusions"):
        query = f"SELECT * EXCLUDE (leaf, row) FROM {table} ORDER BY ALL"
        assert store(path).sql(query) == store(other).sql(query)
