"""What vendors say of GPUs, publishers of models and clouds of prices: dated facts, where nothing was recorded.

What an engine or its files tell beats the catalogue, and what is computed from the catalogue is labelled estimated. An
overlay is a CSV file of the same columns that a user gives; its rows come before ours, its SHA-256 goes into the
findings, and what is computed from it is labelled assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TypeVar

from gpuaudit.analyze.catalogue_rows import (
    GPU_COLUMNS,
    MODEL_COLUMNS,
    PRICE_COLUMNS,
    GpuRow,
    ModelRow,
    PriceRow,
    gpu_row,
    model_row,
    price_row,
)
from gpuaudit.analyze.csv_input import Row, Sheet, parse_sheet, read_sheet
from gpuaudit.analyze.finding import Provenance
from gpuaudit.analyze.matching import best, gpu_words, model_words, release_words

T = TypeVar("T")
Found = TypeVar("Found", GpuRow, ModelRow)


@dataclass(frozen=True)
class Overlay:
    """A file of rows that a user gave: what it holds, and the digest that pins it."""

    name: str
    sha256: str
    kind: str
    rows: int


@dataclass(frozen=True)
class Catalogue:
    """Rows of the package, after those of the user's overlays; make it with :meth:`load`."""

    gpus: tuple[GpuRow, ...]
    models: tuple[ModelRow, ...]
    prices: tuple[PriceRow, ...]
    overlays: tuple[Overlay, ...] = ()

    @classmethod
    def load(cls, overlays: Sequence[Path] = ()) -> Catalogue:
        """The catalogue of this version with the user's overlays before it; InputUnusable names a wrong line."""
        out = _packaged()
        for path in overlays:
            sheet = read_sheet(path, GPU_COLUMNS, MODEL_COLUMNS)
            if sheet.columns == GPU_COLUMNS:
                gpus = _unique(sheet, lambda r: gpu_row(r, "user"), lambda g: g.name)
                out = Catalogue(gpus + out.gpus, out.models, out.prices, (*out.overlays, _pinned(sheet, "gpus")))
            else:
                models = _unique(sheet, lambda r: model_row(r, "user"), lambda m: m.name)
                out = Catalogue(out.gpus, models + out.models, out.prices, (*out.overlays, _pinned(sheet, "models")))
        return out

    def gpu(self, name: str | None) -> GpuRow | None:
        """The row that explains the whole name a GPU gives itself (NVML); None in any doubt."""
        return _user_first(self.gpus, gpu_words(name or ""), frozenset())

    def model(self, name: str | None) -> ModelRow | None:
        """The row that explains the whole name a model is served under, without its publisher; None in any doubt."""
        return _user_first(self.models, model_words(name or ""), release_words(name or ""))

    def price(self, gpu: GpuRow | None) -> PriceRow | None:
        """The on-demand price of a product, None where it is not listed."""
        return None if gpu is None else next((p for p in self.prices if p.gpu == gpu.name), None)

    def clashes(self) -> list[str]:
        """Rows that their own words do not find, or not alone, and prices of products that no row has."""
        out = []
        for kind, rows in (("GPU", self.gpus), ("model", self.models)):
            for origin in ("user", "catalogue"):
                mine = [r for r in rows if r.origin == origin]
                out += [
                    f"{kind} {r.name!r}: the words {' '.join(sorted(words))} do not find this row alone"
                    for r in mine
                    for words in r.pattern.alternatives
                    if best(mine, words) is not r
                ]
        names = {g.name for g in self.gpus}
        return out + [f"price of {p.gpu!r}: no GPU of this name" for p in self.prices if p.gpu not in names]


def _user_first(rows: Sequence[Found], words: frozenset[str], spare: frozenset[str]) -> Found | None:
    """The best row of the user's, else of ours."""
    mine = best([r for r in rows if r.origin == "user"], words, spare)
    return mine if mine is not None else best([r for r in rows if r.origin == "catalogue"], words, spare)


def provenance(row: GpuRow | ModelRow) -> Provenance:
    """What a number computed with this row may call itself."""
    return "estimated" if row.origin == "catalogue" else "assumed"


@cache
def _packaged() -> Catalogue:
    folder = resources.files("gpuaudit.analyze") / "catalog"

    def sheet(name: str, columns: Sequence[str]) -> Sheet:
        return parse_sheet(name, (folder / name).read_bytes(), columns)

    return Catalogue(
        _unique(sheet("gpus.csv", GPU_COLUMNS), lambda r: gpu_row(r, "catalogue"), lambda g: g.name),
        _unique(sheet("models.csv", MODEL_COLUMNS), lambda r: model_row(r, "catalogue"), lambda m: m.name),
        _unique(sheet("prices.csv", PRICE_COLUMNS), price_row, lambda p: p.gpu),
    )


def _unique(sheet: Sheet, make: Callable[[Row], T], key: Callable[[T], str]) -> tuple[T, ...]:
    seen: dict[str, int] = {}
    out = []
    for row in sheet.rows:
        made = make(row)
        if key(made) in seen:
            raise row.refuse(f"{key(made)!r} stands in line {seen[key(made)]} already")
        seen[key(made)] = row.line
        out.append(made)
    return tuple(out)


def _pinned(sheet: Sheet, kind: str) -> Overlay:
    return Overlay(sheet.name, sheet.sha256, kind, len(sheet.rows))
