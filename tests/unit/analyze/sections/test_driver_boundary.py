"""ioctls by process: rates, gaps, and what gaps do and do not mean."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from gpuaudit.analyze.finding import Quantity
from gpuaudit.analyze.sections.driver_boundary import evaluate
from tests.scenes import MS, T0, S, Scene


def ioctl(s: Scene, pid: int, at: int, took: int | None, **more: Any) -> None:
    base = {
        "start_ns": T0 + at, "duration_ns": took, "pid": pid, "tid": pid, "return_code": 0, "request": 0xC0204601,
        "number": 1, "type": 0x46, "size_bytes": 32, "major": 195, "minor": 255,
    }  # fmt: skip
    s.add("ioctls", **{**base, **more})


def scene() -> Scene:
    s = Scene().clock().process(7).process(8).process(1, "audit", role="recorder")
    ioctl(s, 7, 0, 10 * MS)
    ioctl(s, 7, 5 * MS, 5 * MS, tid=70)
    ioctl(s, 7, 20 * MS, 10 * MS, return_code=-22)
    ioctl(s, 7, 90 * MS, 10 * MS, number=42, size_bytes=16)
    ioctl(s, 8, S, MS)
    ioctl(s, 1, S, MS)
    return s


def cells(row: tuple[Any, ...]) -> list[Any]:
    return [c.value if isinstance(c, Quantity) else c for c in row]


def test_rates_and_gaps_of_each_process() -> None:
    section = evaluate(scene().context())
    rates, _ = section.tables
    first, second = (cells(r) for r in rates.rows)
    assert first == [
        "7 (python3)", 4, Fraction(40), 30 * MS, 10 * MS, 1, 10 * MS, 60 * MS, Fraction(7, 10),
    ]  # fmt: skip
    assert second[:2] == ["8 (python3)", 1]
    assert second[6:] == [None, None, None]
    one = rates.rows[1][6]
    assert isinstance(one, Quantity)
    assert one.reason == "there was one call, so no time between calls"


def test_kinds_of_request() -> None:
    _, numbers = evaluate(scene().context()).tables
    assert [cells(r)[:5] for r in numbers.rows] == [
        ["7 (python3)", "0x46", "1", 32, 3], ["7 (python3)", "0x46", "42", 16, 1], ["8 (python3)", "0x46", "1", 32, 1],
    ]  # fmt: skip


def test_every_number_has_its_rows() -> None:
    context = scene().context()
    section = evaluate(context)
    entries = {e.id: e.rows for e in context.book.entries()}
    counts = [row[1] for row in section.tables[0].rows]
    assert [entries[i] for q in counts if isinstance(q, Quantity) for i in q.evidence] == [4, 1]


def test_what_a_gap_means_is_said_with_and_without_rows() -> None:
    for context in (scene().context(), Scene().clock().context()):
        said = " ".join(evaluate(context).notes)
        assert "It does not mean that the GPU was idle or that nothing was copied" in said
        assert "most copies, are submitted from user mode" in said


def test_the_appendix_says_it_in_every_document() -> None:
    terms = {d["term"]: d["text"] for d in Scene().clock().document().appendix["definitions"]}
    assert "It does not mean that the GPU was idle" in terms["gap between ioctls"]


def test_without_the_source_it_is_not_evaluated() -> None:
    section = evaluate(Scene().clock().context())
    assert section.state == "not evaluated"
    assert "no process of the workload made an ioctl" in section.reason
