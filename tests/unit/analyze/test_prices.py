"""Prices: whose they are is always told, and a file that is wrong in any line is refused with it."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.catalogue_rows import GPU_COLUMNS
from gpuaudit.analyze.load import parse_document
from gpuaudit.analyze.prices import PriceBook, PriceFile
from gpuaudit.analyze.run import AnalyzeOptions, analyze_store, document_bytes
from gpuaudit.bundle.errors import InputUnusable, UsageError
from gpuaudit.cli import analyze
from tests.scenes import T0, S, Scene
from tests.verifications import SEALED

CATALOGUE = Catalogue.load()
HEADER = "gpu,price_per_hour,currency,date,source"
H100 = "NVIDIA H100 80GB HBM3"
UUID = "GPU-5a1d0c3e-0000-4000-8000-000000000000"


def priced(folder: Path, *lines: str, header: str = HEADER) -> Path:
    path = folder / "prices.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def held() -> Scene:
    """A GPU that a process held for ten seconds."""
    return Scene().clock().process(7).samples(T0, T0 + 10 * S, pids=[7])


def book(path: Path, currency: str = "USD") -> PriceBook:
    return PriceBook.make(CATALOGUE, None, PriceFile.load(path, currency), currency)


def test_a_rate_is_the_price_of_every_gpu_and_assumed() -> None:
    price = PriceBook.make(CATALOGUE, Decimal("2.10"), None, "EUR").price_of("whatever")
    assert price is not None
    assert (price.per_hour, price.currency, price.provenance) == (Fraction(21, 10), "EUR", "assumed")
    assert price.label == "rate given by the user: 2.10 EUR per GPU-hour"


def test_the_catalogues_price_is_an_estimate_with_its_date() -> None:
    price = PriceBook(CATALOGUE).price_of(H100)
    assert price is not None
    assert (price.per_hour, price.currency, price.provenance) == (Fraction(299, 100), "USD", "estimated")
    assert price.label == "catalogue price of 2026-08-13 (est)"
    nvl = PriceBook(CATALOGUE).price_of("NVIDIA H100 NVL")
    assert nvl is not None
    assert nvl.label == "catalogue price of 2026-08-13 (est, doubtful)"


def test_without_a_price_there_is_none() -> None:
    assert PriceBook(CATALOGUE).price_of("NVIDIA GB10") is None
    assert PriceBook(CATALOGUE).price_of("Some GPU") is None
    assert PriceBook(CATALOGUE).price_of(None) is None
    assert PriceBook.make(CATALOGUE, None, None, "EUR").price_of(H100) is None, "the catalogue knows dollars"


def test_spot_prices_are_kept_and_never_used() -> None:
    row = next(p for p in CATALOGUE.prices if p.gpu == "H200")
    assert row.spot_per_hour == Fraction(5, 2)
    price = PriceBook(CATALOGUE).price_of("NVIDIA H200")
    assert price is not None
    assert price.per_hour == Fraction(439, 100)


def test_a_file_names_gpus_by_uuid_by_name_or_by_row(tmp_path: Path) -> None:
    path = priced(
        tmp_path, f"{UUID},1.5,USD,2026-11-01,contract 7", f"{H100},2.5,USD,2026-11-01,contract 7",
        "A100 80GB,1.25,USD,2026-11,list", "Unheard GPU,9,USD,2026-11,list",
    )  # fmt: skip
    found = book(path)
    told = {
        (H100, UUID): Fraction(3, 2), (H100, "GPU-x"): Fraction(5, 2), ("NVIDIA H100-SXM5-80GB", None): Fraction(5, 2),
        ("NVIDIA A100-SXM4-80GB", None): Fraction(5, 4), ("unheard gpu", None): Fraction(9),
    }  # fmt: skip
    for (name, uuid), value in told.items():
        price = found.price_of(name, uuid)
        assert price is not None, name
        assert (price.per_hour, price.provenance) == (value, "assumed")
    price = found.price_of(H100, UUID)
    assert price is not None
    assert price.label == "price of 2026-11-01 from prices.csv, line 2"
    assert found.price_of("NVIDIA H200") is None, "the catalogue does not fill the gaps of what a person said"
    assert found.listed is not None
    assert found.listed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.of_names({UUID: H100, "GPU-x": "NVIDIA H200"}) == {UUID: price}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"{H100},-2,USD,2026-11-01,x", "line 2: price_per_hour is '-2'"),
        (f"{H100},NaN,USD,2026-11-01,x", "line 2: price_per_hour is 'NaN'"),
        (f"{H100},Infinity,USD,2026-11-01,x", "line 2: price_per_hour is 'Infinity'"),
        (f"{H100},inf,USD,2026-11-01,x", "line 2: price_per_hour is 'inf'"),
        (f"{H100},0,USD,2026-11-01,x", "line 2: price_per_hour is 0"),
        (f"{H100},,USD,2026-11-01,x", "line 2: price_per_hour is ''"),
        (f"{H100},1000001,USD,2026-11-01,x", "line 2: price_per_hour is '1000001'"),
        (f"{H100},$2.99,USD,2026-11-01,x", "line 2: price_per_hour"),
        (f'{H100},"2,99",USD,2026-11-01,x', "line 2: price_per_hour"),
        (f"{H100},2.99,EUR,2026-11-01,x", "line 2: currency is 'EUR', expected USD"),
        (f"{H100},2.99,usd,2026-11-01,x", "line 2: currency is 'usd'"),
        (f"{H100},2.99,USD,11/01/2026,x", "line 2: date"),
        (f"{H100},2.99,USD,2026-11-01,", "line 2: source is empty"),
        (",2.99,USD,2026-11-01,x", "line 2: gpu is empty"),
        (f"{H100},2.99,USD,2026-11-01", "line 2: 4 cells, expected 5"),
        (f"{H100},2.99,USD,2026-11-01,x\n{H100.lower()},3,USD,2026-11-01,x", "line 3: .* has a price in line 2"),
        (f"{H100},2.99,USD,2026-11-01,x\nA,3,EUR,2026-11-01,x", "line 3: currency is 'EUR'"),
        ("", "line 2: no price"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(InputUnusable, match=f"prices.csv, {says.replace('$', '.')}"):
        PriceFile.load(priced(tmp_path, line), "USD")


def test_another_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputUnusable, match="line 1") as refused:
        PriceFile.load(priced(tmp_path, "H100,2", header="gpu,price"), "USD")
    assert HEADER in refused.value.hint


def test_the_file_is_in_the_currency_that_is_asked_for(tmp_path: Path) -> None:
    path = priced(tmp_path, f"{H100},2.5,EUR,2026-11-01,contract")
    price = book(path, "EUR").price_of(H100)
    assert price is not None
    assert price.currency == "EUR"
    with pytest.raises(InputUnusable) as refused:
        book(path)
    assert "--currency EUR" in refused.value.hint


def test_a_rate_and_a_file_contradict_each_other(tmp_path: Path) -> None:
    path = priced(tmp_path, f"{H100},2.5,USD,2026-11-01,contract")
    with pytest.raises(UsageError, match="both given"):
        PriceBook.make(CATALOGUE, Decimal(2), PriceFile.load(path, "USD"), "USD")


def test_the_command_refuses_a_wrong_file_before_it_reads_a_bundle(tmp_path: Path) -> None:
    path = priced(tmp_path, f"{H100},NaN,USD,2026-11-01,x")
    args = [str(tmp_path / "absent.db"), "--prices", str(path)]
    with pytest.raises(InputUnusable, match=r"prices\.csv, line 2") as refused:
        CliRunner().invoke(analyze.command, args, catch_exceptions=False, standalone_mode=False)
    assert refused.value.exit_code == 3


def test_what_was_given_stands_in_the_document(tmp_path: Path) -> None:
    """The digests of the price file and of the overlay, also after the document was written and read again."""
    listed = PriceFile.load(priced(tmp_path, f"{H100},3,USD,2026-11-01,contract"), "USD")
    ours = tmp_path / "ours.csv"
    ours.write_text(",".join(GPU_COLUMNS) + "\nOurs,,1000,100,,,,,,ours,,sheet,2026-11,0,\n", encoding="utf-8")
    options = AnalyzeOptions(prices=listed, catalogue=Catalogue.load([ours]))
    data = document_bytes(analyze_store(held().store(), SEALED, options))
    told = parse_document(data).options
    assert told["prices_sha256"] == listed.sha256
    assert told["catalogue_sha256"] == [hashlib.sha256(ours.read_bytes()).hexdigest()]
    assert told["currency"] == "USD"
    assert (
        parse_document(document_bytes(analyze_store(held().store(), SEALED, AnalyzeOptions()))).options["prices_sha256"]
        == ""
    )
