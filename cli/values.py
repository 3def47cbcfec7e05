"""Types of option values that click does not have."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

import click

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
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
