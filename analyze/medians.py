"""The median as a quantity: of whole numbers, one of them, so that it is exact and somebody had it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.finding import Quantity


def median(
    values: npt.NDArray[Any], unit: str, rows: tuple[str, ...], how: str, none: str = "there is none"
) -> Quantity:
    """The value at rank ceil(n/2) of integers; ``none`` says why there is no value."""
    if not len(values):
        return Quantity(None, unit, "derived", rows, how, none)
    middle = (len(values) + 1) // 2 - 1
    return Quantity(int(np.partition(values, middle)[middle]), unit, "derived", rows, how)
