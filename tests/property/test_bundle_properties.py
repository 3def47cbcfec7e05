"""Round trips and equivalences that hold for every input."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuaudit.bundle import canonical, limits, note, sealfile, segment
from gpuaudit.bundle.columns import ColumnData, Rows, concat, from_records
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.guard import Decoder
from gpuaudit.bundle.header import ColumnSpec, Header, parse
from gpuaudit.bundle.merkle import EMPTY_ROOT, Frontier, leaf_hash, node_hash
from gpuaudit.bundle.table import Column, ColumnType, Table
from tests.bundles import MemorySigner

SAFE = canonical.MAX_SAFE_INTEGER
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-SAFE, SAFE) | text | st.floats(-1e15, 1e15, allow_nan=False),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=20,
)


@given(json_values)
@QUICK
def test_canonical_round_trip(value: Any) -> None:
    data = canonical.dumps(value)
    assert canonical.loads(data) == value
    assert canonical.loads_canonical(data) == value
    assert json.loads(data) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=300, deadline=None)
def test_canonical_numbers_keep_every_bit(value: float) -> None:
    data = canonical.dumps(value)
    assert float(data) == value
    assert len(data) <= 25
    digits = data.decode().lstrip("-").partition("e")[0].replace(".", "").strip("0")
    assert (
        len(digits) == len(f"{value:.17g}".lstrip("-").partition("e")[0].replace(".", "").strip("0"))
        or len(digits) < 17
    )


@given(st.dictionaries(text, st.integers(0, 9), max_size=8))
@QUICK
def test_canonical_keys_are_in_utf16_order(value: dict[str, int]) -> None:
    keys = list(json.loads(canonical.dumps(value)))
    assert keys == sorted(keys, key=lambda k: k.encode("utf-16-be"))


@given(st.binary(max_size=60) | text.map(str.encode) | json_values.map(lambda v: json.dumps(v).encode()))
@settings(max_examples=200, deadline=None)
def test_json_is_parsed_or_refused(data: bytes) -> None:
    try:
        value = canonical.loads(data)
    except BundleInvalid:
        return
    again = canonical.loads(canonical.dumps(value))
    assert again == value


_RANGE: dict[str, tuple[int, int]] = {
    "u8": (0, 2**8 - 1), "u16": (0, 2**16 - 1), "u32": (0, 2**32 - 1), "u64": (0, 2**64 - 1),
    "i32": (-(2**31), 2**31 - 1), "i64": (-(2**63), 2**63 - 1),
}  # fmt: skip
TYPES: list[ColumnType] = ["u8", "u16", "u32", "u64", "i32", "i64", "f64", "text"]
ALL = Table("every_type", "One column of each type.", tuple(
    Column(f"{t}_{'null' if nullable else 'full'}", t, "", "", nullable=nullable)
    for t in TYPES for nullable in (False, True)
))  # fmt: skip


def _value(column: Column) -> st.SearchStrategy[Any]:
    if column.type == "text":
        base: st.SearchStrategy[Any] = st.sampled_from(["", "a", "ncclAllReduce"]) | text
    elif column.type == "f64":
        base = st.floats(width=64)
    else:
        low, high = _RANGE[column.type]
        base = st.integers(low, high) | st.sampled_from([low, high, 0])
    return st.none() | base if column.nullable else base


records = st.lists(st.fixed_dictionaries({c.name: _value(c) for c in ALL.columns}), max_size=30)


def _header(encoded: segment.Encoded) -> Header:
    payload_len = limits.SALT_BYTES + len(encoded.data)
    return Header(
        7, "segment", "ab" * 32, payload_len, encoded.raw_len, encoded.rows, ALL.name, encoded.columns,
        "5f0c5a4e-8b1c-4d8e-9a55-0d6cf6a5b0aa", 2**63 - 1, 1, 2**64 - 1, encoded.rows, 0, "cd" * 32,
    )  # fmt: skip


def _same(got: ColumnData, wanted: ColumnData) -> bool:
    def bits(v: Any) -> Any:
        return struct.pack("<d", v) if isinstance(v, float) and math.isnan(v) else v

    return [bits(v) for v in got.to_list()] == [bits(v) for v in wanted.to_list()]


@given(records)
@QUICK
def test_segment_round_trip(rows: list[dict[str, Any]]) -> None:
    wanted = from_records(ALL, rows)
    encoded = segment.encode(ALL, wanted)
    header = parse(_header(encoded).to_bytes(), 7)
    assert header == _header(encoded)
    got = segment.decode(header, bytes(limits.SALT_BYTES) + encoded.data)
    assert list(got) == [c.name for c in ALL.columns]
    assert all(_same(got[n], wanted[n]) for n in wanted)
    assert all(c.valid is None or not c.values[~c.valid].any() for c in got.values() if c.dictionary is None)


@given(st.lists(records, min_size=1, max_size=3))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_concat_is_the_rows_one_after_the_other(parts: list[list[dict[str, Any]]]) -> None:
    joined: Rows = concat([from_records(ALL, p) for p in parts])
    wanted = from_records(ALL, [r for p in parts for r in p])
    assert all(_same(joined[n], wanted[n]) for n in wanted)


@pytest.fixture(scope="module")
def decoder() -> Any:
    with Decoder() as d:
        yield d


@given(rows=records)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_child_decodes_what_the_parent_would(decoder: Decoder, rows: list[dict[str, Any]]) -> None:
    encoded = segment.encode(ALL, from_records(ALL, rows))
    payload = bytes(limits.SALT_BYTES) + encoded.data
    here = segment.decode(_header(encoded), payload)
    there = decoder.decode(_header(encoded), payload)
    assert list(there) == list(here)
    assert all(_same(there[n], here[n]) and there[n].values.dtype == here[n].values.dtype for n in here)


@given(records, st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_malformed_segments_are_decoded_or_refused(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    encoded = segment.encode(ALL, from_records(ALL, rows))
    payload = bytearray(bytes(limits.SALT_BYTES) + encoded.data)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(limits.SALT_BYTES, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = segment.decode(_header(encoded), bytes(payload))
    except BundleInvalid:
        return
    assert all(len(c) == len(rows) for c in got.values())


@given(st.binary(min_size=1, max_size=4), st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_malformed_headers_are_refused(noise: bytes, at: int) -> None:
    encoded = segment.encode(ALL, from_records(ALL, []))
    data = bytearray(_header(encoded).to_bytes())
    at %= len(data)
    data[at : at + len(noise)] = noise
    try:
        again = parse(bytes(data), 7)
    except BundleInvalid as e:
        assert e.message.startswith("leaf 7: ")  # noqa: PT017
        return
    assert again.to_bytes() == bytes(data)


def naive_root(leaves: list[bytes]) -> bytes:
    """The definition of RFC 6962, section 2.1, as it is written there."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(naive_root(leaves[:k]), naive_root(leaves[k:]))


