"""Values of NVML for rules and sections: aligned with a GPU's samples, as series of one table, or why there is none.

Null stands as :data:`~gpuaudit.analyze.gpu_time.UNKNOWN` in arrays; every NVML value is at least 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.gpu_time import UNKNOWN, GpuTime, bounded
from gpuaudit.analyze.store import Store, quoted
from gpuaudit.bundle.tables import TABLES

Array = npt.NDArray[np.int64]

RETURN_CODES: dict[int, str] = {
    -1: "told as not available",
    1: "NVML not initialised", 2: "invalid argument", 3: "not supported", 4: "no permission", 6: "not found",
    8: "insufficient external power", 9: "driver not loaded", 10: "timeout", 11: "interrupt problem",
    13: "function not in this driver", 14: "InfoROM is corrupted", 15: "GPU is lost", 16: "GPU needs a reset",
    17: "operating system refused", 18: "library and driver do not match", 20: "memory", 21: "no data",
    25: "argument version not known", 26: "no longer offered", 27: "not ready", 999: "unknown error",
}  # fmt: skip
"""What nvmlReturn_t of nvml.h means, in our words."""

_REFUSED = re.compile(r"([a-z0-9_]{1,64})=(-?\d{1,10})")


@dataclass(frozen=True)
class Device:
    """A physical GPU that has rows in a table."""

    uuid: str
    index: int

    @property
    def where(self) -> str:
        """SQL condition for its rows."""
        return f"gpu_uuid = {quoted(self.uuid)}"

    @property
    def name(self) -> str:
        """Index and UUID, as findings name a GPU."""
        return f"{self.index} ({self.uuid})"


def devices(store: Store, *tables: str) -> list[Device]:
    """Physical GPUs with rows in at least one of ``tables``, by index and UUID; rows of MIG devices do not count."""
    parts = []
    for table in tables:
        physical = "parent_uuid IS NULL" if any(c.name == "parent_uuid" for c in TABLES[table].columns) else "true"
        parts.append(f"SELECT gpu_uuid, gpu_index FROM {table} WHERE {physical}")
    rows = store.sql(
        f"SELECT gpu_uuid, min(gpu_index) FROM ({' UNION ALL '.join(parts)}) GROUP BY gpu_uuid ORDER BY 2, 1"
    )
    return [Device(str(uuid), int(index)) for uuid, index in rows]


def of_samples(store: Store, gpu: GpuTime, columns: Sequence[str]) -> dict[str, Array]:
    """Columns of ``nvml_samples``, one entry per entry of ``gpu.starts``."""
    chosen = ", ".join(f"{bounded(c)} AS {c}" for c in columns)
    return store.arrays(f"SELECT {chosen} FROM nvml_samples WHERE {gpu.where} ORDER BY start_ns, leaf, row")


def series(store: Store, table: str, where: str, columns: Sequence[str]) -> dict[str, Array]:
    """``start_ns`` and columns of the rows of ``table`` that meet a condition, in order of time."""
    chosen = ", ".join(f"{bounded(c)} AS {c}" for c in columns)
    return store.arrays(
        f"SELECT start_ns::BIGINT AS start_ns, {chosen} FROM {table} WHERE {where} ORDER BY start_ns, leaf, row"
    )


def last_told(values: Array) -> int | None:
    """The last value that is not null."""
    told = values[values != UNKNOWN]
    return int(told[-1]) if len(told) else None


def growth(values: Array) -> int | None:
    """How much a counter grew between its first and last reading, None with less than two of them.

    A value below the one before means that the counter began anew (the driver was loaded again): it grew by that value.
    """
    told = values[values != UNKNOWN]
    if len(told) < 2:
        return None
    steps = np.diff(told)
    return sum(int(v) for v in np.where(steps >= 0, steps, told[1:]).tolist())


def refusal(store: Store, table: str, where: str, column: str) -> str:
    """Why ``column`` is null in the rows that meet a condition: NVML's return code in words, or that none was read."""
    rows = store.sql(
        f"SELECT unavailable FROM {table} WHERE {where} AND {column} IS NULL AND contains(unavailable, '{column}=') "
        "ORDER BY start_ns DESC, leaf DESC, row DESC LIMIT 1"
    )
    codes = dict(_REFUSED.findall(str(rows[0][0]))) if rows else {}
    if column in codes:
        code = int(codes[column])
        return f"{RETURN_CODES.get(code, 'refused')} (NVML code {code})"
    present: list[tuple[Any, ...]] = store.sql(f"SELECT 1 FROM {table} WHERE {where} LIMIT 1")
    return "not read by this recorder" if present else f"no row in {table}"
