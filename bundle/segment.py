"""Rows as bytes: one zstd frame per column, each of which can be read alone.

A column's content is its validity bitmap (only where it has nulls; least significant bit first), then by encoding:
``plain`` the values; ``delta`` the first value, then differences modulo the width; ``dict`` the lengths (``<u4``) of
the entries, their UTF-8 bytes, the codes; ``utf8`` the lengths (``<u4``) of the values, then their UTF-8 bytes. With
``shuffle`` the fixed-width part (values, codes or lengths) is transposed: first every row's first byte, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from gpuaudit.bundle import limits, zstd
from gpuaudit.bundle.columns import ColumnData, Rows, check_rows
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.header import ColumnSpec, Encoding, Header
from gpuaudit.bundle.table import NUMPY_DTYPE, Table

_SAMPLE_ROWS = 4096
"""Rows on which the ways to write a numeric column are tried; enough for zstd level 1 to tell them apart."""


Buffer = bytes | memoryview


@dataclass(frozen=True)
class Encoded:
    """The data of a segment without its salt, and how it lies: ``columns`` have offsets that include the salt."""

    data: bytes
    columns: tuple[ColumnSpec, ...]
    raw_len: int
    rows: int


def encode(table: Table, rows: Rows, between: Callable[[], None] | None = None) -> Encoded:
    """Encode ``rows``, which must be what ``table`` declares; ValueError otherwise, or when they are too many.

    ``between`` is called after each column: for what cannot wait until all are done.
    """
    count = check_rows(table, rows)
    if count > limits.MAX_ROWS:
        raise ValueError(f"{table.name}: {count} rows in one segment, more than {limits.MAX_ROWS}")
    specs: list[ColumnSpec] = []
    frames: list[bytes] = []
    at = limits.SALT_BYTES
    nulls: dict[int, bytes] = {}
    for column in table.columns:
        data = rows[column.name]
        if count and data.valid is not None and not data.valid.any():  # many columns of a table of calls are
            spec, length = _null_column(column.name, column.unit, data)
            frame = nulls.get(length) or nulls.setdefault(length, zstd.compress(bytes(length)))
        else:
            spec, content = _encode_column(column.name, column.unit, data)
            frame, length = zstd.compress(content), len(content)
        specs.append(replace(spec, offset=at, length=len(frame), raw_len=length))
        frames.append(frame)
        at += len(frame)
        if between is not None:
            between()
    raw_len = sum(s.raw_len for s in specs)
    if raw_len > limits.MAX_RAW_BYTES:
        raise ValueError(f"{table.name}: {raw_len} bytes in one segment, more than {limits.MAX_RAW_BYTES}")
    return Encoded(b"".join(frames), tuple(specs), raw_len, count)


def _null_column(name: str, unit: str, data: ColumnData) -> tuple[ColumnSpec, int]:
    """The spec (places still 0) of a column without any value, and the length of its content: zeros."""
    dtype = NUMPY_DTYPE["u8"] if data.dictionary is not None else _dtype_name(data.values)
    size = np.dtype(dtype).itemsize
    entries = None if data.dictionary is None else 0
    encoding: Encoding = "plain" if data.dictionary is None else "dict"
    spec = ColumnSpec(name, dtype, unit, encoding, size > 1, True, entries, 0, 0, 0)
    return spec, -(-len(data) // 8) + len(data) * size


def _encode_column(name: str, unit: str, data: ColumnData) -> tuple[ColumnSpec, Buffer]:
    """The spec (places still 0) and the uncompressed content of one column, not copied where it need not be."""
    valid = data.valid if data.valid is not None and not data.valid.all() else None
    values = data.values
    if valid is not None and _has_value_under_null(values, valid):
        values = np.where(valid, values, values.dtype.type(0))
    bitmap = b"" if valid is None else np.packbits(valid, bitorder="little").tobytes()
    spec = ColumnSpec(name, NUMPY_DTYPE["u8"], unit, "plain", False, valid is not None, None, 0, 0, 0)
    if data.dictionary is None:
        encoding, shuffle = _choose(values)
        spec = replace(spec, dtype=_dtype_name(values), encoding=encoding, shuffle=shuffle)
        fixed = _fixed(values, encoding, shuffle)
        return spec, b"".join([bitmap, fixed]) if bitmap else fixed
    codes, entries = _used(values, valid, data.dictionary)
    texts = [e.encode("utf-8") for e in entries]
    present = len(values) if valid is None else int(valid.sum())
    if len(entries) * 2 > present:
        each = [texts[c] for c in codes.tolist()] if valid is None else _spread(codes, valid, texts)
        spec = replace(spec, dtype="<u4", encoding="utf8", shuffle=True)
        return spec, b"".join([bitmap, _fixed(_lengths(each), "plain", True), *each])
    codes = codes.astype("<u1" if len(entries) <= 1 << 8 else "<u2" if len(entries) <= 1 << 16 else "<u4")
    shuffle = codes.dtype.itemsize > 1
    spec = replace(spec, dtype=_dtype_name(codes), encoding="dict", shuffle=shuffle, entries=len(entries))
    return spec, b"".join([bitmap, _lengths(texts).tobytes(), *texts, _fixed(codes, "plain", shuffle)])


def _dtype_name(values: np.ndarray) -> str:
    return f"<{values.dtype.kind}{values.dtype.itemsize}"


def _lengths(texts: Sequence[bytes]) -> np.ndarray:
    return np.array([len(t) for t in texts], dtype="<u4")


def _spread(codes: np.ndarray, valid: np.ndarray, texts: Sequence[bytes]) -> list[bytes]:
    return [texts[c] if v else b"" for c, v in zip(codes.tolist(), valid.tolist(), strict=True)]


def _used(codes: np.ndarray, valid: np.ndarray | None, entries: tuple[str, ...]) -> tuple[np.ndarray, list[str]]:
    """Codes and entries, each entry once and none that no valid row uses: what is not evidence is not written."""
    recode: np.ndarray
    if len(set(entries)) != len(entries):  # two names that are not text may have been escaped alike
        first: dict[str, int] = {}
        recode = np.array([first.setdefault(e, len(first)) for e in entries], dtype="<u4")
        codes, entries = recode[codes], tuple(first)
    hits = np.bincount(codes if valid is None else codes[valid], minlength=len(entries)) > 0
    if hits.all():
        return codes, list(entries)
    recode = (np.cumsum(hits) - hits).astype("<u4")
    if not hits.any():
        return np.zeros_like(codes), []
    codes = recode[codes] if valid is None else np.where(valid, recode[codes], np.uint32(0))
    return codes, [e for e, hit in zip(entries, hits.tolist(), strict=True) if hit]


def _choose(values: np.ndarray) -> tuple[Encoding, bool]:
    """Which encoding makes a sample from the middle of the column smallest."""
    if values.dtype.itemsize == 1 or not len(values):
        return "plain", False
    start = max(0, (len(values) - _SAMPLE_ROWS) // 2)
    sample = np.ascontiguousarray(values[start : start + _SAMPLE_ROWS])
    if (sample == sample[0]).all():
        return "plain", True
    ways: list[tuple[Encoding, bool]] = [("plain", True), ("plain", False)]
    if values.dtype.kind != "f":
        ways.append(("delta", True))
    return min(ways, key=lambda way: len(zstd.compress(_fixed(sample, *way))))


def _fixed(values: np.ndarray, encoding: Encoding, shuffle: bool) -> Buffer:
    """The fixed-width part of a column's content, as bytes or a contiguous array of bytes."""
    size = values.dtype.itemsize
    bits = np.ascontiguousarray(values).view(f"<u{size}")
    if encoding == "delta" and len(bits):
        bits = np.concatenate([bits[:1], bits[1:] - bits[:-1]])
    return _shuffle(bits) if shuffle and size > 1 else bits.data.cast("B") if len(bits) else b""


