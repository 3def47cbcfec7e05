"""Asking NVML for one thing at a time: a value, or the code that says why there is none; never a silent zero.

A row's ``unavailable`` names each column without a value as ``column=code``: NVML's return code (3: the GPU does not
support it), or :data:`NOT_AVAILABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml  # type: ignore[import-untyped]

from gpuaudit.bundle import tables_nvml
from gpuaudit.bundle.table import Table

NOT_AVAILABLE = -1
"""NVML_VALUE_NOT_AVAILABLE of nvml.h: the call succeeds, and its value, all bits set, says that there is none. Told as
well for what cannot be a value: a negative number, one past its column, text that is not UTF-8."""

NOT_SUPPORTED = int(pynvml.NVML_ERROR_NOT_SUPPORTED)
GPU_IS_LOST = int(pynvml.NVML_ERROR_GPU_IS_LOST)

_SENTINEL = {32: (1 << 32) - 1, 64: (1 << 64) - 1}

_LARGEST = {
    c.name: (1 << int(c.type[1:])) - 1
    for table in vars(tables_nvml).values() if isinstance(table, Table)
    for c in table.columns if c.type in ("u8", "u16", "u32", "u64")
}  # fmt: skip
"""Largest value that a column can hold: one that does not fit would cost the rows beside it."""

Row = dict[str, object]
Call = Callable[[Any], int | Sequence[int]]


class NoValue(Exception):
    """A call brought no value; ``code`` as in a row's ``unavailable``."""

    def __init__(self, code: int) -> None:
        super().__init__(f"NVML code {code}")
        self.code = code


@dataclass(frozen=True)
class Reading:
    """Columns that one NVML call fills, and the call; ``bits`` is the width of NVML's type, which has the sentinel."""

    columns: tuple[str, ...]
    call: Call
    bits: int = 32


def one(column: str, call: Callable[[Any], int], bits: int = 32) -> Reading:
    """A column that is the one number of one call."""
    return Reading((column,), call, bits)


def code_of(error: BaseException) -> int:
    """NVML's code for what a call raised. Raises anything else again: that is a defect, not an answer."""
    if isinstance(error, NoValue):
        return error.code
    if isinstance(error, UnicodeDecodeError):  # the binding decodes what a garbled InfoROM or driver gives as text
        return NOT_AVAILABLE
    if isinstance(error, pynvml.NVMLError):
        return int(error.value)
    raise error


def read_into(row: Row, readings: Iterable[Reading], handle: Any) -> list[str]:
    """Fill ``row`` with what the device tells; what it does not tell as ``column=code``."""
    refused: list[str] = []
    for reading in readings:
        try:
            told = reading.call(handle)
        except Exception as e:
            code = code_of(e)
            refused += [f"{column}={code}" for column in reading.columns]
            continue
        values = (told,) if isinstance(told, int) else told
        for column, value in zip(reading.columns, values, strict=True):
            if value == _SENTINEL[reading.bits] or not fits(column, value):
                refused.append(f"{column}={NOT_AVAILABLE}")
            else:
                row[column] = int(value)
    return refused


def fits(column: str, value: int) -> bool:
    """Whether a number is one that the column can hold."""
    return 0 <= value <= _LARGEST[column]


def known(value: int, bits: int = 32) -> int | None:
    """A number out of an NVML structure, None where it is the sentinel."""
    return None if value == _SENTINEL[bits] else int(value)


def field_value(handle: Any, field_id: int) -> int:
    """One value of nvmlDeviceGetFieldValues, whose own return code counts."""
    (value,) = pynvml.nvmlDeviceGetFieldValues(handle, [field_id])
    return of_field(value)


def of_field(value: Any) -> int:
    """The number in an nvmlFieldValue_t; NoValue with its code. Fields that are no whole numbers are not asked for."""
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        raise NoValue(int(value.nvmlReturn))
    member = {
        pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
        pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    }.get(value.valueType)
    if member is None:
        raise NoValue(NOT_AVAILABLE)
    return int(getattr(value.value, member))


def text(value: str | bytes) -> str:
    """A name as text, whatever the binding returns."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
