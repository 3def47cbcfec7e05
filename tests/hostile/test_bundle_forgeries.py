"""Bundles whose every signature is good and whose content is hostile: refused in one line that names the leaf.

Whoever makes an identity of their own can sign anything. What they sign must neither crash a reader, nor exhaust it,
nor mean two things to two readers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuaudit.bundle import segment, zstd
from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.verify import Verification, verify
from tests.bundles import MemorySigner, alter
from tests.forge import Leaf, forge, one_column, opening, u8

if sys.version_info >= (3, 14):
    from compression import zstd as library
else:
    from backports import zstd as library

THREE = u8(1, 2, 3)


def judge(tmp_path: Path, signer: MemorySigner, *leaves: Leaf) -> Verification:
    return verify(forge(tmp_path / "bundle.db", signer, [opening(signer), *leaves]), trust=[signer.identity])


def lengths(*values: int) -> bytes:
    return np.array(values, dtype="<u4").tobytes()


def frame_with_window(log: int) -> bytes:
    """A frame of three u8 in one raw block that asks for a window of 2^log bytes (RFC 8878, section 3.1.1)."""
    block = (len(THREE) << 3 | 1).to_bytes(3, "little") + THREE
    return b"\x28\xb5\x2f\xfd\x80" + bytes([(log - 10) << 3]) + len(THREE).to_bytes(4, "little") + block


def test_the_forger_can_make_a_sound_bundle(tmp_path: Path, signer: MemorySigner) -> None:
    """So that the refusals below are due to what each of them changes."""
    result = judge(tmp_path, signer, one_column(3, THREE))
    assert (result.status, result.size) == ("UNSEALED", 2)
    with_window = judge(tmp_path / "w", signer, one_column(3, THREE, frame=frame_with_window(23)))
    assert with_window.status == "UNSEALED"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()


@pytest.mark.parametrize(
    "frame",
    [
        zstd.compress(THREE) + b"\0",
        zstd.compress(THREE)[:-1],
        zstd.compress(THREE) + zstd.compress(b""),
        zstd.compress(THREE) + b"\x50\x2a\x4d\x18\x04\0\0\0hide",
        b"\x50\x2a\x4d\x18\x04\0\0\0hide" + zstd.compress(THREE),
        zstd.compress(THREE + b"more"),
        b"",
        b"\x28\xb5\x2f\xfd",
        b"\x28\xb5\x2f\xfd\x80",
        frame_with_window(24),
        frame_with_window(27),
        frame_with_window(41),
        library.compress(THREE, options={library.CompressionParameter.content_size_flag: 0}),
    ],
    ids=["trailing", "cut", "two", "skippable-after", "skippable-before", "longer", "empty", "magic-only",
         "magic-and-descriptor", "window-16M", "window-128M", "window-2T", "no-size"],
)  # fmt: skip
def test_frame_that_is_not_exactly_one_modest_frame(tmp_path: Path, signer: MemorySigner, frame: bytes) -> None:
    with pytest.raises(BundleInvalid, match=r"leaf 1: column x: .*zstd frame"):
        judge(tmp_path, signer, one_column(3, THREE, frame=frame))


@pytest.mark.parametrize(
    ("content", "spec", "said"),
    [
        (lengths(1, 1) + b"ab" + b"\0\2\0", {"entries": 2}, "a code is past the dictionary"),
        (b"\0\0\0", {"entries": 0}, "a code is past the dictionary"),
        (lengths(1, 1) + b"aa" + b"\0\1\0", {"entries": 2}, "stands twice"),
        (lengths(1, 1) + b"ab" + b"\0\0\0", {"entries": 2}, "is not used"),
        (lengths(2**32 - 1, 3) + b"ab" + b"\0\0\0", {"entries": 2}, "do not add up"),
        (lengths(1, 1) + b"\xff\xfe" + b"\0\1\0", {"entries": 2}, "not UTF-8"),
        (lengths(3, 1) + b"\xed\xa0\x80b" + b"\0\1\0", {"entries": 2}, "not UTF-8"),
        (lengths(1, 1) + "é".encode() + b"\0\1\0", {"entries": 2}, "not UTF-8"),
    ],
    ids=["code", "code-of-none", "twice", "unused", "lengths", "bytes", "surrogate", "split"],
)
def test_dictionary(tmp_path: Path, signer: MemorySigner, content: bytes, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleInvalid, match=f"leaf 1: column x: .*{said}"):
        judge(tmp_path, signer, one_column(3, content, dtype="<u1", encoding="dict", **spec))


@pytest.mark.parametrize(
    ("content", "spec", "said"),
    [
        (b"\x05" + THREE, {}, "a null has a value"),
        (b"\x05" + np.array([1, -0.0, 1]).tobytes(), {"dtype": "<f8"}, "a null has a value"),
        (b"\x05" + lengths(1, 1, 1) + b"abc", {"dtype": "<u4", "encoding": "utf8"}, "a null has a value"),
        (b"\x05" + lengths(1) + b"a" + b"\0\1\0", {"dtype": "<u1", "encoding": "dict", "entries": 1}, "a null has"),
        (b"\xff" + THREE, {}, "bits past the last row"),
    ],
    ids=["number", "minus-zero", "text", "code", "padding"],
)
def test_nothing_hides_under_a_null(
    tmp_path: Path, signer: MemorySigner, content: bytes, spec: dict[str, Any], said: str
) -> None:
    with pytest.raises(BundleInvalid, match=f"leaf 1: column x: .*{said}"):
        judge(tmp_path, signer, one_column(3, content, valid=True, **spec))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": -1}, "rows is -1"),
        ({"rows": 3.5}, "rows is 3.5"),
        ({"rows": 2**21 + 1}, "rows is 2097153"),
        ({"v": True}, "v is True"),
        ({"len": True}, "len is True"),
        ({"seen": 3}, "seen is 3"),
        ({"seen": "-0"}, "seen is '-0'"),
        ({"seen": "18446744073709551616"}, "seen is 18446744073709551616"),
        ({"seen": "2"}, "counters"),
        ({"boot_ns": "٣"}, "boot_ns is"),
        ({"boot_ns": str(2**63)}, "boot_ns is"),
        ({"sha256": "٣" * 64}, "sha256 is"),
        ({"next_key": "A" * 64}, "next_key is"),
        ({"table": "ｆoo"}, "table is"),
        ({"table": "foo\n"}, "table is"),
        ({"kind": "Segment"}, "kind is"),
        ({"x": 1}, "unknown keys"),
        ({"columns": []}, "0 columns"),
        ({"columns": [1]}, "column is a int"),
    ],
)
def test_header(tmp_path: Path, signer: MemorySigner, changes: dict[str, object], said: str) -> None:
    good = one_column(3, THREE)
    with pytest.raises(BundleInvalid, match=f"leaf 1: .*{said}"):
        judge(tmp_path, signer, Leaf(good.kind, good.data, {**good.header, **changes}))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 60_000,
        b'{"v":1,"v":1}',
        b'{"v":1,"\\u0076":1}',
        b'{"v":NaN}',
        b'{"v":1e400}',
        b'{"v":' + b"9" * 5000 + b"}",
        b'{"v":-0}',
        b'{"v": 1}',
        b'{"v":"\\ud800"}',
        b'{"v":"\xff"}',
        b'\xef\xbb\xbf{"v":1}',
        b'{"v":"' + b"x" * 70_000 + b'"}',
    ],
    ids=range(15),
)
def test_header_that_is_not_canonical_json(tmp_path: Path, signer: MemorySigner, raw: bytes) -> None:
    good = one_column(3, THREE)
    with pytest.raises(BundleInvalid, match=r"^leaf 1: "):
        judge(tmp_path, signer, Leaf(good.kind, good.data, good.header, lambda _: raw))


def test_empty_note(tmp_path: Path, signer: MemorySigner) -> None:
    path = forge(tmp_path / "bundle.db", signer, [opening(signer), one_column(3, THREE)])
    alter(path, "UPDATE checkpoint SET note='' WHERE size=2")
    with pytest.raises(BundleInvalid, match="leaf 1: its checkpoint is not a signed note"):
        verify(path)


@pytest.mark.parametrize("body", [b"[" * 10_000_000, b"[" + b"{}," * 2_000_000 + b"{}]"], ids=["deep", "wide"])
def test_body_that_would_not_fit_into_memory(tmp_path: Path, signer: MemorySigner, body: bytes) -> None:
    path = forge(tmp_path / "bundle.db", signer, [Leaf("open", body)])
    with pytest.raises(BundleInvalid, match="leaf 0: JSON"):
        verify(path)


def test_counters_that_run_backwards(tmp_path: Path, signer: MemorySigner) -> None:
    first, second = one_column(3, THREE), one_column(3, THREE)
    more = Leaf(first.kind, first.data, {**first.header, "seen": "9", "lost": "6"})
    less = Leaf(second.kind, second.data, {**second.header, "seen": "8", "written": "6", "lost": "2"})
    with pytest.raises(BundleInvalid, match="leaf 2: its counters for foo run backwards"):
        judge(tmp_path, signer, more, less)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"NaN",
        b'[{"name":"\\ud800","source":"\\ud800"}]',
        b"[" + b"{}," * 2_000_000 + b"{}]",
    ],
    ids=["empty", "bytes", "deep", "nan", "surrogate", "wide"],
)
@pytest.mark.parametrize("name", ["cost", "sources"])
def test_artefact_that_analysis_reads(tmp_path: Path, signer: MemorySigner, name: str, body: bytes) -> None:
    """What the recorder wrote is canonical JSON; anything else counts as not told, and never ends in a traceback."""
    from gpuaudit.analyze.load import parse_document
    from gpuaudit.analyze.run import analyze, document_bytes

    call = {"duration_ns": 9, "pid": 1, "tid": 1, "op": "cudaMalloc", "return_code": 0, "cpu": 0, "seq": 0}
    rows = from_records(TABLES["cuda_calls"], [{**call, "start_ns": 10**9}, {**call, "start_ns": 10**10}])
    encoded = segment.encode(TABLES["cuda_calls"], rows)
    counters = {"seen": "2", "written": "2", "lost": "0", "rows": 2, "raw_len": encoded.raw_len}
    columns = [vars(c) for c in encoded.columns]
    calls = Leaf("segment", encoded.data, {"table": "cuda_calls", "columns": columns, **counters})
    path = forge(tmp_path / "bundle.db", signer, [opening(signer), calls, Leaf("artefact", body, {"table": name})])
    document = parse_document(document_bytes(analyze(path)))
    assert document.cost == {"rows": []}
