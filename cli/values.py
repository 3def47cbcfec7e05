"""Types of option values that click does not have."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

import click

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) ?(%)?\Z", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}\Z")


class Duration(click.ParamType[float]):
    """A length of time as a person writes it (90, 90s, 1.5m, 2h), in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.match(str(value).strip())
        seconds = float(match[1]) * _SECONDS[match[2] or ""] if match else 0.0
        if not seconds > 0:
            self.fail(f"{value!r} is not a length of time above 0; write 90, 90s, 5m or 2h", param, ctx)
        return seconds


class Rate(click.ParamType[Decimal]):
    """A price per GPU-hour, exact."""

    name = "rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            rate = Decimal(str(value))
        except InvalidOperation:
            rate = Decimal(-1)
        if not rate.is_finite() or rate < 0:
            self.fail(f"{value!r} is not a price per GPU-hour; write for example 2.50", param, ctx)
        return rate


class Currency(click.ParamType[str]):
    """An ISO 4217 code: three capital letters."""

    name = "currency"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not _CURRENCY.match(str(value)):
            self.fail(f"{value!r} is not a currency code of three capital letters, such as EUR", param, ctx)
        return str(value)


class Share(click.ParamType[Fraction]):
    """A share from 0 to 1, exact, as a person writes it: 20%, 7.5 % or 0.2."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Fraction:
        if isinstance(value, Fraction):
            return value
        match = _SHARE.match(str(value).strip())
        share = Fraction(match[1]) / (100 if match[2] else 1) if match else Fraction(-1)
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not a share from 0% to 100%; write 20% or 0.2", param, ctx)
        return share


def decimal_text(value: Fraction) -> str:
    """A number with finitely many decimals, in full: products and sums of what a person types always have as many."""
    decimals = 0
    while (value * 10**decimals).denominator != 1:
        decimals += 1
    digits = str(abs(int(value * 10**decimals))).rjust(decimals + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[: len(digits) - decimals]}" + (f".{digits[len(digits) - decimals :]}" if decimals else "")
