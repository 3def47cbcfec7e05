"""The committed bundle of format version 1 verifies, and gives the rows it gave when it was made."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy

from gpuaudit.bundle.keys import Identity
from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.receipt import Receipt
from gpuaudit.bundle.verify import verify
from tests.bundles import leaves

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = Path(__file__).resolve().parents[2] / "data" / "bundle-v1"
ROOT_B64 = "sejNA2CSnf9wOMAvwmF8sgfEkaNCfXFbo1Jf60grBa4="
FILE_SHA256 = "2ceea2719d113297eb648debca8a06dae47a04aea0d7802be46af76e505c7f40"


def test_verifies() -> None:
    receipt = Receipt.from_text((DATA / "receipt.txt").read_text("utf-8"))
    result = verify(DATA / "bundle.db", trust=[Identity.from_file(DATA / "identity.pub.pem")], receipt=receipt)
    assert (result.status, result.exit_code, result.size) == ("SEALED", 0, 9)
    assert (result.root_b64, result.file_sha256) == (ROOT_B64, FILE_SHA256)
    assert [c.name for c in result.checks if not c.ok] == []


def test_gives_the_same_rows() -> None:
    wanted = json.loads((DATA / "rows.json").read_text("utf-8"))
    with Bundle.open(DATA / "bundle.db") as bundle:
        got = {
            str(idx): {n: [None if v is None else str(v) for v in c.to_list()] for n, c in rows.items()}
            for idx, rows in bundle.segments()
        }
        assert got == wanted
        assert [h.kind for h in bundle.headers] == [
            "open", "clock", "segment", "gap", "segment", "artefact", "artefact", "event", "seal",
        ]  # fmt: skip
        assert [(n, hashlib.sha256(data).hexdigest()[:8]) for _, n, data in bundle.artefacts()][1] == (
            "raw",
            "40aff2e9",
        )


def test_snippet_of_the_reference_reads_every_column() -> None:
    """The Python of docs/reference/bundle-format.md, run as it stands there, on every column that it is for."""
    page = DATA.parents[2] / "docs" / "reference" / "bundle-format.md"
    found = re.search(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert found is not None
    snippet = compile(found.group(1), str(page), "exec")
    wanted = json.loads((DATA / "rows.json").read_text("utf-8"))
    read = 0
    for idx, head, payload, _ in leaves(DATA / "bundle.db"):
        header = json.loads(head)
        for c in header["columns"] or ():
            if c["encoding"] == "utf8":
                continue
            names: dict[str, Any] = {"c": c, "rows": header["rows"], "payload": payload, "zstd": zstd, "numpy": numpy}
            exec(snippet, names)  # noqa: S102 (our own page)
            pairs = zip(names["values"].tolist(), names["valid"].tolist(), strict=True)
            got = [str(names["texts"][v] if c["encoding"] == "dict" else v) if ok else None for v, ok in pairs]
            assert got == wanted[str(idx)][c["name"]], (idx, c["name"])
            read += 1
    assert read == 37


def test_holds_every_encoding() -> None:
    with Bundle.open(DATA / "bundle.db") as bundle:
        used = {(c.encoding, c.shuffle) for h in bundle.headers for c in h.columns or ()}
        assert {e for e, _ in used} == {"plain", "delta", "dict", "utf8"}
        assert {s for _, s in used} == {True, False}
        assert {c.valid for h in bundle.headers for c in h.columns or ()} == {True, False}


def test_verifies_from_a_copy_without_its_seal_file(tmp_path: Path) -> None:
    shutil.copyfile(DATA / "bundle.db", tmp_path / "renamed.db")
    result = verify(tmp_path / "renamed.db", trust=[Identity.from_file(DATA / "identity.pub.pem")])
    assert (result.status, result.root_b64) == ("SEALED", ROOT_B64)
