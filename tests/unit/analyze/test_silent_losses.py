"""Sequence numbers prove that no record went missing unseen: holes without a counted loss lower the grade."""

from __future__ import annotations

from gpuaudit.analyze.quality import read_quality
from gpuaudit.analyze.window import read_window
from tests.scenes import MS, T0, S, Scene


def reasons(numbers: list[int], seen: int, lost: int) -> list[tuple[str, str, tuple[str, ...]]]:
    """What is said of calls on CPU 1 with these sequence numbers and these counters."""
    s = Scene().clock().process(7)
    s.cuda(7, "cudaFree", T0 + S, MS)  # the only one on CPU 0, where nothing is missing
    for n in numbers:
        s.cuda(7, "cudaMalloc", T0 + S + n * MS, 1000, cpu=1, seq=n)
    for cpu, counters in ((0, (1, 1, 0)), (1, (seen, seen - lost, lost))):
        s.add("losses", start_ns=T0 + 59 * S, duration_ns=None, table_name="cuda_calls", cpu=cpu,
              **dict(zip(("seen", "written", "lost"), counters, strict=True)))  # fmt: skip
    store = s.store()
    found = read_quality(store, read_window(store), "SEALED").reasons
    return [(r.grade, r.text, r.tables) for r in found if "sequence numbers" in r.text]


def test_a_hole_that_nobody_counted_is_told() -> None:
    text = "cuda_calls: 2 sequence numbers are missing that no counter tells of (CPU 1)"
    assert reasons([0, 1, 4, 5], seen=6, lost=0) == [("C", text, ("cuda_calls",))]
    assert reasons([0, 5], seen=6, lost=2) == [("C", text, ("cuda_calls",))]


def test_counted_losses_and_whole_numbers_are_no_surprise() -> None:
    assert reasons([0, 1, 2, 3], seen=4, lost=0) == []
    assert reasons([0, 1, 4, 5], seen=6, lost=2) == []
    assert reasons([0, 1], seen=6, lost=4) == []  # the last ones were lost


def test_counters_that_are_older_than_the_rows_are_no_witness() -> None:
    assert reasons([0, 1, 4, 5], seen=2, lost=0) == []
