"""What was published on how quantisation changes what a model says: a small dated table with citations.

A figure holds for the models it was measured on. For any other model, and where nothing is in the table, the answer is
"not known: measure".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from gpuaudit.analyze.csv_input import parse_sheet
from gpuaudit.analyze.matching import model_words

COLUMNS = ("method", "models", "measure", "effect", "source", "date")

NOT_KNOWN = "not known: measure"


@dataclass(frozen=True)
class Effect:
    """One published figure: a method, the models it was measured on (words of their names), and what came out."""

    method: str
    models: str
    measure: str
    effect: str
    source: str
    date: str

    def holds_for(self, model: str) -> bool:
        """Whether every word of ``models`` stands in the model's own name."""
        return frozenset(self.models.split()) <= model_words(model.replace("-", " ").replace("_", " "))


@cache
def effects() -> tuple[Effect, ...]:
    """The table, in the order of the file."""
    data = (resources.files("gpuaudit.analyze") / "catalog" / "quality.csv").read_bytes()
    rows = parse_sheet("quality.csv", data, COLUMNS).rows
    return tuple(
        Effect(r.text("method"), r.text("models"), r.text("measure"), r.text("effect"), r.text("source"), r.day("date"))
        for r in rows
    )


def quality(method: str, model: str | None) -> str:
    """One sentence: what was published for this model, or that it is not known, and what is known of others."""
    mine = [e for e in effects() if e.method == method]
    for e in mine:
        if model is not None and e.holds_for(model):
            return f"{e.effect} ({e.measure}; {e.source}, {e.date})"
    if not mine:
        return NOT_KNOWN
    others = "; ".join(f"{e.models}: {e.effect} ({e.measure}; {e.source}, {e.date})" for e in mine[:1])
    return f"{NOT_KNOWN}; published for other models, {others}"
