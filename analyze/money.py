"""GPU time as money, with the rate that a person gave: exact, and never more than an assumption.

``rate`` is a price per GPU-hour in ``currency``; 1 GPU-hour is 3.6e12 GPU-nanoseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from gpuaudit.analyze.finding import Quantity
from gpuaudit.bundle.errors import UsageError

NS_PER_HOUR = 3_600_000_000_000

MAX_RATE = Decimal(1_000_000)
"""A GPU-hour for more than a million is a slip of the keyboard, in any currency."""

MAX_DECIMALS = 9
"""No currency's GPU-hour is priced finer; without a limit 1e-999999 would be a million digits in every row."""

_CURRENCY = re.compile(r"[A-Z]{3}\Z")


@dataclass(frozen=True)
class Rate:
    """Price of one GPU-hour."""

    per_hour: Decimal
    currency: str

    def __post_init__(self) -> None:
        if not self.per_hour.is_finite() or not 0 < self.per_hour <= MAX_RATE:
            raise UsageError(
                f"rate {self.per_hour} is not a price per GPU-hour", hint=f"give a number above 0, at most {MAX_RATE}"
            )
        exponent = self.per_hour.as_tuple().exponent
        if isinstance(exponent, int) and exponent < -MAX_DECIMALS:
            raise UsageError(f"rate {str(self.per_hour)[:40]} has more than {MAX_DECIMALS} decimals", hint="round it")
        if not _CURRENCY.match(self.currency):
            raise UsageError(
                f"currency {self.currency!r} is not a code", hint="give three capital letters (ISO 4217), as USD"
            )

    def of(self, gpu_ns: int, evidence: tuple[str, ...]) -> Quantity:
        """What ``gpu_ns`` costs, exactly."""
        value = Fraction(self.per_hour) * gpu_ns / NS_PER_HOUR
        return Quantity(value, self.currency, "assumed", evidence, "gpu_time / 3.6e12 × rate")
