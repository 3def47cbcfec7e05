"""Ranks that wait for each other: skew, stragglers and cost against numbers made by hand, and what is not evaluated."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from functools import cache

import pytest

from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Quantity, Section, Statement
from gpuaudit.analyze.prices import PriceBook
from gpuaudit.analyze.sections.stragglers import evaluate
from gpuaudit.analyze.words import filled
from tests.scenes import COMM, MS, T0, US, S, Scene, collectives

Row = dict[str, Quantity | str | None]
HOUR = 3_600 * S


def steps(arrivals: list[tuple[int, ...]], *, gpus: int = 4) -> Scene:
    """Blocking collectives of ranks 0…; each arrives so much after the second begins, and ends with the last.

    Each process has a GPU of its own, up to ``gpus`` of them.
    """
    scene = Scene().clock()
    for r in range(len(arrivals[0])):
        scene.process(100 + r)
    for r in range(gpus):
        scene.samples(T0, T0 + 60 * S, r, [100 + r])
    for i, after in enumerate(arrivals):
        base = T0 + S + i * S
        for r, at in enumerate(after):
            scene.add(
                "nccl_calls", start_ns=base + at, duration_ns=max(after) - at + 100 * US, pid=100 + r, tid=100 + r,
                op="ncclAllReduce", return_code=0, comm_handle=7, comm_id=COMM, rank=r, nranks=len(after), count=8,
                size_bytes=32, datatype=7, stream=1,
            )  # fmt: skip
    return scene


def of_ranks(*ms: int) -> tuple[int, ...]:
    return tuple(x * MS for x in ms)


@cache
def straggling() -> tuple[Section, Context]:
    """Rank 3 comes 40 ms after the others in eight steps of ten, and 100 ms in one; ranks 0 to 2 within 2 ms."""
    arrivals = [of_ranks(0, 1, 2, 40)] * 8 + [of_ranks(0, 1, 2, 100), of_ranks(2, 1, 0, 1)]
    context = with_rate(steps(arrivals), "3.60")
    return evaluate(context), context


def with_rate(scene: Scene, rate: str | None) -> Context:
    context = scene.context()
    context.prices = PriceBook.make(Catalogue.load(), None if rate is None else Decimal(rate), None, "EUR")
    return context


def rows(section: Section, name: str) -> list[Row]:
    t = next((t for t in section.tables if t.id == name), None)
    return [] if t is None else [dict(zip((n for n, _ in t.columns), row, strict=True)) for row in t.rows]


def value(cell: Quantity | str | None) -> int | Fraction | None:
    assert isinstance(cell, Quantity)
    return cell.value


def rank(section: Section, number: int) -> Row:
    """What all tables say of a rank; one that was never late made nobody wait."""
    told = [r for name in ("ranks", "waits") for r in rows(section, name) if r["rank"] == str(number)]
    return {k: v for r in told for k, v in r.items()}


def test_the_skew_of_a_communicator() -> None:
    """Sorted skews: 2, eight times 40, 100: the fifth of ten, the tenth and the largest."""
    (row,) = rows(straggling()[0], "communicators")
    assert (value(row["ranks"]), value(row["nranks"]), value(row["compared"])) == (4, 4, 10)
    assert (value(row["skew_p50"]), value(row["skew_p99"]), value(row["skew_max"])) == (40 * MS, 100 * MS, 100 * MS)


def test_the_straggler_and_the_limit_it_is_beyond() -> None:
    """Usual latenesses: rank 3 39 ms after the others' median; ranks 0, 1, 2 by −2, −1 and +1 of theirs.

    The others' median is −1 ms, so that it is 40 ms beyond; their MAD is 1 ms: 3.5 · 1.4826 · 1 ms is the limit.
    """
    section, _ = straggling()
    row = rank(section, 3)
    assert (value(row["usual"]), value(row["max"]), value(row["deviation"])) == (39 * MS, 99 * MS, 40 * MS)
    assert value(row["limit"]) == 5_189_100
    assert (row["verdict"], value(row["last"]), value(row["late"])) == ("straggler", 9, 9)
    assert [r["verdict"] for r in rows(section, "ranks") if r["rank"] != "3"] == ["with the others"] * 3


def test_the_wait_imposed_and_its_cost() -> None:
    """From the median arrival (1 ms) on: eight times 39 + 39 + 38 ms, and once 99 + 99 + 98: 1,224 ms at 3.60 an hour.

    A GPU-hour of 3.60 is a thousandth a second: 1.224 GPU-seconds are 0.001224.
    """
    section, _ = straggling()
    row = rank(section, 3)
    waited = (8 * (39 + 39 + 38) + 99 + 99 + 98) * MS
    assert (value(row["wait"]), value(row["gpu_wait"])) == (waited, waited)
    cost = row["cost"]
    assert isinstance(cost, Quantity)
    assert (cost.value, cost.unit, cost.provenance) == (Fraction("3.60") * waited / HOUR, "EUR", "assumed")
    assert cost.value == Fraction(1_224, 1_000_000)
    assert [r["rank"] for r in rows(section, "waits")] == ["3"], "nobody waited for the others"


def test_it_is_said_in_words() -> None:
    (statement,) = straggling()[0].statements
    assert isinstance(statement, Statement)
    told = filled(statement.text, statement.values)
    assert "Rank 3" in told
    assert "is a straggler: it enters collectives 39.0 ms after the others' median" in told
    assert "its peers waited 1.22 s in all" in told


def test_two_peers_on_one_gpu_hold_it_once() -> None:
    """Ranks 0 and 1 share GPU 0: of each late step 39 ms of it, not 78."""
    scene = steps([of_ranks(0, 1, 2, 40)] * 10)
    for row in scene.rows["nvml_processes"]:
        row["gpu_index"], row["gpu_uuid"] = (0, "GPU-0") if row["pid"] == 101 else (row["gpu_index"], row["gpu_uuid"])
    row = rank(evaluate(with_rate(scene, "1")), 3)
    assert value(row["wait"]) == 10 * (39 + 39 + 38) * MS
    assert value(row["gpu_wait"]) == 10 * (39 + 38) * MS


@pytest.mark.parametrize(
    ("gpus", "rate", "held", "why"),
    [(2, "1", None, "no GPU is known of process 102"), (4, None, 1_160 * MS, "no price is known of GPU-0")],
)
def test_a_cost_that_cannot_be_told_says_why(gpus: int, rate: str | None, held: int | None, why: str) -> None:
    row = rank(evaluate(with_rate(steps([of_ranks(0, 1, 2, 40)] * 10, gpus=gpus), rate)), 3)
    assert value(row["wait"]) == 1_160 * MS
    assert value(row["gpu_wait"]) == held
    cost = row["cost"]
    assert isinstance(cost, Quantity)
    assert (cost.value, cost.reason) == (None, why)


def test_an_even_skew_makes_nobody_a_straggler() -> None:
    """Ranks 10 ms apart, always in the same order: the last one is as far from its neighbour as the others."""
    section = evaluate(steps([of_ranks(0, 10, 20, 30, 40)] * 10).context())
    assert section.state == "evaluated"
    assert not section.statements


def test_below_the_floor_nobody_is_one() -> None:
    """All others agree to the nanosecond: 0.9 ms is many spreads, and ordinary scheduling."""
    section = evaluate(steps([(0, 0, 0, 900 * US)] * 10).context())
    assert value(rank(section, 3)["limit"]) == MS
    assert not section.statements


def test_k_quorum_cohort_and_floor_are_printed() -> None:
    told = {r["name"]: value(r["value"]) for r in rows(straggling()[0], "limits")}
    assert told == {
        "lateness_floor_ns": MS, "k": Fraction(7, 2), "mad_scale": Fraction(7413, 5000), "min_cohort": 3,
        "quorum": Fraction(1, 2),
    }  # fmt: skip


def test_how_the_waits_were_found() -> None:
    scene = collectives("asynchronous", steps=20)
    for row in scene.rows["cuda_calls"]:
        if row["pid"] == 101:
            row |= {"op": "cudaDeviceSynchronize", "stream": None}
        if row["pid"] == 102:
            row["stream"] = 99
    told = {(r["process"], r["how"]): value(r["collectives"]) for r in rows(evaluate(scene.context()), "pairing")}
    name = "(name not recorded)"
    assert told == {
        (f"100 {name}", "same stream"): 20, (f"101 {name}", "device"): 20, (f"102 {name}", "none found"): 20,
        (f"103 {name}", "same stream"): 20,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scene", "why"),
    [
        (steps([of_ranks(0, 40)] * 10), "2 of 2 ranks observed, and at least 3 are needed"),
        (collectives("blocking", nranks=16), "4 of 16 ranks observed, fewer than 1/2 of them"),
        (collectives("blocking", comm_id=None), "identity not recorded (50 calls)"),
    ],
)
def test_too_few_ranks_are_not_compared(scene: Scene, why: str) -> None:
    section = evaluate(scene.context())
    assert section.state == "not evaluated"
    assert not section.statements
    assert why in str(rows(section, "communicators")[0]["state"])


def test_nothing_recorded_is_not_evaluated() -> None:
    section = evaluate(Scene().clock().context())
    assert (section.state, section.reason, section.tables) == ("not evaluated", "no NCCL collective was recorded", ())


def test_every_number_names_its_rows() -> None:
    section, context = straggling()
    entries = {e.id: e for e in context.book.entries()}
    for t in section.tables:
        if t.id == "limits":
            continue
        for cell in (c for row in t.rows for c in row if isinstance(c, Quantity)):
            assert cell.formula
            assert cell.evidence
            assert all(len(context.store.sql(entries[i].query)) == entries[i].rows for i in cell.evidence)
