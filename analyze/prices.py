"""What a GPU-hour costs: a rate that a person gave, a price file pinned by its hash, or the catalogue, in that order.

A price file is CSV with the header ``gpu,price_per_hour,currency,date,source``. ``gpu`` is the UUID of a GPU, the name
that NVML gives it, or the name of a row of the catalogue; the most exact line counts. All lines have the currency that
was asked for. A wrong line is refused with its number: a price that is nearly right makes a report that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.csv_input import Row, read_sheet
from gpuaudit.analyze.finding import Provenance
from gpuaudit.analyze.money import MAX_RATE, Rate
from gpuaudit.bundle.errors import UsageError

COLUMNS = ("gpu", "price_per_hour", "currency", "date", "source")


@dataclass(frozen=True)
class Price:
    """Price of one hour of one GPU. ``label`` says whose it is, in words that stand beside every amount from it."""

    per_hour: Fraction
    currency: str
    provenance: Provenance
    label: str
    date: str = ""
    source: str = ""


@dataclass(frozen=True)
class PriceLine:
    """One line of a price file."""

    gpu: str
    per_hour: Fraction
    date: str
    source: str
    line: int


@dataclass(frozen=True)
class PriceFile:
    """Prices that a person gave, in one currency; ``sha256`` pins the file."""

    name: str
    sha256: str
    currency: str
    lines: tuple[PriceLine, ...]

    @classmethod
    def load(cls, path: Path, currency: str) -> PriceFile:
        """Read a price file; InputUnusable names the line that is wrong, negative, doubled or in another currency."""
        sheet = read_sheet(path, COLUMNS)
        seen: dict[str, int] = {}
        lines = []
        for row in sheet.rows:
            line = _line(row, currency)
            key = line.gpu.lower()
            if key in seen:
                raise row.refuse(f"{line.gpu!r} has a price in line {seen[key]} already")
            seen[key] = row.line
            lines.append(line)
        if not lines:
            raise Row(sheet.name, 2, {}).refuse("no price", "give one line per GPU")
        return cls(sheet.name, sheet.sha256, currency, tuple(lines))


def _line(row: Row, currency: str) -> PriceLine:
    price = row.positive("price_per_hour")
    if price is None or price > Fraction(MAX_RATE):
        raise row.refuse(
            f"price_per_hour is {row.cells['price_per_hour'].strip()!r}, expected a number above 0, at most {MAX_RATE}"
        )
    told = row.text("currency")
    if told != currency:
        raise row.refuse(f"currency is {told!r}, expected {currency}", f"prices are in one currency; --currency {told}")
    return PriceLine(row.text("gpu"), price, row.day("date"), row.text("source"), row.line)


@dataclass(frozen=True)
class PriceBook:
    """Prices of GPUs in one currency, from the best of what there is."""

    catalogue: Catalogue = field(default_factory=Catalogue.load)
    rate: Rate | None = None
    listed: PriceFile | None = None
    currency: str = "USD"

    @classmethod
    def make(cls, catalogue: Catalogue, rate: Decimal | None, listed: PriceFile | None, currency: str) -> PriceBook:
        """From what was asked for; UsageError where a rate and a price file are given together."""
        if rate is not None and listed is not None:
            raise UsageError("--rate and --prices are both given", hint="one of them says what a GPU-hour costs")
        return cls(catalogue, Rate(rate, currency) if rate is not None else None, listed, currency)

    @property
    def given(self) -> bool:
        """Whether a person said what GPUs cost."""
        return self.rate is not None or self.listed is not None

    def price_of(self, gpu_name: str | None, uuid: str | None = None) -> Price | None:
        """The price of a GPU by the name NVML gives it and its UUID; None where nobody has one.

        A file that does not list a GPU leaves it without a price: the catalogue does not fill the gaps of what a
        person said.
        """
        if self.rate is not None:
            label = f"rate given by the user: {self.rate.per_hour:f} {self.rate.currency} per GPU-hour"
            return Price(Fraction(self.rate.per_hour), self.rate.currency, "assumed", label)
        if self.listed is not None:
            return self._of_file(self.listed, gpu_name, uuid)
        row = self.catalogue.price(self.catalogue.gpu(gpu_name))
        if row is None or row.currency != self.currency:
            return None
        doubt = ", doubtful" if row.doubtful else ""
        label = f"catalogue price of {row.date} (est{doubt})"
        return Price(row.per_hour, row.currency, "estimated", label, row.date, row.source)

    def of_names(self, names: Mapping[str, str]) -> dict[str, Price]:
        """Price by UUID of the GPUs (UUID → name) that have one."""
        found = {uuid: self.price_of(name, uuid) for uuid, name in names.items()}
        return {uuid: price for uuid, price in found.items() if price is not None}

    def _of_file(self, listed: PriceFile, gpu_name: str | None, uuid: str | None) -> Price | None:
        line = _exact(listed, uuid) or _exact(listed, gpu_name) or self._same_product(listed, gpu_name)
        if line is None:
            return None
        label = f"price of {line.date} from {listed.name}, line {line.line}"
        return Price(line.per_hour, listed.currency, "assumed", label, line.date, line.source)

    def _same_product(self, listed: PriceFile, gpu_name: str | None) -> PriceLine | None:
        """The one line that names the same product of the catalogue in other words."""
        row = self.catalogue.gpu(gpu_name)
        if row is None:
            return None
        found = [x for x in listed.lines if x.gpu == row.name or self.catalogue.gpu(x.gpu) is row]
        named = [x for x in found if x.gpu == row.name]
        return named[0] if named else found[0] if len(found) == 1 else None


def _exact(listed: PriceFile, text: str | None) -> PriceLine | None:
    return next((x for x in listed.lines if text and x.gpu.lower() == text.lower()), None)
