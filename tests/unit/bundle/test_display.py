"""Texts chosen by the audited side are shown, never obeyed."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.bundle.display import csv_cell, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("train.py --lr 3e-4", "train.py --lr 3e-4"),
        ("naïve – Zürich µs", "naïve – Zürich µs"),
        ("a\x1b[31mb", "a\\u{1b}[31mb"),
        ("line\nnext\ttab\x00", "line\\u{a}next\\u{9}tab\\u{0}"),
        ("gpj\u202egnp.exe", "gpj\\u{202e}gnp.exe"),
        ("a\u00a0b\u2003c\u3000d", "a\\u{a0}b\\u{2003}c\\u{3000}d"),
        ("\u2066x\u2069\ufeff\u200b", "\\u{2066}x\\u{2069}\\u{feff}\\u{200b}"),
        ("\ue000\udcff", "\\u{e000}\\u{dcff}"),
        ("שלום 12", "\\u{5e9}\\u{5dc}\\u{5d5}\\u{5dd} 12"),
        ("\u3164\u2800", "\\u{3164}\\u{2800}"),
        ("a\u0301\u0302\u0303", "a\u0301\u0302\\u{303}"),
        ("fake \\u{202e}", "fake \\u{5c}u{202e}"),
        ("C:\\users", "C:\\users"),
        ("", ""),
    ],
)
def test_printable_shows_what_is_there(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_cap_counts_what_it_left_out() -> None:
    assert printable("x" * 10_000) == "x" * 512 + "… (+9488 characters)"
    assert printable("\x01" * 10, limit=12) == "\\u{1}\\u{1}… (+8 characters)"
    assert printable("x" * 512) == "x" * 512


def test_glyphs_outside_the_fonts_are_escaped() -> None:
    assert printable("日a", glyphs={ord("a")}) == "\\u{65e5}a"
    assert printable("~", glyphs=set()) == "~"


@given(st.text(max_size=60))
def test_nothing_that_acts_survives(text: str) -> None:
    for char in printable(text):
        assert char == " " or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
        assert unicodedata.bidirectional(char) not in {"R", "AL", "AN", "RLO", "RLE", "RLI"}


@given(st.text(max_size=30), st.text(max_size=30))
def test_different_texts_never_look_the_same(one: str, other: str) -> None:
    assert (printable(one) == printable(other)) == (one == other)


@given(st.text(alphabet="\\u{5c}20ab\u202e\x00", max_size=12), st.text(alphabet="\\u{5c}20ab\u202e\x00", max_size=12))
def test_escapes_cannot_be_forged(one: str, other: str) -> None:
    assert (printable(one) == printable(other)) == (one == other)


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "＝1", "\r\n=1", "|x"])
def test_csv_cell_is_never_a_formula(text: str) -> None:
    assert csv_cell(text).startswith("'")


@pytest.mark.parametrize("text", ["python3", "", "   ", "a=b", "0"])
def test_csv_cell_leaves_plain_text(text: str) -> None:
    assert csv_cell(text) == text
