"""What lies beside a bundle, or stands in its name, in the hands of somebody hostile or merely unlucky."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from gpuaudit.bundle import note, sealfile
from gpuaudit.bundle.errors import AuditError, BundleInvalid, InputUnusable
from gpuaudit.bundle.explain import explain_commands
from gpuaudit.bundle.verify import verify
from tests.bundles import MemorySigner, alter, copy_bundle, fill, leaves, make_bundle, open_writer, withhold


def beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def digest_was_checked(path: Path, signer: MemorySigner) -> bool:
    return next(c.ok for c in verify(path, trust=[signer.identity]).checks if c.name == "file digest")


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to("nowhere"), lambda p: p.touch()],
    ids=["fifo", "folder", "device", "dangling", "empty"],
)
def test_seal_file_that_is_no_file_of_signatures(sealed: Path, tmp_path: Path, make: object) -> None:
    """Neither waited for, nor taken for absent: an absent ``.seal`` would leave the file digest unchecked."""
    path = copy_bundle(sealed, tmp_path, seal=False)
    make(beside(path, ".seal"))  # type: ignore[operator]
    with pytest.raises(InputUnusable, match=r"\.seal"):
        verify(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.replace(b"\n", b"\r\n"),
        lambda b: b + b"\n",
        lambda b: b + b"extra line\n",
        lambda b: b"\xef\xbb\xbf" + b,
        lambda b: b"\n" + b,
        lambda b: b[:-1],
        lambda b: b.replace("— ".encode(), b"- "),
        lambda b: b.replace(b"\n\n", b"\nextension\n\n", 1),
    ],
    ids=["crlf", "newline", "line", "bom", "first-newline", "cut", "dash", "extension"],
)
def test_seal_file_in_another_form(sealed: Path, tmp_path: Path, change: object) -> None:
    path = copy_bundle(sealed, tmp_path)
    content = beside(path, ".seal").read_bytes()
    beside(path, ".seal").write_bytes(change(content))  # type: ignore[operator]
    with pytest.raises(BundleInvalid, match=r"\.seal"):
        verify(path)


def test_seal_file_beside_a_prefix(tmp_path: Path, signer: MemorySigner) -> None:
    """A thief of the identity key cannot dress a cut up as a finished file whose digest was signed."""
    path = tmp_path / "bundle.db"
    make_bundle(path, signer, seal=False).close()
    text, _ = note.parse(leaves(path)[-1][3])
    origin, size, root = text.splitlines()
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    record = sealfile.record_text(
        origin,
        int(size),
        base64.b64decode(root),
        file_sha256=digest,
        file_len=len(data),
        withheld={3: hashlib.sha256(leaves(path)[3][2]).hexdigest()},
    )
    signed = note.assemble(record, [note.sign(record, f"{origin}/identity", signer)])
    beside(path, ".seal").write_text(sealfile.assemble([signed]), "utf-8")
    with pytest.raises(BundleInvalid, match="the last leaf is no seal"):
        verify(path, trust=[signer.identity])


def test_withholding_does_not_raise_a_bundle_that_the_identity_did_not_seal(tmp_path: Path) -> None:
    token = MemorySigner()
    path = tmp_path / "bundle.db"
    writer = open_writer(path, token)
    fill(writer)
    token.absent = True
    writer.seal({})
    writer.close()
    token.absent = False
    withhold(path, token, 3)
    result = verify(path, trust=[token.identity])
    assert (result.status, result.exit_code, result.withheld) == ("SEALED-BY-EPOCH", 1, (3,))


def test_withheld_record_stripped_and_put_back(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path)
    original = beside(path, ".seal").read_bytes()
    withhold(path, signer, 1)
    both = beside(path, ".seal").read_bytes()
    for records in (original, both[len(original) :] + original):
        beside(path, ".seal").write_bytes(records)
        with pytest.raises(BundleInvalid, match="the file was changed"):
            verify(path, trust=[signer.identity])
    beside(path, ".seal").write_bytes(both[len(original) :])
    assert verify(path, trust=[signer.identity]).status == "WITHHELD"


def test_payload_forged_in_the_place_of_a_withheld_one(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path)
    withhold(path, signer, 3)
    beside(path, ".seal").unlink()
    alter(path, "UPDATE leaf SET payload=zeroblob(39) WHERE idx=3")
    with pytest.raises(BundleInvalid, match="leaf 3: payload has"):
        verify(path, trust=[signer.identity])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_cut_to_every_checkpoint_with_every_seal_file(
    sealed: Path, signer: MemorySigner, tmp_path: Path, size: int
) -> None:
    path = copy_bundle(sealed, tmp_path)
    cut = "DELETE FROM leaf WHERE idx>=?", "DELETE FROM checkpoint WHERE size>?"
    alter(path, *cut, "VACUUM", parameters=(size,))
    with pytest.raises(BundleInvalid, match="belongs to another bundle"):
        verify(path, trust=[signer.identity])
    beside(path, ".seal").unlink()
    assert verify(path, trust=[signer.identity]).status == "UNSEALED"


def test_link_to_a_bundle_is_read_with_what_lies_beside_the_bundle(
    sealed: Path, crashed: Path, signer: MemorySigner, tmp_path: Path
) -> None:
    (tmp_path / "whole.db").symlink_to(copy_bundle(sealed, tmp_path / "store"))
    assert digest_was_checked(tmp_path / "whole.db", signer)
    (tmp_path / "prefix.db").symlink_to(crashed)
    assert verify(tmp_path / "prefix.db", trust=[signer.identity]).size == verify(crashed).size == 5


def test_links_to_a_bundle_and_to_its_seal_file(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    """As a store lays them out that names files by their digest."""
    path = copy_bundle(sealed, tmp_path / "store")
    beside(path, ".seal").rename(tmp_path / "store" / "a")
    (tmp_path / "b.db").symlink_to(path)
    (tmp_path / "b.db.seal").symlink_to(tmp_path / "store" / "a")
    assert digest_was_checked(tmp_path / "b.db", signer)


def test_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a.db").symlink_to(tmp_path / "b.db")
    (tmp_path / "b.db").symlink_to(tmp_path / "a.db")
    with pytest.raises(InputUnusable, match="cannot read"):
        verify(tmp_path / "a.db")


def test_name_that_is_not_text(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff ?#%41"))
    folder.mkdir()
    shutil.copyfile(sealed, folder / "bundle.db")
    assert verify(folder / "bundle.db", trust=[signer.identity]).status == "SEALED"
    make_bundle(folder / "own.db", signer)
    assert digest_was_checked(folder / "own.db", signer)
    with pytest.raises(InputUnusable, match="a script cannot hold this name"):
        explain_commands(folder / "own.db")


def test_log_that_brings_another_first_page(crashed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    """The file says version 1, its log version 2: the log counts."""
    path = tmp_path / "bundle.db"
    for end in ("", "-wal"):
        shutil.copyfile(beside(crashed, end), beside(path, end))
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute("PRAGMA user_version=2")
    stolen = tmp_path / "attack"
    stolen.mkdir()
    for end in ("", "-wal"):
        shutil.copyfile(beside(path, end), beside(stolen / "bundle.db", end))
    db.close()
    with pytest.raises(BundleInvalid, match="format version 2"):
        verify(stolen / "bundle.db", trust=[signer.identity])


@pytest.mark.parametrize("content", [b"", bytes(40_000), b"7\x7f\x06\x82" + bytes(5000)])
def test_log_of_nonsense(sealed: Path, signer: MemorySigner, tmp_path: Path, content: bytes) -> None:
    """It holds no committed page, so it changes nothing; beside a ``.seal`` it is refused."""
    path = copy_bundle(sealed, tmp_path)
    beside(path, "-wal").write_bytes(content)
    with pytest.raises(BundleInvalid, match="a write-ahead log lies beside it"):
        verify(path, trust=[signer.identity])
    beside(path, ".seal").unlink()
    assert verify(path, trust=[signer.identity]).status == "SEALED"
    assert beside(path, "-wal").read_bytes() == content


def test_capture_that_goes_on_while_it_is_copied(
    crashed: Path, signer: MemorySigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file and a log of two moments could look damaged, and be called tampering."""
    copy = shutil.copyfile

    def slowly(source: Path, target: Path) -> None:
        copy(source, target)
        if source == crashed:
            with beside(crashed, "-wal").open("ab") as f:
                f.write(b"more")

    monkeypatch.setattr("gpuaudit.bundle.reader.shutil.copyfile", slowly)
    with pytest.raises(InputUnusable, match="is being written") as caught:
        verify(crashed, trust=[signer.identity])
    assert not isinstance(caught.value, BundleInvalid)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE leaf SET kind=CAST(kind AS BLOB) WHERE idx=4",
        "UPDATE leaf SET kind=kind||char(0)||'x' WHERE idx=4",
        "UPDATE leaf SET header=CAST(header AS TEXT) WHERE idx=4",
        "UPDATE leaf SET payload=CAST(payload AS TEXT) WHERE idx=4",
        "UPDATE leaf SET payload=17 WHERE idx=4",
        "UPDATE leaf SET header=x'' WHERE idx=4",
        "UPDATE checkpoint SET note=CAST(note AS BLOB) WHERE size=5",
        "UPDATE checkpoint SET note=note||char(0) WHERE size=5",
        "UPDATE checkpoint SET note='' WHERE size=5",
        "INSERT INTO leaf VALUES(-1,'event',x'7b7d',NULL)",
        "INSERT INTO leaf VALUES(9223372036854775807,'event',x'7b7d',NULL)",
        "INSERT INTO checkpoint VALUES(-1,'x')",
        "INSERT INTO checkpoint VALUES(0,'x')",
    ],
)
def test_values_that_the_schema_does_not_foresee(sealed: Path, tmp_path: Path, statement: str) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, statement, unchecked=True)
    with pytest.raises(BundleInvalid, match=r"leaf \d|checkpoint 5"):
        verify(path, decode=False)


