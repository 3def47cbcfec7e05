"""Cells of the logs of nvidia-smi and dcgmi: exact numbers in the units of our columns, or why there is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

import numpy as np

from gpuaudit.bundle.table import NUMPY_DTYPE
from gpuaudit.bundle.tables import TABLES

REFUSALS: dict[str, str] = {
    "n/a": "3", "[n/a]": "3", "[not supported]": "3", "not supported": "3", "[insufficient permissions]": "4",
    "[not found]": "6", "[gpu is lost]": "15", "[gpu requires reset]": "16", "[unknown error]": "999",
    "[unknown error!]": "999", "[no data]": "42",
}  # fmt: skip
"""What nvidia-smi writes instead of a value, and the NVML return code it stands for (nvmlReturn_t in nvml.h)."""

_MOST = {kind: int(np.iinfo(dtype).max) for kind, dtype in NUMPY_DTYPE.items() if kind not in {"f64", "text"}}

_NUMBER = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z%/]*)\Z")

Convert = Callable[[str], int]


class Unreadable(ValueError):
    """The cell is no value of its column; the text says why."""


def fitting(table: str, column: str, value: int | float) -> int | float:
    """The value, where its column can hold it: one that cannot must not take the rows beside it along."""
    if value > _MOST.get(TABLES[table].column(column).type, value):
        raise Unreadable(f"got {value:.40g}, which is more than {column} can be")
    return value


def scaled(factor: int, *units: str) -> Convert:
    """A number with one of ``units`` behind it, or none, times ``factor``; the result is rounded half to even."""

    def convert(cell: str) -> int:
        match = _NUMBER.match(cell)
        if match is None or (match[2] and match[2] not in units):
            raise Unreadable(f"got {cell!r:.40}, expected a number" + (f" in {units[0]}" if units else ""))
        return int((Decimal(match[1]) * factor).to_integral_value())

    return convert


def percent(cell: str) -> int:
    """0 to 100, with its unit or without."""
    value = scaled(1, "%")(cell)
    if value > 100:
        raise Unreadable(f"got {cell!r:.40}, expected at most 100 %")
    return value


def hexadecimal(cell: str) -> int:
    """A mask like 0x0000000000000004."""
    if not re.fullmatch(r"0x[0-9A-Fa-f]{1,16}", cell):
        raise Unreadable(f"got {cell!r:.40}, expected a mask like 0x4")
    return int(cell, 16)


def performance_state(cell: str) -> int:
    """P0 to P15."""
    if not re.fullmatch(r"P([0-9]|1[0-5])", cell):
        raise Unreadable(f"got {cell!r:.40}, expected P0 to P15")
    return int(cell[1:])


def word(words: dict[str, int]) -> Convert:
    """One of a few words, whatever their case."""

    def convert(cell: str) -> int:
        value = words.get(cell.lower())
        if value is None:
            raise Unreadable(f"got {cell!r:.40}, expected one of {', '.join(words)}")
        return value

    return convert


SWITCH = word({"enabled": 1, "disabled": 0, "yes": 1, "no": 0, "active": 1, "not active": 0, "1": 1, "0": 0})
COMPUTE_MODE = word({"default": 0, "exclusive_thread": 1, "prohibited": 2, "exclusive_process": 3})
COUNT = scaled(1)
PERCENT = percent
MIB = scaled(1 << 20, "MiB")
WATT = scaled(1000, "W")
CELSIUS = scaled(1, "C")
MEGAHERTZ = scaled(1, "MHz")
