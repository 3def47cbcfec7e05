"""Segments: read by a decoder that shares no code with the writer, and the choices of encoding."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpuaudit.bundle import limits, segment
from gpuaudit.bundle.columns import ColumnData, Rows, concat, from_records, null_column
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.header import Header
from gpuaudit.bundle.table import Table
from gpuaudit.bundle.tables import TABLES
from tests.bundles import MemorySigner, gap_rows, leaves, open_writer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def header_of(table: Table, encoded: segment.Encoded) -> Header:
    return Header(
        1, "segment", "0" * 64, limits.SALT_BYTES + len(encoded.data), encoded.raw_len, encoded.rows, table.name,
        encoded.columns, "b", 1, 1, encoded.rows, encoded.rows, 0, "0" * 64,
    )  # fmt: skip


def round_trip(table: Table, rows: Rows) -> Rows:
    encoded = segment.encode(table, rows)
    return segment.decode(header_of(table, encoded), bytes(limits.SALT_BYTES) + encoded.data)


def cuda_rows(count: int) -> Rows:
    rng = np.random.default_rng(7)
    records = []
    start = 10**13
    for i in range(count):
        start += int(rng.integers(1, 50_000))
        op = ["cudaLaunchKernel", "cudaMalloc", "cudaStreamSynchronize"][i % 3]
        row: dict[str, object] = {
            "start_ns": start,
            "duration_ns": None if i % 97 == 5 else 2000 + i % 900,
            "pid": 400 + i % 2,
        }
        row |= {"tid": 400 + i % 8, "return_code": 0, "stream": 0x7F00_0000_0000 + 64 * (i % 4)}
        records.append(row | {"op": op, "size_bytes": 4096 if i % 3 == 1 else None, "cpu": i % 3, "seq": i})
    return from_records(TABLES["cuda_calls"], records)


def test_a_column_alone_with_zstd_and_a_dozen_lines_of_numpy(tmp_path: Path) -> None:
    """What bundle-format.md tells an implementer is enough to read any column of a real bundle."""
    import json

    rows = cuda_rows(1000)
    writer = open_writer(tmp_path / "bundle.db", MemorySigner())
    writer.append_segment(TABLES["cuda_calls"], rows, seen=1000, written=1000, lost=0)
    writer.seal({})
    writer.close()
    _, head, payload, _ = leaves(tmp_path / "bundle.db")[1]
    header = json.loads(head)
    n = header["rows"]
    seen = set()
    for c in header["columns"]:
        raw = zstd.decompress(payload[c["offset"] : c["offset"] + c["length"]])
        assert len(raw) == c["raw_len"]
        valid = np.ones(n, bool)
        if c["valid"]:
            valid = np.unpackbits(np.frombuffer(raw, "u1", (n + 7) // 8), bitorder="little")[:n].astype(bool)
            raw = raw[(n + 7) // 8 :]
        size = np.dtype(c["dtype"]).itemsize
        texts: list[str] = []
        if c["encoding"] == "dict":
            ends = np.cumsum(np.frombuffer(raw, "<u4", c["entries"])) + 4 * c["entries"]
            starts = [4 * c["entries"], *ends][: c["entries"]]  # a column that is null throughout has no entry
            texts = [raw[a:b].decode() for a, b in zip(starts, ends, strict=True)]
            raw = raw[-n * size :]
        body = np.frombuffer(raw[: n * size], "u1")
        values = body.reshape(size, n).T.tobytes() if c["shuffle"] else body.tobytes()
        array = np.frombuffer(values, c["dtype"])
        if c["encoding"] == "delta":
            array = np.cumsum(array, dtype=c["dtype"])
        got = [(texts[v] if texts else v) if ok else None for v, ok in zip(array.tolist(), valid.tolist(), strict=True)]
        assert got == rows[c["name"]].to_list(), c["name"]
        seen.add((c["encoding"], c["shuffle"], c["valid"]))
    assert {e for e, _, _ in seen} == {"plain", "delta", "dict"}
    assert any(valid for _, _, valid in seen)
    assert any(shuffle for _, shuffle, _ in seen)


def test_utf8_column_alone() -> None:
    import json

    rows = from_records(
        TABLES["gaps"], [{"start_ns": i, "source": "x", "reason": f"№ {i * i} — späť"} for i in range(50)]
    )
    encoded = segment.encode(TABLES["gaps"], rows)
    spec = json.loads(header_of(TABLES["gaps"], encoded).to_bytes())["columns"][-1]
    assert (spec["name"], spec["encoding"], spec["dtype"], spec["shuffle"]) == ("reason", "utf8", "<u4", True)
    at = spec["offset"] - limits.SALT_BYTES
    raw = zstd.decompress(encoded.data[at : at + spec["length"]])
    lengths = np.frombuffer(np.frombuffer(raw[:200], "u1").reshape(4, 50).T.tobytes(), "<u4")
    ends = np.cumsum(lengths) + 200
    assert [raw[e - n : e].decode() for e, n in zip(ends, lengths, strict=True)] == rows["reason"].to_list()


def test_every_frame_says_its_size_and_has_a_small_window() -> None:
    encoded = segment.encode(TABLES["cuda_calls"], cuda_rows(5000))
    for c in encoded.columns:
        frame = encoded.data[c.offset - limits.SALT_BYTES :][: c.length]
        assert zstd.get_frame_info(frame).decompressed_size == c.raw_len
        assert zstd.get_frame_info(frame).dictionary_id == 0
        window: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
        assert len(zstd.ZstdDecompressor(options=window).decompress(frame)) == c.raw_len


def test_large_column_stays_within_the_window() -> None:
    n = 1_200_000
    noise = np.random.default_rng(1).integers(0, 2**63, n).astype("<u8")
    rows = from_records(TABLES["clock"], [])
    rows = {k: ColumnData(noise.astype(c.values.dtype)) for k, c in rows.items()}
    back = round_trip(TABLES["clock"], rows)
    assert all((back[k].values == rows[k].values).all() for k in rows)


def test_null_is_not_zero_and_hides_no_value() -> None:
    values = np.array([5, 6, 7], dtype="<u4")
    rows = gap_rows(3)
    rows["pid"] = ColumnData(values, np.array([True, False, True]))
    back = round_trip(TABLES["gaps"], rows)
    assert back["pid"].to_list() == [5, None, 7]
    assert back["pid"].values.tolist() == [5, 0, 7]


def test_entries_that_no_row_uses_are_not_written() -> None:
    rows = gap_rows(40)
    codes = np.array([2] * 40, dtype="<u4")
    rows["source"] = ColumnData(codes, None, ("secret", "unused", "nvml"))
    encoded = segment.encode(TABLES["gaps"], rows)
    spec = next(c for c in encoded.columns if c.name == "source")
    assert spec.entries == 1
    assert round_trip(TABLES["gaps"], rows)["source"].dictionary == ("nvml",)


def test_equal_rows_have_equal_bytes() -> None:
    assert segment.encode(TABLES["cuda_calls"], cuda_rows(500)) == segment.encode(TABLES["cuda_calls"], cuda_rows(500))


def test_rows_that_are_not_the_table() -> None:
    rows = gap_rows(3)
    with pytest.raises(ValueError, match="columns are"):
        segment.encode(TABLES["clock"], rows)
    rows["pid"] = ColumnData(np.zeros(4, "<u4"))
    with pytest.raises(ValueError, match="differ in length"):
        segment.encode(TABLES["gaps"], rows)
    rows["pid"] = ColumnData(np.zeros(3, "<u8"))
    with pytest.raises(ValueError, match="dtype"):
        segment.encode(TABLES["gaps"], rows)


def test_too_many_rows() -> None:
    big = np.zeros(limits.MAX_ROWS + 1, dtype="<u8")
    rows = {c: ColumnData(big.astype(d.values.dtype)) for c, d in from_records(TABLES["clock"], []).items()}
    with pytest.raises(ValueError, match="more than"):
        segment.encode(TABLES["clock"], rows)


def test_payload_of_another_length() -> None:
    encoded = segment.encode(TABLES["gaps"], gap_rows(3))
    with pytest.raises(BundleInvalid, match="leaf 1: payload has"):
        segment.decode(header_of(TABLES["gaps"], encoded), encoded.data)


def test_dictionary_with_the_same_text_twice_is_written_with_one() -> None:
    """Two names that are no Unicode text may be escaped alike; a reader refuses an entry that stands twice."""
    rows = gap_rows(9)
    texts = ColumnData(np.array([0, 1, 2] * 3, dtype="<u4"), None, ("a", "b", "a"))
    back = round_trip(TABLES["gaps"], {**rows, "source": texts})
    assert back["source"].dictionary == ("a", "b")
    assert back["source"].to_list() == ["a", "b", "a"] * 3


def test_columns_without_values_are_written_as_ever() -> None:
    """However they are held, and whatever their type: same bytes, same nulls, also put together from parts."""
    table = TABLES["cuda_calls"]
    empty = {c.name: null_column(c, 700) for c in table.columns if c.nullable}
    assert {c.type for c in table.columns if c.nullable} >= {"u64", "u32", "i32", "f64", "text"}
    full = {
        name: ColumnData(np.array(c.values), np.array(c.valid), None if c.dictionary is None else ("a name",))
        for name, c in empty.items()
    }
    rows = cuda_rows(700)
    brief = concat([{**rows, **empty}, {**rows, **empty}])
    long = concat([{**rows, **full}, {**rows, **full}])
    assert brief["parent_ns"].values.strides == (0,)
    encoded = segment.encode(table, brief)
    assert encoded == segment.encode(table, long)
    for column, spec in zip(table.columns, encoded.columns, strict=True):
        plain, content = segment._encode_column(column.name, column.unit, long[column.name])
        assert replace(plain, offset=spec.offset, length=spec.length, raw_len=len(content)) == spec
    read = round_trip(table, brief)
    assert all(read[name].to_list() == [None] * 1400 for name in empty)
    mixed = concat([{**rows, **empty}, rows])
    assert mixed["size_bytes"].to_list() == [None] * 700 + rows["size_bytes"].to_list()
