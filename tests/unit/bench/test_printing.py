"""Results as tables, pages and JSON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import pages, printing
from bench.result import Figure, NotMeasured, Result, ratio, value
from gpuaudit.bundle.errors import InputUnusable

RESULT = Result(
    command="python -m bench --save bench/results/figures.json", taken_utc="2026-01-05T09:00:00+00:00", seconds=312.4,
    machine={"processor": "a|b", "CPUs": "2 of 2"},
    figures=(
        Figure(
            "seal", "Sealing", "How it was done.",
            (
                ratio("seal ÷ sha256sum, CPU", [2.0, 3.0, 8.0], [1.0, 1.0, 2.0], "lower"),
                value("seal: CPU", "s", [0.25, 0.5, 0.125]),
            ),
            {"events": "2,000,000"}, ("A remark.",),
        ),
    ),
    not_measured=(NotMeasured("probe", "A probed call", "attaching probes needs root"),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (1, "1.00"), (9.876, "9.88"), (12.345, "12.3"), (123.4, "123"), (1234.5, "1,230"),
        (4_236_987, "4,240,000"), (0.123456, "0.123"), (0.0045678, "0.00457"), (-0.5, "-0.500"), (999.9, "1,000"),
    ],
)  # fmt: skip
def test_numbers_have_three_significant_digits(number: float, text: str) -> None:
    assert printing.number(number) == text


def test_the_table_aligns_its_columns() -> None:
    lines = printing.text(RESULT).splitlines()
    assert lines[:4] == [
        "seal: Sealing",
        "  what                                     unit   median  smallest  largest  repeats",
        "  seal ÷ sha256sum, CPU (lower is better)  ratio    3.00      2.00     4.00        3",
        "  seal: CPU                                s       0.250     0.125    0.500        3",
    ]


def test_the_table_tells_what_was_not_measured_and_how_to_repeat_it() -> None:
    text = printing.text(RESULT)
    assert "probe: A probed call\n  not measured: attaching probes needs root\n" in text
    assert "  Note: A remark.\n" in text
    assert text.endswith(f"repeat: {RESULT.command}\n")


def test_json_comes_back_as_it_was() -> None:
    assert Result.from_json(RESULT.to_json()) == RESULT


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "figures": [{}], "not_measured": []}', "null"]
)
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(InputUnusable, match="python -m bench --save"):
        Result.from_json(text)


def test_the_reference_page_holds_every_figure_and_the_machine() -> None:
    page = printing.markdown(RESULT)
    assert "| seal ÷ sha256sum, CPU (lower is better) | ratio | 3.00 | 2.00 | 4.00 | 3 |\n" in page
    assert "Not measured: attaching probes needs root.\n" in page
    assert "| processor | a\\|b |\n" in page
    assert RESULT.command in page


def test_the_readme_gets_the_headlines(tmp_path: Path) -> None:
    kept = tmp_path / pages.KEPT
    kept.parent.mkdir(parents=True)
    kept.write_text(RESULT.to_json(), "utf-8")
    (tmp_path / pages.REFERENCE).parent.mkdir(parents=True)
    readme = tmp_path / pages.README
    readme.write_text(f"before\n{pages.BEGIN}old\n{pages.END}after\n", "utf-8")
    assert pages.stale(tmp_path) == [pages.REFERENCE, pages.README]
    assert pages.write(tmp_path) == [pages.REFERENCE, pages.README]
    assert readme.read_text("utf-8") == (
        f"before\n{pages.BEGIN}| | median | smallest–largest |\n|---|--:|--:|\n"
        f"| Sealing: seal ÷ sha256sum, CPU (lower is better) | 3.00 | 2.00–4.00 |\n{pages.END}after\n"
    )
    assert pages.stale(tmp_path) == []


def test_a_readme_without_the_marks_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / pages.KEPT
    kept.parent.mkdir(parents=True)
    kept.write_text(RESULT.to_json(), "utf-8")
    (tmp_path / pages.README).write_text("no marks\n", "utf-8")
    with pytest.raises(InputUnusable, match="lacks the marks"):
        pages.stale(tmp_path)


@pytest.mark.parametrize(
    ("load", "said"), [("0.99 3.00 4.00", False), ("1.00 0.10 0.10", True), ("3.70 4.36 4.29", True)]
)
def test_a_busy_machine_is_told(load: str, said: bool) -> None:
    result = replace(RESULT, machine={**RESULT.machine, "load before": load})
    for text in (printing.text(result), printing.markdown(result), printing.extract(result)):
        assert (f"load {load[:4]} on 2 CPUs" in text) == said


def test_every_headline_was_measured_or_its_absence_is_told() -> None:
    kept = Result.from_json((pages.ROOT / pages.KEPT).read_text("utf-8"))
    assert set(printing.HEADLINES) == {f.name for f in kept.figures} | {n.name for n in kept.not_measured}
    for figure in kept.figures:
        missing = set(printing.HEADLINES[figure.name]) - {v.what for v in figure.values}
        assert not missing or figure.remarks, f"{figure.name}: {missing}"


def test_the_committed_pages_follow_from_the_committed_result() -> None:
    assert pages.stale() == []
