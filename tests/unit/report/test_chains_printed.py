"""Chains of a real analysis as they are printed: phrases as words, names as names, and letters that the fonts have."""

from __future__ import annotations

import pytest

from gpuaudit.analyze.finding import Document
from gpuaudit.analyze.load import parse_document
from gpuaudit.analyze.run import document_bytes
from gpuaudit.report.html import render
from gpuaudit.report.text import plain
from gpuaudit.report.view import build_view
from tests.chain_scenes import two_chains


@pytest.fixture(scope="module")
def document() -> Document:
    """As a report gets it: through the file."""
    return parse_document(document_bytes(two_chains().document()))


def test_every_letter_of_ours_is_in_the_fonts(document: Document) -> None:
    page = render(build_view(document)).decode()
    at = page.find("\\u{")
    assert at < 0, page[max(at - 200, 0) : at + 20]


def test_every_table_of_shares_is_all_of_its_effect(document: Document) -> None:
    shown = [s.chain.shares for s in build_view(document).statements if s.chain is not None and s.chain.shares]
    assert len(shown) >= 2
    for table in shown:
        assert [plain(c.text) for c in table.rows[-1]][2] == "100 %"
        assert plain(table.rows[-2][0].text) == "unexplained"
        assert table.caption.startswith("Where the time went, each moment once: the ")


def test_an_effect_is_words_of_the_sentence(document: Document) -> None:
    sentence = next(
        s.sentence for s in build_view(document).statements if s.chain is not None and plain(s.title) == "Preempted"
    )
    (effect,) = [p for p in sentence if p.text.startswith("the 4 slow calls of cudaMalloc")]
    assert effect.kind == "prose"
