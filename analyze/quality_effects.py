"""What was published on how quantisation changes what a model says: a small dated table with citations.

A figure holds for the models it was measured on, and not for what others made of them: a name with a word more (chat,
distill, a tuner's name, another type of weights) is another model. For any other model, and where nothing is in the
table, the answer is "not known: measure". Dates are those of the publication that has the figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from gpuaudit.analyze.csv_input import parse_sheet
from gpuaudit.analyze.matching import own_words

COLUMNS = ("method", "models", "also", "measure", "effect", "source", "date")

NOT_KNOWN = "not known: measure"


@dataclass(frozen=True)
class Effect:
    """One published figure: a method, the models it was measured on, and what came out.

    ``models`` are words that their names have, ``also`` words that they may have.
    """

    method: str
    models: str
    also: str
    measure: str
    effect: str
    source: str
    date: str

    def holds_for(self, model: str) -> bool:
        """Whether the model's own name has every word of ``models``, and no word that is not in either list."""
        words, needed = own_words(model), frozenset(self.models.split())
        return needed <= words and words - needed <= frozenset(self.also.split())


@cache
def effects() -> tuple[Effect, ...]:
    """The table, in the order of the file."""
    data = (resources.files("gpuaudit.analyze") / "catalog" / "quality.csv").read_bytes()
    rows = parse_sheet("quality.csv", data, COLUMNS).rows
    return tuple(
        Effect(
            r.text("method"), r.text("models"), r.text("also"), r.text("measure"), r.text("effect"), r.text("source"),
            r.day("date"),
        )
        for r in rows
    )  # fmt: skip


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