@pytest.mark.parametrize("root", [0, 1, 2, -1, 1 << 40, "x", None])
def test_table_whose_root_page_was_moved(sealed: Path, tmp_path: Path, root: object) -> None:
    """2 is the root of the other table."""
    path = copy_bundle(sealed, tmp_path, seal=False)
    move = "UPDATE sqlite_master SET rootpage=? WHERE name='checkpoint'"
    alter(path, "PRAGMA writable_schema=ON", move, parameters=(root,))
    with pytest.raises(AuditError):
        verify(path, decode=False)


@pytest.mark.parametrize("page_bytes", [512, 65536])
def test_other_page_sizes_hold_the_same_evidence(
    sealed: Path, signer: MemorySigner, tmp_path: Path, page_bytes: int
) -> None:
    """Payloads on chains of overflow pages, or all on one page; only the ``.seal`` speaks for the bytes."""
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, f"PRAGMA page_size={page_bytes}", "VACUUM")
    assert verify(path, trust=[signer.identity]).status == "SEALED"


@pytest.mark.parametrize("read", ["analyze", "query"])
def test_file_that_is_swapped_after_it_was_verified(
    sealed: Path, signer: MemorySigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """Verified is one file and read another, forged throughout with the attacker's own keys."""
    from gpuaudit.analyze import query_child, run
    from gpuaudit.bundle.reader import Bundle

    path = copy_bundle(sealed, tmp_path / "true")
    forged = tmp_path / "forged.db"
    make_bundle(forged, MemorySigner())
    honest = Bundle.open
    openings = iter([path, forged])
    monkeypatch.setattr(Bundle, "open", lambda _: honest(next(openings)))
    with pytest.raises(BundleInvalid, match="was changed after it was verified"):
        run.analyze(path) if read == "analyze" else query_child.run(path, [])
