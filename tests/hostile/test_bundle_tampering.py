"""A bundle that somebody changed: every change is refused, and without the ``.seal`` it is named by its leaf."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from gpuaudit.bundle import sealfile
from gpuaudit.bundle.errors import EXIT_UNUSABLE, AuditError, BundleInvalid
from gpuaudit.bundle.verify import Verification, verify
from tests.bundles import MemorySigner, alter, change_header, copy_bundle, leaves, replace_leaf, withhold


def check(path: Path, signer: MemorySigner) -> Verification:
    return verify(path, trust=[signer.identity], decode=False)


def flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as f:
        f.seek(at)
        value = f.read(1)[0]
        f.seek(at)
        f.write(bytes([value ^ 1 << bit]))


def test_untouched_bundle_is_sealed(sealed: Path, signer: MemorySigner) -> None:
    result = verify(sealed, trust=[signer.identity])
    assert (result.status, result.exit_code, result.size) == ("SEALED", 0, 6)
    assert all(c.ok for c in result.checks)


def test_one_flipped_byte_anywhere_is_refused_when_the_seal_file_is_there(
    sealed: Path, signer: MemorySigner, tmp_path: Path
) -> None:
    path = copy_bundle(sealed, tmp_path)
    size = path.stat().st_size
    for at in [*range(100), *range(100, size, 41)]:
        flip(path, at, at % 8)
        with pytest.raises(BundleInvalid):
            check(path, signer)
        flip(path, at, at % 8)
    assert check(path, signer).status == "SEALED"


@pytest.mark.parametrize("part", ["header", "payload", "note"])
def test_one_flipped_byte_is_named_by_its_leaf_without_the_seal_file(
    sealed: Path, signer: MemorySigner, tmp_path: Path, part: str
) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    content = path.read_bytes()
    tried = 0
    for idx, header, payload, note in leaves(path):
        piece = {"header": header, "payload": payload, "note": note.encode()}[part]
        start = content.find(piece[:200])
        if start < 0:
            continue  # it begins on one page and ends on another
        for at in range(start, start + min(len(piece), 200), 13):
            flip(path, at, at % 7)
            with pytest.raises(BundleInvalid, match=rf"\bleaf {idx}\b"):
                check(path, signer)
            flip(path, at, at % 7)
            tried += 1
    assert tried > 50
    assert check(path, signer).status == "SEALED"


def test_one_flipped_byte_in_the_seal_file_is_refused(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path)
    beside = sealfile.path_beside(path)
    for at in range(0, beside.stat().st_size, 3):
        flip(beside, at)
        with pytest.raises(BundleInvalid):
            check(path, signer)
        flip(beside, at)


def test_dropped_leaf(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "DELETE FROM leaf WHERE idx=3", "VACUUM")
    with pytest.raises(BundleInvalid, match="leaf 3: missing"):
        check(path, signer)


def test_dropped_checkpoint(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "DELETE FROM checkpoint WHERE size=4", "VACUUM")
    with pytest.raises(BundleInvalid, match="leaf 3: its checkpoint is missing"):
        check(path, signer)


def test_dropped_first_leaf(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "DELETE FROM leaf WHERE idx=0", "DELETE FROM checkpoint WHERE size=1", "VACUUM")
    with pytest.raises(BundleInvalid, match="leaf 0: missing"):
        check(path, signer)


def test_dropped_last_leaf_with_its_checkpoint_left(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "DELETE FROM leaf WHERE idx=5", "VACUUM")
    with pytest.raises(BundleInvalid, match="leaf 5: missing"):
        check(path, signer)


def test_swapped_leaves(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(
        path, "UPDATE leaf SET idx=99 WHERE idx=3", "UPDATE leaf SET idx=3 WHERE idx=4",
        "UPDATE leaf SET idx=4 WHERE idx=99",
    )  # fmt: skip
    with pytest.raises(BundleInvalid, match="leaf 3: header says idx 4"):
        check(path, signer)


def test_swapped_and_renumbered_leaves(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    (_, _, third, _), (_, _, fourth, _) = leaves(path)[3:5]
    headers = change_header(path, 4, idx=3), change_header(path, 3, idx=4)
    alter(path, "UPDATE leaf SET kind='x' WHERE idx IN (3,4)")
    alter(path, "UPDATE leaf SET kind='event' WHERE idx=3", "UPDATE leaf SET kind='artefact' WHERE idx=4")
    replace_leaf(path, 3, headers[0], fourth)
    replace_leaf(path, 4, headers[1], third)
    with pytest.raises(BundleInvalid, match="leaf 3: its checkpoint says"):
        check(path, signer)


def test_renumbered_leaves(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(
        path, "DELETE FROM leaf WHERE idx=3", "UPDATE leaf SET idx=3 WHERE idx=4", "UPDATE leaf SET idx=4 WHERE idx=5"
    )
    alter(path, "VACUUM")
    with pytest.raises(BundleInvalid, match="leaf 3: header says idx 4"):
        check(path, signer)


def test_appended_leaf_after_the_seal(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    extra = change_header(path, 4, idx=6).to_bytes()
    alter(path, "INSERT INTO leaf SELECT 6,'event',?,payload FROM leaf WHERE idx=4", parameters=(extra,))
    with pytest.raises(BundleInvalid, match="leaf 5: a seal, and leaf 6 follows it"):
        check(path, signer)


def test_appended_checkpoint(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "INSERT INTO checkpoint SELECT 7,note FROM checkpoint WHERE size=6")
    with pytest.raises(BundleInvalid, match="leaf 6: missing"):
        check(path, signer)


def test_edited_rows_with_a_matching_header(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    replace_leaf(path, 1, change_header(path, 1, lost=0))
    with pytest.raises(BundleInvalid, match="leaf 1: its checkpoint says"):
        check(path, signer)


def test_payload_taken_out_without_a_record(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "UPDATE leaf SET payload=NULL WHERE idx=1", "VACUUM")
    with pytest.raises(BundleInvalid, match="leaf 1: its payload is missing, and no withheld record"):
        check(path, signer)


def test_withheld_record_by_somebody_else(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path)
    withhold(path, MemorySigner(), 1)
    with pytest.raises(BundleInvalid, match=r"withheld v1: the signature of .*/identity is missing or not good"):
        check(path, signer)


@pytest.mark.parametrize("leaf", [0, 5])
def test_payloads_of_open_and_seal_are_never_withheld(
    sealed: Path, signer: MemorySigner, tmp_path: Path, leaf: int
) -> None:
    path = copy_bundle(sealed, tmp_path)
    withhold(path, signer, leaf)
    with pytest.raises(BundleInvalid, match=f"leaf {leaf}: the payload is missing"):
        check(path, signer)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE extra(x)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE INDEX i ON leaf(kind)",
        "CREATE TRIGGER t AFTER INSERT ON leaf BEGIN SELECT 1; END",
    ],
)
@pytest.mark.parametrize("seal", [True, False])
def test_smuggled_table_view_index_or_trigger(
    sealed: Path, signer: MemorySigner, tmp_path: Path, statement: str, seal: bool
) -> None:
    path = copy_bundle(sealed, tmp_path, seal=seal)
    alter(path, statement)
    with pytest.raises(BundleInvalid, match="the schema is not that of a bundle"):
        check(path, signer)


def test_view_in_the_place_of_the_leaf_table(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "ALTER TABLE leaf RENAME TO hidden", "CREATE VIEW leaf AS SELECT * FROM hidden")
    with pytest.raises(BundleInvalid, match="the schema is not that of a bundle"):
        check(path, signer)


def test_schema_that_differs_by_one_space(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(
        path, "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET sql=replace(sql,'kind TEXT','kind  TEXT') WHERE name='leaf'",
    )  # fmt: skip
    with pytest.raises(BundleInvalid, match="the schema is not that of a bundle"):
        check(path, signer)


def test_data_hidden_in_free_pages(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "CREATE TABLE hide(x)", "INSERT INTO hide VALUES(zeroblob(9000))", "DROP TABLE hide")
    with pytest.raises(BundleInvalid, match="free pages"):
        check(path, signer)


def test_data_appended_to_the_file(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    with path.open("ab") as f:
        f.write(b"x" * 4096)
    with pytest.raises(BundleInvalid, match="expected"):
        check(path, signer)


def test_log_smuggled_beside_a_finished_bundle(
    sealed: Path, crashed: Path, signer: MemorySigner, tmp_path: Path
) -> None:
    path = copy_bundle(sealed, tmp_path)
    shutil.copyfile(crashed.with_name("bundle.db-wal"), path.with_name("bundle.db-wal"))
    with pytest.raises(BundleInvalid):
        check(path, signer)


def test_rollback_journal_is_never_played_back(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    """A journal may name another file for SQLite to delete; nothing beside the bundle is opened or removed."""
    path = copy_bundle(sealed, tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    journal = path.with_name("bundle.db-journal")
    name = str(victim).encode()
    magic = bytes.fromhex("d9d505f920a163d7")
    tail = (1).to_bytes(4, "big") + name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big") + magic
    journal.write_bytes(magic + bytes(504) + tail)
    assert check(path, signer).status == "SEALED"
    assert victim.read_text() == "precious"
    assert journal.exists()


def test_kind_column_of_another_kind(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "UPDATE leaf SET kind='artefact' WHERE idx=4")
    with pytest.raises(BundleInvalid, match="leaf 4: the kind column says"):
        check(path, signer)


def test_values_of_other_types_than_the_schema_allows(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "UPDATE leaf SET payload='text' WHERE idx=1", unchecked=True)
    with pytest.raises(BundleInvalid):
        check(path, signer)


def test_seal_file_of_another_bundle(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    from tests.bundles import make_bundle

    other = tmp_path / "other.db"
    make_bundle(other, signer)
    path = copy_bundle(sealed, tmp_path)
    shutil.copyfile(sealfile.path_beside(other), sealfile.path_beside(path))
    with pytest.raises(BundleInvalid, match=r"\.seal belongs to another bundle"):
        check(path, signer)


def test_unused_bytes_of_sqlite_change_no_evidence(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    """Bytes that SQLite does not use may change without the ``.seal``; verify says that it did not check the digest."""
    path = copy_bundle(sealed, tmp_path, seal=False)
    flip(path, 72)  # reserved for expansion, sqlite.org/fileformat2.html section 1.3
    result = check(path, signer)
    assert result.status == "SEALED"
    assert any("digest of the whole file was not checked" in n for n in result.notices)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"SQLite format 3", "not an SQLite file"),
        (b"PK\x03\x04" + bytes(200), "not an SQLite file"),
        (b"SQLite format 3\0" + bytes(84), "application id"),
    ],
)
def test_not_a_bundle(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bundle.db"
    path.write_bytes(content)
    with pytest.raises(BundleInvalid, match=said) as caught:
        verify(path)
    assert caught.value.exit_code == EXIT_UNUSABLE
    assert "\n" not in str(caught.value)


def test_another_sqlite_database(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    alter(path, "CREATE TABLE urls(x)")
    with pytest.raises(BundleInvalid, match="application id is 0x0"):
        verify(path)


def test_bundle_of_another_format_version(sealed: Path, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path)
    alter(path, "PRAGMA user_version=2")
    with pytest.raises(BundleInvalid, match="format version 2, this program reads 1"):
        verify(path)


@pytest.mark.parametrize("keep", [100, 512, 4096, 5000, 8192])
def test_truncated_file(sealed: Path, tmp_path: Path, keep: int) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    with path.open("r+b") as f:
        f.truncate(keep)
    with pytest.raises(BundleInvalid):
        verify(path)


def test_empty_tables(tmp_path: Path, sealed: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "DELETE FROM leaf", "DELETE FROM checkpoint", "VACUUM")
    with pytest.raises(BundleInvalid, match="no leaf"):
        verify(path)


@pytest.mark.parametrize("make", [Path.mkdir, lambda p: p.symlink_to("/dev/zero"), lambda _: None])
def test_what_is_no_file(tmp_path: Path, make: object) -> None:
    path = tmp_path / "bundle.db"
    make(path)  # type: ignore[operator]
    with pytest.raises(AuditError) as caught:
        verify(path)
    assert caught.value.exit_code == EXIT_UNUSABLE


def test_verifying_changes_nothing(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path / "b")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.parent.iterdir()}
    check(path, signer)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.parent.iterdir()} == before
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
