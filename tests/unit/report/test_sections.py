"""Sections are printed whatever they are about: every number with its mark, its evidence and how it was made."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.finding import Group, Section, SectionChart, SectionTable, Statement
from gpuaudit.analyze.load import parse_document
from gpuaudit.analyze.run import document_bytes
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.report.charts.canvas import Label
from gpuaudit.report.charts.canvas import Path as Line
from gpuaudit.report.charts.labels import label_box
from gpuaudit.report.html import render
from gpuaudit.report.pdf import print_pdf
from gpuaudit.report.sections import SectionView
from gpuaudit.report.text import plain
from gpuaudit.report.view import View, build_view
from tests.documents import q
from tests.engine_documents import BINS, engine_document, sections


@pytest.fixture(scope="module")
def view() -> View:
    return build_view(engine_document())


def asked(view: View, id: str) -> SectionView:
    return next(s for s in view.sections.evaluated if plain(s.id) == id)


def one(section: Section) -> SectionView:
    return build_view(engine_document(sections=[section])).sections.evaluated[0]


def with_table(*rows: tuple[Any, ...], columns: int = 0, **more: Any) -> SectionView:
    heads = tuple((f"c{i}", f"head {i}") for i in range(columns or len(rows[0])))
    return one(Section("s", "S", "Q?", "evaluated", "", tables=(SectionTable("t", "T", heads, rows, **more),)))


def test_the_document_is_one_that_can_be_read_back() -> None:
    made = engine_document()
    assert parse_document(document_bytes(made)).to_json() == made.to_json()


def test_sections_stand_in_the_contents_in_their_order(view: View) -> None:
    titles = [plain(title) for _, title in view.contents]
    at = titles.index("Inference engines")
    assert titles[at : at + 6] == [
        "Inference engines", "Roofline", "Compute and stall", "VRAM topology", "Economics",
        "Questions without an answer",
    ]  # fmt: skip


def test_a_section_without_an_answer_says_why_and_nothing_else(view: View) -> None:
    rows = [[plain(c.text) for c in row] for row in view.sections.others.rows]
    assert rows == [[
        "Quantisation advisor: What would another precision free, and what would it cost?",
        "the weights' precision was not recorded: neither config.json nor a label names a dtype",
    ]]  # fmt: skip
    every = build_view(engine_document(sections=[s for s in sections() if s.state == "evaluated"]))
    assert "unanswered" not in dict(every.contents)
    assert b"Questions without an answer" not in render(every)


def test_a_sentence_has_its_values_marks_and_evidence(view: View) -> None:
    told = asked(view, "roofline").sentences[0]
    assert plain(told) == (
        "Decoding ran at 10.6 % est of the memory roof: 11.3 TFLOP/s est of 107 TFLOP/s est. [E1]"
    )  # fmt: skip
    assert [p.target for p in told if p.kind == "link"] == ["evidence-1"]
    missing = asked(view, "engines").sentences[1]
    assert "was not known (no bucket of the histogram moved) at" in plain(missing)


def test_measured_numbers_have_no_mark_and_others_do(view: View) -> None:
    marks = {
        (plain(s.id), p.text)
        for s in view.sections.evaluated
        for t in s.tables for row in t.table.rows for c in row for p in c.text if p.kind == "mark"
    }  # fmt: skip
    assert ("engines", "est") not in marks
    assert ("economics", "assumed") in marks
    assert asked(view, "economics").marks
    assert not asked(view, "engines").marks


def test_formulas_stand_in_the_row_where_rows_differ_and_below_where_columns_do(view: View) -> None:
    money = asked(view, "economics").tables[0].table
    assert [c.title for c in money.columns] == ["what", "amount", "formula", "evidence"]
    assert plain(money.rows[1][2].text) == "W ÷ tokens/s"
    memory = asked(view, "vram").tables[0]
    assert "bytes = Σ of allocations · " in plain(memory.below[0])


def test_numbers_of_sentences_tell_how_they_were_made(view: View) -> None:
    told = plain(asked(view, "economics").made)
    assert told.startswith("rate 4.00 USD/h assumed = --rate")


def test_a_missing_number_is_a_dash_with_its_reason_once() -> None:
    gone = q(None, "share", "derived", reason="no denominator")
    other = q(None, "count", reason="not polled")
    made = with_table(("a", gone), ("b", other), ("c", gone), ("d", None))
    assert [plain(row[1].text) for row in made.tables[0].table.rows] == ["– 1", "– 2", "– 1", "–"]
    assert [plain(x) for x in made.tables[0].below] == [
        "– 1 not known, no denominator", "– 2 not recorded, not polled",
    ]  # fmt: skip


def test_rows_that_hold_one_reason_alone_are_told_together() -> None:
    """A host that tells nothing of ECC would fill a page with dashes."""
    gone = q(None, "count", reason="no row in nvml_health")
    rows = [
        ("volatile", gone, None),
        ("aggregate", gone, gone),
        ("retired", gone, None),
        ("lanes", q(16, "count"), gone),
    ]
    made = with_table(*rows).tables[0]
    assert [plain(row[0].text) for row in made.table.rows] == ["lanes"]
    assert "not recorded, no row in nvml_health: volatile, aggregate, retired." in [plain(x) for x in made.below]
    two = with_table(*rows[:2]).tables[0]
    assert len(two.table.rows) == 2, "two dashes are no page"


def test_a_long_text_of_every_row_is_told_once() -> None:
    long = "the same words, too long for a narrow column"
    made = with_table(("a", q(1, "count"), long), ("b", q(2, "count"), long)).tables[0]
    assert [c.title for c in made.table.columns] == ["head 0", "head 1"]
    assert [plain(x) for x in made.below] == [f"head 2 (of every row): {long}"]
    differ = with_table(("a", q(1, "count"), long), ("b", q(2, "count"), f"{long}.")).tables[0]
    assert len(differ.table.columns) == 3


def test_a_column_of_several_formulas_names_their_rows() -> None:
    cells = [(f"r{i}", q(i + 1, "count", "derived", formula=f"f{i % 2}"), q(1, "count", "derived", formula="g"))
             for i in range(4)]  # fmt: skip
    told = [plain(x) for x in with_table(*cells).tables[0].below]
    assert told == ["head 1 of r0, head 1 of r2 = f0 · head 2 = g · head 1 of r1, head 1 of r3 = f1"]


def test_rows_left_out_are_counted(view: View) -> None:
    assert "2 more rows are not printed." in [plain(x) for x in asked(view, "economics").tables[0].below]


def test_a_wide_table_names_its_evidence_below() -> None:
    cells = tuple(q(i, "count", evidence=("E2",)) for i in range(9))
    made = with_table(*[cells] * 5).tables[0]
    assert len(made.table.columns) == 9
    assert plain(made.below[-1]) == "Evidence: E2."


def test_a_wide_table_of_few_rows_is_turned() -> None:
    """Eleven columns do not fit a page; eleven rows do."""
    cells = ("engine 0", *(q(i, "count") for i in range(9)), q(None, "count", reason="not told"))
    made = with_table(cells, ("engine 1", *cells[1:])).tables[0]
    assert [c.title for c in made.table.columns] == ["head 0", "engine 0", "engine 1"]
    assert [[plain(c.text) for c in row] for row in made.table.rows][:2] == [["head 1", "0", "0"], ["head 2", "1", "1"]]
    assert plain(made.table.rows[-1][1].text) == "– 1"
    assert "not recorded, not told" in plain(made.below[0])


def test_a_long_list_of_evidence_is_cut_and_counted() -> None:
    cell = q(1, "count", evidence=tuple(f"E{i}" for i in range(1, 12)))
    assert plain(with_table(("x", cell)).tables[0].table.rows[0][2].text).endswith(" and 7 more")


def test_a_number_that_the_sentence_lacks_is_refused() -> None:
    lacking = Section("s", "S", "Q?", "evaluated", "", (Statement("It took {time}.", {}),))
    with pytest.raises(InputUnusable, match="asks for a value 'time'"):
        one(lacking)


def test_what_is_held_stands_behind_its_primary_with_the_reason(view: View) -> None:
    labels = [plain(s.label) for s in view.statements]
    assert labels.index("F4") == labels.index("F3") + 1
    held = view.statements[labels.index("F4")]
    assert plain(held.held).startswith("Held as supporting evidence of F3: a limit is the wall only while")
    assert held not in view.headlines
    led = dict(view.statements[labels.index("F3")].facts)["Leads the group"]
    assert plain(led) == "G1, concurrency; behind it, as supporting evidence: F4"
    assert "1 finding of them only supports another." in " ".join(plain(t) for t in view.verdict)


def test_groups_of_any_shape_lose_no_statement() -> None:
    """A finding held twice, by one that is held itself, in a ring: each is still printed once."""
    ring = [
        Group("G1", "memory", "0", "F3", (("F4", "r"),)), Group("G2", "memory", "0", "F4", (("F3", "r"), ("F5", "r"))),
    ]  # fmt: skip
    made = build_view(engine_document(groups=ring)).statements
    assert sorted(plain(s.label) for s in made) == ["C1", "F1", "F2", "F3", "F4", "F5"]


def test_fixes_tell_setting_from_to_and_side_effects(view: View) -> None:
    fixes = next(s.fixes for s in view.statements if s.fixes)
    assert fixes is not None
    assert [plain(c.text) for c in fixes.rows[0]] == [
        "raise the number of slots (wall 295 est; peak use of the kv cache 7.9 %)", "max_num_seqs", "32", "256",
        "more KV cache per second, longer time per token",
    ]  # fmt: skip


def test_policy_stands_on_page_one(view: View) -> None:
    told = plain(dict(view.cover)["Policy"])
    assert told.startswith("1 of 9 thresholds are set by a policy file")
    assert told.endswith("7b" * 32)
    assert "Policy" not in dict(build_view(engine_document(options={"rate": None, "currency": ""})).cover)


def chart(kind: str, **changes: Any) -> SectionView:
    for s in sections():
        for c in s.charts:
            if c.kind == kind:
                return one(replace(s, charts=(SectionChart(kind, c.id, c.title, {**c.data, **changes}),)))
    raise AssertionError(kind)


def labels_of(view: SectionView) -> list[str]:
    return [s.text for f in view.figures for s in f.shapes if isinstance(s, Label)]


def test_the_knee_and_every_ceiling_are_labelled() -> None:
    told = labels_of(chart("roofline"))
    assert {"FP8 dense · 1.98 PFLOP/s", "BF16 dense · 989 TFLOP/s", "knee 295 FLOP/byte", "knee 591 FLOP/byte"} <= set(
        told
    )
    assert "memory 3.35 TB/s" in told


def test_no_label_lies_across_a_flat_roof() -> None:
    """The four peaks of an H100 lie close together: labels of each go beside the roofs, not through them."""
    peaks = [("fp8, int8", 1979), ("bf16", 989), ("tf32", 494), ("fp64", 67)]
    roofs = [
        {"label": name, "flops": str(peak * 10**12), "bandwidth": str(3350 * 10**9), "basis": ""}
        for name, peak in peaks
    ]
    figure = chart("roofline", ceilings=roofs).figures[0]
    flat = [s.points for s in figure.shapes if isinstance(s, Line) and s.role == "roof"
            and s.points[0][1] == s.points[1][1]]  # fmt: skip
    assert len(flat) == len(peaks)
    for label in (s for s in figure.shapes if isinstance(s, Label)):
        left, right, top, bottom = label_box(label.text, (label.x, label.y, label.anchor))
        across = [y for (x1, y), (x2, _) in flat if left < x2 and x1 < right and top < y < bottom]
        assert not across, label.text
    assert sum(1 for text in labels_of(chart("roofline", ceilings=roofs)) if text.startswith("knee ")) == len(peaks)


def test_points_that_find_no_room_are_named_below() -> None:
    crowd = [
        {"label": f"point {i}", "intensity": ["100", "1"], "rate": str(10**13 + i), "kind": "derived"}
        for i in range(20)
    ]
    made = chart("roofline", points=crowd)
    told = labels_of(made)
    missing = [p["label"] for p in crowd if p["label"] not in told]
    assert missing
    assert all(str(label) in plain(made.figures[0].caption) for label in missing)


def test_a_knee_lies_where_both_roofs_meet() -> None:
    """On logarithmic axes a slope of memory rises one decade per decade."""
    made = chart("roofline").figures[0]
    slope = next(
        s for s in made.shapes if isinstance(s, Line) and s.role == "roof" and s.points[0][1] != s.points[1][1]
    )
    (x1, y1), (x2, y2) = slope.points
    ticks = sorted({Fraction(s.points[0][0]) for s in made.shapes if isinstance(s, Line) and s.role == "grid"
                    and s.points[0][0] == s.points[1][0]})  # fmt: skip
    rows = sorted({Fraction(s.points[0][1]) for s in made.shapes if isinstance(s, Line) and s.role == "grid"
                   and s.points[0][1] == s.points[1][1]})  # fmt: skip
    per_x, per_y = ticks[1] - ticks[0], rows[1] - rows[0]
    assert abs((Fraction(x2) - x1) / per_x - (Fraction(y1) - y2) / per_y) < Fraction(1, 10**9)


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("roofline", {"ceilings": [{"label": "x", "flops": "0", "bandwidth": "5", "basis": ""}]}, "above 0"),
        ("roofline", {"points": [{"label": "x", "intensity": ["1", "0"], "rate": "1", "kind": "derived"}]}, "Zero"),
        ("roofline", {"points": [{"label": "x", "intensity": ["1", "1"], "rate": "1", "kind": "guessed"}]}, "guessed"),
        ("strips", {"times_ns": ["1"]}, "one value for each bin"),
        ("strips", {"scale": 0}, "no scale"),
        ("stack", {"bars": [{"label": "x", "total": "5", "parts": [["a", "a", "4"]]}]}, "do not add up"),
        ("bands", {"bounds": []}, "bounds"),
        ("bands", {"rows": [{"label": "x", "values": [1]}]}, "one value for each bin"),
        ("bands", {"times_ns": [str(i) for i in range(301)]}, "300 bins"),
    ],
)  # fmt: skip
def test_charts_that_make_no_sense_are_refused_in_one_line(kind: str, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InputUnusable, match=why) as caught:
        chart(kind, **changes)
    assert "\n" not in str(caught.value)


def test_a_chart_without_a_value_is_no_figure() -> None:
    nothing: list[None] = [None] * BINS
    assert chart("bands", rows=[{"label": "x", "values": nothing}]).figures == ()
    empty = {"name": "n", "label": "n", "unit": "count", "minimum": nothing, "mean": nothing, "maximum": nothing,
             "ceiling": None}  # fmt: skip
    assert chart("strips", series=[empty]).figures == ()
    assert chart("roofline", ceilings=[]).figures == ()


def test_parts_of_a_stack_are_numbered_the_same_in_every_bar() -> None:
    told = labels_of(chart("stack"))
    assert sum(t.startswith("5 driver reserved 617 MiB") for t in told) == 2
    assert any(t.startswith("6 unattributed 512 MiB") for t in told)


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs pdftotext (poppler-utils)")
def test_no_page_begins_or_ends_with_one_or_two_rows_of_a_table(tmp_path: Path) -> None:
    made = [
        Section(f"s{n}", f"S{n}", "Q?", "evaluated", "", tables=(
            SectionTable("t", "T", (("a", "a"), ("b", "b")), tuple((f"mark{n}x", "cell") for _ in range(16 + n)),
                         ("note",)),))
        for n in range(10, 20)
    ]  # fmt: skip
    view = build_view(engine_document(sections=made))
    printed = print_pdf(
        render(view, "pdf"), findings=b"{}", content={}, date=view.created, identifier=bytes(16)
    )  # fmt: skip
    path = tmp_path / "report.pdf"
    path.write_bytes(printed.pdf)
    text = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True).stdout
    broken = 0
    for n in range(10, 20):
        counts = [c for page in text.split("\f") if (c := page.count(f"mark{n}x"))]
        assert sum(counts) == 16 + n
        broken += len(counts) > 1
        assert min(counts) >= 3 or counts[0] == 2, (n, counts)
    assert broken, "some table was long enough to break"
