"""The report of the scenario, as text: a change of words, numbers, order or sections shows as a diff of a golden file.

``python -m tests.golden.test_report_structure`` writes the file anew; read the diff before committing it.
"""

from __future__ import annotations

import re
from pathlib import Path

from gpuaudit.report.html import render
from gpuaudit.report.view import build_view
from tests.documents import document

GOLDEN = Path(__file__).with_name("report_structure.html")


def structure() -> str:
    """The HTML without fonts, style, script and policy, and each figure as its title and a count of its shapes."""
    text = render(build_view(document())).decode()
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


def test_report_is_the_golden_one() -> None:
    assert structure() == GOLDEN.read_text(encoding="utf-8")


if __name__ == "__main__":
    GOLDEN.write_text(structure(), encoding="utf-8")