def _shuffle(bits: np.ndarray) -> Buffer:
    """The byte transpose of unsigned integers; byte planes that do not vary are filled instead of gathered."""
    rows, size = len(bits), bits.dtype.itemsize
    if not rows:
        return b""
    varies = int(np.bitwise_or.reduce(bits ^ bits[0]))
    first = int(bits[0])
    planes = np.empty((size, rows), dtype=np.uint8)
    table = bits.view(np.uint8).reshape(rows, size)
    for i in range(size):
        planes[i] = table[:, i] if varies >> (8 * i) & 0xFF else first >> (8 * i) & 0xFF
    return planes.reshape(-1).data


def decode(header: Header, payload: bytes | memoryview, columns: Sequence[str] | None = None) -> Rows:
    """The rows of a payload whose digest was found to be the header's; all columns, or those named in ``columns``.

    BundleInvalid, naming the leaf and column, for bytes that are not what the header says. Bytes of an unknown origin
    belong into :class:`gpuaudit.bundle.guard.Decoder`, which calls this in a child process with limits.
    """
    if header.columns is None or header.rows is None:
        raise BundleInvalid(f"leaf {header.idx}: kind {header.kind} holds no rows")
    if len(payload) != header.len:
        raise BundleInvalid(f"leaf {header.idx}: payload has {len(payload)} bytes, the header says {header.len}")
    out: Rows = {}
    for spec in header.columns:
        if columns is not None and spec.name not in columns:
            continue
        frame = memoryview(payload)[spec.offset : spec.offset + spec.length]
        try:
            out[spec.name] = _decode_column(spec, header.rows, zstd.decompress(frame, spec.raw_len))
        except BundleInvalid as e:
            raise BundleInvalid(f"leaf {header.idx}: column {spec.name}: {e.message}") from None
    return out


