"""Digits are exact: half to even on fractions, never none where there is some."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze.finding import UNITS, Provenance, Quantity
from gpuaudit.bundle.rounding import _BY_UNIT, digits, duration, half_even, share, shown, significant, told, utc


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"), (1, "1 ns"), (999, "999 ns"), (1_000, "1.00 µs"), (1_005, "1.00 µs"), (1_015, "1.02 µs"),
        (999_499, "999 µs"), (999_500, "1.00 ms"), (30_250_000, "30.2 ms"), (30_350_000, "30.4 ms"),
        (59_999_999_999, "60.0 s"), (7_199 * 10**9, "7,199 s"), (7_200 * 10**9, "2.00 h"), (86_400 * 10**9, "24.0 h"),
        (Fraction(1, 3), "0.333 ns"),
    ],
)  # fmt: skip
def test_duration(ns: int | Fraction, text: str) -> None:
    assert duration(ns) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"), (1, "100 %"), (Fraction(1, 10_000), "< 0.1 %"), (Fraction(99_999, 100_000), "> 99.9 %"),
        (Fraction(1, 3), "33.3 %"), (Fraction(-1, 10_000), "> −0.1 %"),
        (Fraction(1, 1000), "0.1 %"), (Fraction(3, 2), "150.0 %"),
    ],
)  # fmt: skip
def test_share_is_never_rounded_to_none_or_all(value: int | Fraction, text: str) -> None:
    assert share(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (48_213, "count", "48,213"), (71 << 30, "bytes", "71.0 GiB"), (1023, "bytes", "1,023 B"),
        (612_000, "mW", "612 W"),
        (918_000_000, "gpu_ns", "918 GPU-ms"), (0, "gpu_ns", "0 GPU-ns"), (1_755, "MHz", "1,755 MHz"),
        (64, "°C", "64 °C"),
        (Fraction(7, 2), "ratio", "3.50 ×"), (Fraction(29_895, 1000), "USD", "29.90 USD"),
        (Fraction(1, 1200), "USD", "0.0008 USD"), (5, "widgets", "5.00 widgets"), (0, "USD", "0 USD"),
        (4, "USD/h", "4.00 USD/h"), (448_512, "USD/year", "448,512 USD/year"),
        (Fraction(4_709_376, 10), "USD/year", "470,938 USD/year"), (Fraction(35, 100), "USD/Mtoken",
         "0.3500 USD/1M tokens"),
        (989 * 10**12, "flop/s", "989 TFLOP/s"), (Fraction(29_522, 100), "flop/byte", "295 FLOP/byte"),
        (3_350 * 10**9, "bytes/s", "3.35 TB/s"), (64 * 10**9, "bytes/s", "64.0 GB/s"), (1, "token", "1 token"),
        (194_615, "token", "194,615 tokens"), (Fraction(163, 2), "token", "81.5 tokens"),
        (Fraction(4_810), "token/s", "4,810 tokens/s"), (0, "token/s", "0 tokens/s"),
        (Fraction(25, 2), "request/s", "12.5 requests/s"), (3, "prompt/s", "3.00 prompts/s"),
        (Fraction(1, 50), "1/s", "0.0200 per s"), (16, "bits", "16 bits"), (1, "bits", "1 bit"), (8, "GPU", "8 GPUs"),
        (Fraction(64, 5), "GPU", "12.8 GPUs"), (4_010, "mJ/token", "4.01 J/token"), (Fraction(1, 4), "token/J",
         "0.250 tokens/J"), (3_600_000, "mJ", "3.60 kJ"), (Fraction(-521, 100), "points", "−5.2 points"),
    ],
)  # fmt: skip
def test_units(value: int | Fraction, unit: str, text: str) -> None:
    assert shown(Quantity(value, unit, "measured")).text == text


def test_missing_is_not_zero() -> None:
    missing = Quantity(None, "ns", "measured", reason="ring full")
    assert shown(missing).text == "not recorded"
    assert told(missing) == "not recorded (ring full)"


@pytest.mark.parametrize("provenance", ["derived", "estimated", "assumed"])
def test_a_result_without_a_value_is_not_called_unrecorded(provenance: Provenance) -> None:
    assert told(Quantity(None, "share", provenance, reason="no denominator")) == "not known (no denominator)"


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_of_a_document_has_words_of_its_own(unit: str) -> None:
    assert unit in _BY_UNIT
    assert digits(0, unit)[0] == "0"
    assert digits(Fraction(-7, 3), unit)[0] == "−"


def test_exact_value_is_kept() -> None:
    assert shown(Quantity(Fraction(1, 3), "share", "derived")).exact == "1/3 share"


def test_utc() -> None:
    assert utc(1_795_312_000_000_000_000) == "2026-11-22 01:46:40.000 UTC"
    assert utc(-1) == "1970-01-01 00:00:00.000 UTC"
    with pytest.raises(ValueError, match="no date"):
        utc(10**30)


@given(st.fractions(min_value=-(10**15), max_value=10**15, max_denominator=10**9), st.integers(0, 6))
def test_half_even_is_decimal_half_even(value: Fraction, decimals: int) -> None:
    scaled = value * 10**decimals
    want = Decimal(round(scaled)).scaleb(-decimals)
    got = Decimal(half_even(value, decimals).replace(",", "").replace("−", "-"))
    assert got == want
    assert abs(Fraction(got) - value) <= Fraction(1, 2 * 10**decimals)


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_half_even_agrees_with_decimal(value: int, decimals: int) -> None:
    want = (Decimal(value) / 10**4).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_EVEN)
    assert Decimal(half_even(Fraction(value, 10**4), decimals).replace(",", "").replace("−", "-")) == want


@given(st.fractions(min_value=0, max_value=10**12, max_denominator=10**6))
def test_three_significant_digits_are_within_half_a_per_cent(value: Fraction) -> None:
    got = Fraction(significant(value).replace(",", ""))
    assert abs(got - value) <= value / 200 + Fraction(1, 10**12)
