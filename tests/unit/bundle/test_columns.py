"""Rows as columns: what is accepted, what is refused, and hostile text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpuaudit.bundle.columns import ColumnData, check_rows, concat, from_records, row_count, text_column
from gpuaudit.bundle.tables import TABLES

CLOCK = {"start_ns": 1, "duration_ns": 2, "realtime_ns": -3, "monotonic_ns": 2**64 - 1}


def test_extremes_are_kept() -> None:
    rows = from_records(TABLES["clock"], [CLOCK, {**CLOCK, "realtime_ns": -(2**63)}])
    assert rows["monotonic_ns"].to_list() == [2**64 - 1] * 2
    assert rows["realtime_ns"].to_list() == [-3, -(2**63)]
    assert check_rows(TABLES["clock"], rows) == row_count(rows) == 2


def test_missing_nullable_is_null_and_never_zero() -> None:
    rows = from_records(TABLES["gaps"], [{"start_ns": 1, "source": "nvml", "reason": "r", "pid": 0}, {
        "start_ns": 2, "source": "nvml", "reason": "r", "pid": None,
    }])  # fmt: skip
    assert rows["pid"].to_list() == [0, None]
    assert rows["table_name"].to_list() == [None, None]
    assert (rows["pid"].is_null(0), rows["pid"].is_null(1)) == (False, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"start_ns": None}, "null in row 0"),
        ({"start_ns": -1}, "does not fit u64"),
        ({"monotonic_ns": 2**64}, "does not fit u64"),
        ({"start_ns": 1.0}, "expected u64"),
        ({"start_ns": "1"}, "expected u64"),
        ({"no_such": 1}, "unknown columns"),
    ],
)
def test_values_that_do_not_fit(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_records(TABLES["clock"], [{**CLOCK, **change}])


def test_missing_column_that_has_no_nulls() -> None:
    with pytest.raises(ValueError, match="null in row 0"):
        from_records(TABLES["clock"], [{"start_ns": 1}])


def test_no_rows() -> None:
    rows = from_records(TABLES["cuda_calls"], [])
    assert check_rows(TABLES["cuda_calls"], rows) == 0


def test_text_that_is_not_unicode_stays_readable() -> None:
    name = b"evil\xff\xfe".decode("utf-8", "surrogateescape")
    column = text_column([name, None, "evil", name])
    assert column.to_list() == ["evil\\udcff\\udcfe", None, "evil", "evil\\udcff\\udcfe"]
    assert column.dictionary == ("evil\\udcff\\udcfe", "evil")


def test_text_that_is_no_text() -> None:
    with pytest.raises(ValueError, match="row 1 holds a int"):
        text_column(["a", 5])  # type: ignore[list-item]


def test_concat_joins_dictionaries() -> None:
    parts = [{"a": text_column(["x", None])}, {"a": text_column([None])}, {"a": text_column(["y", "x"])}]
    assert concat(parts)["a"].to_list() == ["x", None, None, "y", "x"]
    assert concat([]) == {}
    with pytest.raises(ValueError, match="different columns"):
        concat([{"a": text_column([])}, {"b": text_column([])}])


def test_code_past_the_dictionary() -> None:
    rows = from_records(TABLES["gaps"], [{"start_ns": 1, "source": "s", "reason": "r"}])
    rows["source"] = ColumnData(np.array([1], dtype="<u4"), None, ("only",))
    with pytest.raises(ValueError, match="past the dictionary"):
        check_rows(TABLES["gaps"], rows)