@given(st.lists(st.binary(max_size=8), max_size=70))
@QUICK
def test_roots_are_those_of_rfc_6962(leaves: list[bytes]) -> None:
    frontier = Frontier()
    for n, leaf in enumerate(leaves):
        assert frontier.root() == naive_root(leaves[:n])
        assert frontier.root_with(leaf_hash(leaf)) == naive_root(leaves[: n + 1])
        frontier.append(leaf_hash(leaf))
    assert (frontier.size, frontier.root()) == (len(leaves), naive_root(leaves))


SIGNER = MemorySigner()
names = st.text("abcXYZ019._-", min_size=1, max_size=12).map("s".__add__)
origins = st.builds("{}/{}/{}".format, names, names, st.uuids())


@given(origins, st.integers(0, 2**40), st.binary(min_size=32, max_size=32))
@QUICK
def test_note_round_trip(origin: str, size: int, root: bytes) -> None:
    words = note.checkpoint_text(origin, size, root)
    made = [note.sign(words, f"{origin}/epoch/{size}", SIGNER), note.sign(words, f"{origin}/identity", SIGNER)]
    assert note.parse(note.assemble(words, made)) == (words, made)
    assert all(note.verifies(s, words, s.name, SIGNER.public_key) for s in made)
    assert not note.verifies(made[0], words, made[1].name, SIGNER.public_key)
    assert not note.verifies(made[0], words + "x\n", made[0].name, SIGNER.public_key)
    assert base64.b64decode(made[0].to_line().split(" ")[2])[:4] == made[0].key_id


@given(st.integers(0, 10**4), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_changed_note_is_another_note(at: int, value: int) -> None:
    words = note.checkpoint_text("a/b/c", 3, bytes(32))
    whole = note.assemble(words, [note.sign(words, "a/b/c/epoch/2", SIGNER)])
    data = bytearray(whole.encode())
    data[at % len(data)] = value
    try:
        parsed = note.parse(bytes(data).decode())
    except (BundleInvalid, UnicodeDecodeError):
        return
    good = parsed[0] == words and note.verifies(parsed[1][0], words, "a/b/c/epoch/2", SIGNER.public_key)
    assert good == (bytes(data) == whole.encode())


@given(
    origins,
    st.integers(1, 10**6),
    st.none() | st.dictionaries(st.integers(0, 99), st.just("ab" * 32), min_size=1, max_size=4),
)
@QUICK
def test_seal_file_round_trip(origin: str, size: int, withheld: dict[int, str] | None) -> None:
    words = sealfile.record_text(origin, size, bytes(32), file_sha256="cd" * 32, file_len=4096, withheld=withheld)
    signatures = [note.sign(words, f"{origin}/identity", SIGNER)]
    (record,) = sealfile.parse(sealfile.assemble([note.assemble(words, signatures)]).encode())
    assert (record.origin, record.size, record.file_len, record.withheld) == (origin, size, 4096, withheld or {})
    assert record.text == words


@given(st.binary(max_size=300) | text.map(lambda t: f"gpu-audit file v1\n{t}\n\n— a {t}\n\n".encode()))
@settings(max_examples=150, deadline=None)
def test_seal_files_are_parsed_or_refused(data: bytes) -> None:
    try:
        records = sealfile.parse(data)
    except BundleInvalid:
        return
    assert sealfile.assemble([note.assemble(r.text, r.signatures) for r in records]).encode() == data


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
@QUICK
def test_delta_wraps_and_comes_back(values: list[int]) -> None:
    array = np.array(values, dtype="<u8")
    content = bytes(segment._fixed(array, "delta", True))
    spec = ColumnSpec("x", "<u8", "", "delta", True, False, None, 0, 0, len(content))
    assert segment._decode_column(spec, len(values), content).values.tolist() == values
