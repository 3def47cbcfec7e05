"""Columns of ring tables that no record holds: user space derives them from the record's other fields."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpuaudit.bundle.columns import ColumnData, null_column
from gpuaudit.bundle.table import NUMPY_DTYPE
from gpuaudit.bundle.tables import TABLES

PREEMPTED, BLOCKED = "preempted", "blocked"

REQUEST_OPERATIONS: dict[int, str] = {0: "read", 1: "write", 2: "flush", 3: "discard"}
"""REQ_OP_* of include/linux/blk_types.h; the others are seldom and called other."""

LIFECYCLE_EVENTS = ("fork", "exec", "exit", "signal")
"""``event`` of a lifecycle record."""


def _choice(codes: np.ndarray, texts: tuple[str, ...]) -> ColumnData:
    return ColumnData(codes.astype(NUMPY_DTYPE["text"]), None, texts)


def _switch(records: np.ndarray) -> ColumnData:
    return _choice(records["prev_state"] != 0, (PREEMPTED, BLOCKED))


def _request(records: np.ndarray) -> ColumnData:
    return _choice(np.minimum(records["operation"], len(REQUEST_OPERATIONS)), (*REQUEST_OPERATIONS.values(), "other"))


def _direction(records: np.ndarray) -> ColumnData:
    return _choice(records["receive"] != 0, ("send", "receive"))


def _reclaim(records: np.ndarray) -> ColumnData:
    return _choice(records["cgroup_limit"] != 0, ("host", "cgroup"))


def _event(records: np.ndarray) -> ColumnData:
    return _choice(np.minimum(records["event"], len(LIFECYCLE_EVENTS)), (*LIFECYCLE_EVENTS, "other"))


def _no_correlation(records: np.ndarray) -> ColumnData:
    """Probes see no CUPTI record, whose number it is."""
    return null_column(TABLES["cuda_calls"].column("correlation"), len(records))


_MAKERS: dict[tuple[str, str], Callable[[np.ndarray], ColumnData]] = {
    ("cuda_calls", "correlation"): _no_correlation,
    ("off_cpu", "op"): _switch,
    ("block_io", "op"): _request,
    ("socket_io", "op"): _direction,
    ("reclaims", "op"): _reclaim,
    ("lifecycle", "op"): _event,
}


def added_column(table: str, column: str, records: np.ndarray) -> ColumnData:
    """The column from drained records of the table; KeyError for one that nobody makes."""
    return _MAKERS[table, column](records)
