"""Option values as people write them."""

from __future__ import annotations

from decimal import Decimal

import click
import pytest

from gpuaudit.cli.capture import exit_status
from gpuaudit.cli.values import Currency, Duration, Rate


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("1.5m", 90.0), ("2h", 7200.0), ("250ms", 0.25), (" 5 ", 5.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "-1", "1d", "nan", "inf", "1e3", "5 m"])
def test_no_durations(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)


def test_a_rate_is_exact_and_never_negative_or_infinite() -> None:
    assert Rate().convert("2.10", None, None) == Decimal("2.10")
    for text in ["-1", "nan", "Infinity", "two"]:
        with pytest.raises(click.BadParameter):
            Rate().convert(text, None, None)


def test_a_currency_is_three_capitals() -> None:
    assert Currency().convert("EUR", None, None) == "EUR"
    for text in ["eur", "EURO", "", "€"]:
        with pytest.raises(click.BadParameter):
            Currency().convert(text, None, None)


@pytest.mark.parametrize(("workload", "status"), [(None, 0), (0, 0), (7, 7), (-15, 143), (-9, 137)])
def test_capture_ends_with_the_status_of_its_command(workload: int | None, status: int) -> None:
    assert exit_status(workload) == status
