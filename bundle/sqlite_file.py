"""The SQLite file of a bundle: its schema, byte for byte, and how it is created and opened."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from gpuaudit.bundle import limits
from gpuaudit.bundle.errors import BundleInvalid, HostUnfit, InputUnusable, OutputExists

APPLICATION_ID = 0x41554431
"""'AUD1'."""

FORMAT_VERSION = 1

LEAF_DDL = (
    "CREATE TABLE leaf(idx INTEGER PRIMARY KEY CHECK(idx>=0),kind TEXT NOT NULL CHECK(typeof(kind)='text'),"
    "header BLOB NOT NULL CHECK(typeof(header)='blob'),"
    "payload BLOB CHECK(payload IS NULL OR typeof(payload)='blob'))"
)
CHECKPOINT_DDL = "CREATE TABLE checkpoint(size INTEGER PRIMARY KEY,note TEXT NOT NULL CHECK(typeof(note)='text'))"
SCHEMA = [
    (b"table", b"leaf", b"leaf", LEAF_DDL.encode()),
    (b"table", b"checkpoint", b"checkpoint", CHECKPOINT_DDL.encode()),
]
"""What ``SELECT type,name,tbl_name,sql FROM sqlite_master ORDER BY rowid`` must give, and nothing else."""

_MAGIC = b"SQLite format 3\0"
_ENDINGS = ("", "-wal", "-shm", "-journal", ".seal", ".seal.part")
"""What lies, or lay for a moment, in the place of a bundle."""
_HEADER_BYTES = 100
_ROW_OVERHEAD_BYTES = 64


def create(path: Path) -> sqlite3.Connection:
    """A new bundle file in WAL mode, mode 0600; OutputExists when something is there already."""
    for taken in (path.with_name(path.name + end) for end in _ENDINGS):
        if os.path.lexists(taken):
            raise OutputExists(f"{taken} exists already", hint="choose another output, or remove it")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError as e:
        raise HostUnfit(f"cannot create {path}: {e.strerror}", hint="choose a folder you may write to") from None
    db = sqlite3.connect(_uri(path, "mode=rw"), uri=True, isolation_level=None)
    try:
        _lay_out(db)
    except sqlite3.Error as e:
        db.close()
        path.unlink()
        raise HostUnfit(f"cannot begin {path}: {e}", hint="a local disk with free space is needed") from None
    sync_folder(path)
    return db


def _lay_out(db: sqlite3.Connection) -> None:
    """The tables, in one transaction, so that a crash leaves an empty file or a bundle; then the write-ahead log."""
    for statement in (
        "BEGIN IMMEDIATE", f"PRAGMA application_id={APPLICATION_ID}", f"PRAGMA user_version={FORMAT_VERSION}",
        LEAF_DDL, CHECKPOINT_DDL, "COMMIT",
    ):  # fmt: skip
        db.execute(statement)
    if db.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
        raise sqlite3.OperationalError("this file system cannot hold a write-ahead log")
    db.execute("PRAGMA synchronous=FULL")


def _uri(path: Path, options: str) -> str:
    """The name as SQLite takes it; a file name is bytes, which need not be UTF-8."""
    return f"file:{quote(os.fsencode(path.absolute()))}?{options}"


def finalise(db: sqlite3.Connection, path: Path) -> None:
    """Make one file of it that opens from read-only media, and close it; HostUnfit when that fails."""
    try:
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        mode = db.execute("PRAGMA journal_mode=DELETE").fetchone()
        free = db.execute("PRAGMA freelist_count").fetchone()
        db.close()
    except sqlite3.Error as e:
        raise HostUnfit(f"cannot finish {path}: {e}", hint="what is sealed is kept; verify it where it lies") from None
    if busy or mode != ("delete",) or free != (0,):
        raise HostUnfit(
            f"cannot finish {path}: busy={busy} mode={mode} free pages={free}", hint="is it open elsewhere?"
        )
    sync_folder(path)


def sync_folder(path: Path) -> None:
    """Make the entry of ``path`` in its folder durable."""
    fd = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_file_header(head: bytes, name: str) -> None:
    """Refuse what is not a bundle of this version by its first 100 bytes, before SQLite sees it."""
    if not head:
        raise BundleInvalid(f"{name} is empty, not a bundle", hint="was the capture ended before its first second?")
    if len(head) < _HEADER_BYTES or not head.startswith(_MAGIC):
        raise BundleInvalid(
            f"{name} is not a bundle: not an SQLite file", hint="give the file that audit capture wrote"
        )
    application, version = int.from_bytes(head[68:72], "big"), int.from_bytes(head[60:64], "big")
    if application != APPLICATION_ID:
        raise BundleInvalid(f"{name} is not a bundle: application id is {application:#x}, expected {APPLICATION_ID:#x}")
    if version != FORMAT_VERSION:
        raise BundleInvalid(
            f"{name} has bundle format version {version}, this program reads {FORMAT_VERSION}",
            hint="use the gpu-audit version that wrote it, or a newer one",
        )
    if int.from_bytes(head[56:60], "big") != 1 or int.from_bytes(head[52:56], "big") != 0:
        raise BundleInvalid(f"{name}: text encoding or vacuum mode is not that of a bundle")


def open_hostile(path: Path, *, wal: bool) -> sqlite3.Connection:
    """Open a file that somebody else may have written. With ``wal`` it is a private copy beside its log.

    BundleInvalid unless the schema is that of a bundle byte for byte, the structure is sound, the freelist is empty
    and the file size is pages × page size. TEXT comes back as bytes.
    """
    mode = "mode=rw" if wal else "mode=ro&immutable=1"
    try:
        db = sqlite3.connect(_uri(path, mode), uri=True, isolation_level=None)
    except sqlite3.Error as e:
        raise InputUnusable(f"cannot open {path.name}: {e}", hint="is the file readable?") from None
    try:
        db.text_factory = bytes
        db.setlimit(
            sqlite3.SQLITE_LIMIT_LENGTH, limits.MAX_PAYLOAD_BYTES + limits.MAX_HEADER_BYTES + _ROW_OVERHEAD_BYTES
        )
        db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"):
            db.execute(f"PRAGMA {pragma}")
        if wal:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            with path.open("rb") as f:  # the log may hold another first page
                check_file_header(f.read(_HEADER_BYTES), path.name)
        db.execute("PRAGMA query_only=ON")
        _check_structure(db, path)
    except (sqlite3.Error, UnicodeError) as e:  # a message that quotes damaged text may not be text
        db.close()
        raise BundleInvalid(f"the file is damaged: {e}") from None
    except BaseException:
        db.close()
        raise
    return db


def _check_structure(db: sqlite3.Connection, path: Path) -> None:
    schema = db.execute("SELECT type,name,tbl_name,sql FROM sqlite_master ORDER BY rowid LIMIT 3").fetchall()
    if schema != SCHEMA:
        names = [str(row[1])[2:-1] for row in schema]
        raise BundleInvalid(
            f"the schema is not that of a bundle: got {names!r:.120}, expected leaf and checkpoint only"
        )
    problem = db.execute("PRAGMA quick_check(1)").fetchone()
    if problem != (b"ok",):
        raise BundleInvalid(f"the file is damaged: {str(problem[0])[2:-1]:.120}")
    (free,), (pages,), (page_bytes,) = (
        db.execute(f"PRAGMA {p}").fetchone() for p in ("freelist_count", "page_count", "page_size")
    )
    size = path.stat().st_size
    if free or size != pages * page_bytes:
        raise BundleInvalid(
            f"the file has {size} bytes and {free} free pages; expected {pages} × {page_bytes}, none free"
        )
