"""The pages that follow from the kept result: the reference page, and the table in the README.

``python -m bench --markdown`` writes them; with ``--check`` it says which of them is out of step.
"""

from __future__ import annotations

from pathlib import Path

from bench import printing
from bench.result import Result
from gpuaudit.bundle.errors import InputUnusable

ROOT = Path(__file__).resolve().parents[1]
KEPT = "bench/results/figures.json"
REFERENCE = "docs/reference/figures.md"
README = "README.md"
BEGIN, END = "<!-- figures: python -m bench --markdown -->\n", "<!-- /figures -->\n"


def make(root: Path = ROOT) -> dict[str, str]:
    """File name → what it should hold. InputUnusable when the result or the README's marks are missing."""
    kept = root / KEPT
    if not kept.is_file():
        raise InputUnusable(f"there is no {KEPT}", hint=f"measure first: {printing.REPEAT}")
    result = Result.from_json(kept.read_text("utf-8"), KEPT)
    pages = {REFERENCE: printing.markdown(result)}
    readme = root / README
    if readme.is_file():
        pages[README] = _between_marks(readme.read_text("utf-8"), printing.extract(result))
    return pages


def stale(root: Path = ROOT) -> list[str]:
    """Names of the pages that are missing or hold something else."""
    pages = make(root)
    return [n for n, text in pages.items() if not (root / n).is_file() or (root / n).read_text("utf-8") != text]


def write(root: Path = ROOT) -> list[str]:
    """Bring the pages into step; names of those that changed."""
    changed = stale(root)
    pages = make(root)
    for name in changed:
        (root / name).write_text(pages[name], "utf-8")
    return changed


def _between_marks(text: str, table: str) -> str:
    before, mark, rest = text.partition(BEGIN)
    _, closing, after = rest.partition(END)
    if not mark or not closing:
        raise InputUnusable(f"{README} lacks the marks {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}{table}{END}{after}"
