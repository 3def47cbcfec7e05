"""Tables of one shape stand side by side, and nothing that one of them says is lost."""

from __future__ import annotations

from typing import Any

from gpuaudit.analyze.finding import Quantity, SectionTable
from gpuaudit.report.side_by_side import side_by_side
from tests.documents import q

COLUMNS = (("measure", "measure"), ("value", "value"), ("basis", "of"))


def table(id: str, title: str, *rows: tuple[Any, ...], columns: Any = COLUMNS, **more: Any) -> SectionTable:
    return SectionTable(id, title, columns[: len(rows[0])], rows, **more)


def test_two_engines_share_labels_and_what_they_agree_on() -> None:
    made = side_by_side([
        table("run_0", "What engine 0 said", ("tokens", q(5), "all polls"), ("rate", q(2), "active windows")),
        table("other", "Other", ("x", q(1), "y")),
        table("run_1", "What engine 1 said", ("tokens", q(7), "all polls"), ("rate", q(3), "too few windows")),
    ])  # fmt: skip
    assert [m.table.id for m in made] == ["run_0", "other"], "where the first stood"
    both = made[0].table
    assert both.title == "What engine 0, 1 said"
    assert [heading for _, heading in both.columns] == ["measure", "engine 0", "engine 1", "of"]
    assert [_plain(row) for row in both.rows] == [
        ("tokens", 5, 7, "all polls"), ("rate", 2, 3, "active windows (engine 0); too few windows (engine 1)"),
    ]  # fmt: skip


def test_a_row_of_one_engine_alone_stays_and_so_do_notes_with_their_engine() -> None:
    made = side_by_side([
        table("run_0", "Settings of engine 0, each with its source", ("a", "1", "cli"), notes=("same", "only one")),
        table("run_1", "Settings of engine 1, each with its source", ("a", "2", "cli"), ("b", "3", "file"),
              notes=("same",), omitted=4),
    ])[0].table  # fmt: skip
    assert made.title == "Settings of engine 0, 1, each with its source"
    assert made.rows == (("a", "1", "2", "cli"), ("b", None, "3", "file"))
    assert made.notes == ("same", "engine 0: only one")
    assert made.omitted == 4


def test_text_that_mostly_differs_keeps_a_column_each() -> None:
    made = side_by_side([
        table("m_0", "Model of engine 0", ("a", q(1), "config"), ("b", q(2), "config")),
        table("m_1", "Model of engine 1", ("a", q(1), "catalogue"), ("b", q(2), "catalogue")),
    ])[0].table  # fmt: skip
    assert [h for _, h in made.columns] == [
        "measure", "value, engine 0", "of, engine 0", "value, engine 1", "of, engine 1",
    ]  # fmt: skip


def test_words_that_are_the_same_of_all_are_told_once_and_numbers_keep_their_rows() -> None:
    texts = [(f"mode {n}", "off") for n in range(4)]
    made = side_by_side([
        table(f"gpu_{n}", f"GPU {n} (GPU-{n})", *texts, ("errors", q(0, evidence=(f"E{n + 1}",)))) for n in range(2)
    ])[0]  # fmt: skip
    assert made.of == "GPU 0, GPU 1"
    assert made.table.title == "GPU 0 (GPU-0), 1 (GPU-1)"
    assert made.same == tuple((label, text) for label, text in texts)
    assert [row[0] for row in made.table.rows] == ["errors"]
    assert [c.evidence for c in made.table.rows[0][1:] if isinstance(c, Quantity)] == [("E1",), ("E2",)]


def test_five_gpus_take_two_tables() -> None:
    made = side_by_side([table(f"gpu_{n}", f"GPU {n}", ("errors", q(n))) for n in range(5)])
    assert [len(m.table.columns) for m in made] == [5, 2]


def test_a_column_that_is_nearly_empty_becomes_rows() -> None:
    rows = [(f"r{n}", q(n), q(9) if n == 2 else None) for n in range(4)]
    columns = (("what", "What"), ("value", "Value"), ("capture", "Within the capture"))
    made = side_by_side([table("gpu_0", "GPU 0", *rows, columns=columns)])[0].table
    assert [h for _, h in made.columns] == ["What", "Value"]
    assert [row[0] for row in made.rows] == ["r0", "r1", "r2", "r2, within the capture", "r3"]


def test_tables_whose_rows_cannot_be_told_apart_stay_alone() -> None:
    twice = [table(f"t_{n}", f"T {n}", ("a", q(1)), ("a", q(2))) for n in range(2)]
    assert [m.table for m in side_by_side(twice)] == twice


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(c.value if isinstance(c, Quantity) else c for c in row)
