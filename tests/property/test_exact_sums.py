"""Sums and differences of exported numbers are those of the decimals that were printed, however far apart."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze.inference.exact import decimal, difference, mean, number, peak, total

ANY = st.floats(allow_nan=True, allow_infinity=True)


def _known(values: list[float]) -> list[Fraction]:
    return [Fraction(repr(v)) for v in values if np.isfinite(v)]


@given(st.lists(ANY, max_size=30))
def test_sums_means_and_peaks(values: list[float]) -> None:
    known = _known(values)
    array = np.array(values, dtype=np.float64)
    assert total(array) == (sum(known, Fraction(0)) if known else None)
    assert mean(array) == (sum(known, Fraction(0)) / len(known) if known else None)
    assert peak(array) == (max(known) if known else None)


@given(ANY, ANY)
def test_differences(before: float, after: float) -> None:
    known = _known([before, after])
    assert difference(before, after) == (known[1] - known[0] if len(known) == 2 else None)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_reads_back_as_the_value_it_was(value: float) -> None:
    assert float(decimal(value)) == value
    assert number(value) == decimal(value)
