"""Repeats: taken turn by turn, told as smallest, median and largest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of ``repeats`` values. With so few values anything finer would be invented."""

    low: float
    median: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of the values; ValueError when there is none."""
        found = sorted(values)
        if not found:
            raise ValueError("no values to take the spread of")
        return cls(found[0], statistics.median(found), found[-1], len(found))


def ratios(above: Iterable[float], below: Iterable[float]) -> Spread:
    """The spread of the quotients, each of two values of one repeat.

    Not a quotient of medians: what slowed the machine in one repeat slowed both sides of that quotient.
    ValueError for unequal numbers of values, or when a divisor is not positive.
    """
    pairs = list(zip(above, below, strict=True))
    if any(b <= 0 for _, b in pairs):
        raise ValueError(f"cannot divide by {min(b for _, b in pairs)}")
    return Spread.of(a / b for a, b in pairs)


def take_turns(
    ways: Mapping[str, Callable[[], T]], repeats: int, budget_s: float, now_s: Callable[[], float] = time.monotonic
) -> dict[str, list[T]]:
    """Call every way once per repeat, in an order that is reversed every other time; the results by way.

    Stops before ``repeats`` when another round as long as the longest would pass ``budget_s``; one is always made.
    """
    results: dict[str, list[T]] = {name: [] for name in ways}
    start_s, longest_s = now_s(), 0.0
    for turn in range(max(1, repeats)):
        began_s = now_s()
        if turn and began_s - start_s + longest_s > budget_s:
            break
        order = list(ways) if turn % 2 == 0 else list(ways)[::-1]
        for name in order:
            results[name].append(ways[name]())
        longest_s = max(longest_s, now_s() - began_s)
    return results
