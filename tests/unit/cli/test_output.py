"""Results on stdout: inert, aligned, and never a spreadsheet formula."""

from __future__ import annotations

import csv
import io
import json

import pytest

from gpuaudit.cli.output import cell, print_csv, print_json, print_table

HOSTILE = ["\x1b]0;owned\x07", "\u202egpj.exe", "a\nb", "=cmd|'/c calc'!A1", "<script>", "x" * 10_000]


def test_a_table_is_one_line_per_row_and_carries_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "count"], [[h, i] for i, h in enumerate(HOSTILE)])
    out = capsys.readouterr().out
    assert out.count("\n") == len(HOSTILE) + 1
    assert all(c == "\n" or c.isprintable() for c in out)
    assert "\u202e" not in out


def test_numbers_stand_to_the_right_and_null_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["op", "n"], [["a", 5], ["bb", 1234], ["c", None]])
    assert capsys.readouterr().out.splitlines() == ["op     n", "a      5", "bb  1234", "c      –"]
    assert cell(0) == "0"


def test_csv_reads_back_and_neutralises_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    print_csv(["name", "n"], [["=1+1", -5], ["plain, with comma", None], ['quo"te', 2]])
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows == [["name", "n"], ["'=1+1", "-5"], ["plain, with comma", ""], ['quo"te', "2"]]


def test_json_is_ascii_and_lossless(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(HOSTILE)
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    assert json.loads(out) == HOSTILE
