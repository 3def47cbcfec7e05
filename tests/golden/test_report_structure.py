"""Two reports as text: a change of words, numbers, order or sections shows as a diff of a golden file.

They are made from documents of the tests, not from an analysis, so that they change when the printing changes and not
when a rule does. ``python -m tests.golden.test_report_structure`` writes the files anew; read the diff before
committing it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuaudit.analyze.finding import Document
from gpuaudit.report.html import render
from gpuaudit.report.view import build_view
from tests.documents import document
from tests.engine_documents import engine_document

GOLDEN: dict[str, Callable[[], Document]] = {
    "report_structure.html": document,
    "engine_structure.html": engine_document,
}
FOLDER = Path(__file__).parent


def structure(document: Document) -> str:
    """The HTML without fonts, style, script and policy, and each figure as its title and a count of its shapes."""
    text = render(build_view(document)).decode()
    text = re.sub(r"<style>.*?</style>", "<style/>", text, flags=re.S)
    text = re.sub(r"<script>.*?</script>", "<script/>", text, flags=re.S)
    text = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', '<meta http-equiv="Content-Security-Policy">', text
    )
    return re.sub(r"<svg .*?</svg>", _figure, text, flags=re.S)


def _figure(match: re.Match[str]) -> str:
    svg = match[0]
    title = re.search(r"<title>.*?</title>", svg)
    labels = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    counts = {tag: len(re.findall(rf"<{tag} ", svg)) for tag in ("rect", "path", "text")}
    return f"<svg>{title[0] if title else ''}\n{counts}\n{' | '.join(labels)}</svg>"


@pytest.mark.parametrize("name", GOLDEN)
def test_report_is_the_golden_one(name: str) -> None:
    assert structure(GOLDEN[name]()) == (FOLDER / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    for file, made in GOLDEN.items():
        (FOLDER / file).write_text(structure(made()), encoding="utf-8")