def _decode_column(spec: ColumnSpec, rows: int, content: bytes) -> ColumnData:
    at = 0
    valid = None
    if spec.valid:
        at = (rows + 7) // 8
        packed = np.frombuffer(content, np.uint8, at)
        valid = np.unpackbits(packed, bitorder="little", count=rows).view(bool)
        if rows % 8 and packed[-1] >> rows % 8:
            raise BundleInvalid("its validity bitmap has bits past the last row")
    if spec.encoding == "utf8":
        lengths = _values(content[at : at + 4 * rows], spec, rows)
        _check_nulls(lengths, valid)
        texts = _texts(content, at + 4 * rows, lengths, len(content))
        codes: dict[str, int] = {}
        present = valid.tolist() if valid is not None else [True] * rows
        out = [codes.setdefault(t, len(codes)) if v else 0 for t, v in zip(texts, present, strict=True)]
        return ColumnData(np.array(out, dtype=NUMPY_DTYPE["text"]), valid, tuple(codes))
    if spec.encoding == "dict":
        entries = spec.entries or 0
        width = np.dtype(spec.dtype).itemsize
        lengths = np.frombuffer(content, "<u4", entries, at)
        end = len(content) - rows * width
        texts = _texts(content, at + 4 * entries, lengths, end)
        values = _values(content[end:], spec, rows).astype(NUMPY_DTYPE["text"])
        _check_nulls(values, valid)
        used = values if valid is None else values[valid]
        if len(used) and int(used.max()) >= entries:
            raise BundleInvalid(f"a code is past the dictionary of {entries}")
        if len(set(texts)) != entries or not np.bincount(used, minlength=entries).all():
            raise BundleInvalid("an entry of its dictionary stands twice, or is not used")
        return ColumnData(values, valid, tuple(texts))
    values = _values(content[at:], spec, rows)
    _check_nulls(values, valid)
    return ColumnData(values, valid)


def _check_nulls(values: np.ndarray, valid: np.ndarray | None) -> None:
    """A null hides nothing: no two readers may see different values in one place."""
    if valid is not None and _has_value_under_null(values, valid):
        raise BundleInvalid("a null has a value")


def _has_value_under_null(values: np.ndarray, valid: np.ndarray) -> bool:
    bits = values.view(f"<u{values.dtype.itemsize}")  # -0.0 is a value
    return bool(np.greater(bits != 0, valid).any())


def _values(content: bytes, spec: ColumnSpec, rows: int) -> np.ndarray:
    """The fixed-width part: undo the transpose, then the differences."""
    size = np.dtype(spec.dtype).itemsize
    bits = np.frombuffer(content, f"<u{size}")
    if spec.shuffle and size > 1:
        bits = _unshuffle(np.frombuffer(content, np.uint8).reshape(size, rows))
    if spec.encoding == "delta":
        bits = np.cumsum(bits, dtype=bits.dtype)
    return bits.view(spec.dtype)


def _unshuffle(planes: np.ndarray) -> np.ndarray:
    """Unsigned integers from their byte planes; planes of zeros, which are most, are not scattered."""
    size, rows = planes.shape
    table = np.zeros((rows, size), dtype=np.uint8)
    for i in range(size):
        if planes[i].any():
            table[:, i] = planes[i]
    return table.reshape(-1).view(f"<u{size}")


def _texts(content: bytes, start: int, lengths: np.ndarray, end: int) -> list[str]:
    """Strings of the given lengths that lie one after the other from ``start`` and must fill it up to ``end``."""
    if start + int(lengths.sum(dtype=np.uint64)) != end:
        raise BundleInvalid("the lengths of its texts do not add up to its size")
    ends = list(accumulate(lengths.tolist(), initial=start))
    try:
        return [content[a:b].decode("utf-8") for a, b in pairwise(ends)]
    except UnicodeDecodeError:
        raise BundleInvalid("a text is not UTF-8") from None
