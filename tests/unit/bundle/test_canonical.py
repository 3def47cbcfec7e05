"""Canonical JSON: vectors of RFC 8785 and of ECMA-262, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import BundleInvalid


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        # RFC 8785, appendix B
        (0.0, "0"), (-0.0, "0"), (5e-324, "5e-324"), (-5e-324, "-5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"), (9007199254740992.0, "9007199254740992"),
        (-9007199254740992.0, "-9007199254740992"), (295147905179352830000.0, "295147905179352830000"),
        (9.999999999999997e22, "9.999999999999997e+22"), (1e23, "1e+23"),
        (1.0000000000000001e23, "1.0000000000000001e+23"),
        (999999999999999700000.0, "999999999999999700000"), (999999999999999900000.0, "999999999999999900000"),
        (1e21, "1e+21"), (9.999999999999997e-7, "9.999999999999997e-7"), (0.000001, "0.000001"),
        (333333333.3333332, "333333333.3333332"), (333333333.33333325, "333333333.33333325"),
        (-0.0000033333333333333333, "-0.0000033333333333333333"), (1424953923781206.2, "1424953923781206.2"),
        (4.5, "4.5"), (0.002, "0.002"), (1e-27, "1e-27"), (100.0, "100"), (1e20, "100000000000000000000"),
        (7, "7"), (-7, "-7"), (2**53 - 1, "9007199254740991"), (True, "true"), (None, "null"),
    ],
)  # fmt: skip
def test_numbers_and_literals(value: Any, wanted: str) -> None:
    assert canonical.dumps(value).decode() == wanted


def test_strings_of_the_rfc() -> None:
    """RFC 8785, section 3.2.2: the example with every kind of escape."""
    value = '\u20ac$\u000f\nA\'B"\\\\"/'
    assert canonical.dumps(value) == b'"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'
    assert canonical.dumps("\x7f\u2028") == b'"\x7f\xe2\x80\xa8"'


def test_keys_of_the_rfc() -> None:
    """RFC 8785, section 3.2.3: sorted by UTF-16 code units, so that U+1F600 stands before U+FB33."""
    value = dict.fromkeys(["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"], 0)
    order = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(canonical.loads(canonical.dumps(value))) == order


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 2**53, -(2**53), {1: 2}, {"a": {1, 2}}, b"x", "\ud800", {"\udfff": 1}, [object()]],
)
def test_what_cannot_be_held(value: Any) -> None:
    with pytest.raises(ValueError, match="canonical JSON"):
        canonical.dumps(value)


def test_what_is_too_deep() -> None:
    deep: Any = 0
    for _ in range(canonical.MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(ValueError, match="nested deeper"):
        canonical.dumps(deep)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[1,]", b'{"a":1,"a":1}', b"NaN", b"-Infinity", b"1e999", b"9007199254740992", b"9" * 5000,
        b'"\\ud800"', b'{"\\udc00":1}', b"\xff", b"\xef\xbb\xbf1", b'{"a":1} x', b"[" * 100 + b"]" * 100,
        b"[" * 200_000, b"'a'", b"\x00",
    ],
)  # fmt: skip
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(BundleInvalid) as caught:
        canonical.loads(data)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("data", [b"1.0", b"-0", b" 1", b'{"b":1,"a":2}', b'"\\u0041"', b"1E2", b'{"a": 1}'])
def test_what_is_not_in_canonical_form(data: bytes) -> None:
    canonical.loads(data)
    with pytest.raises(BundleInvalid, match="not in canonical form"):
        canonical.loads_canonical(data)
