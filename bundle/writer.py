"""Writing a bundle: one leaf per commit, each under an epoch key of its own, and the seal at the end.

The note of leaf n is signed by epoch key n, whose public key stands in the header of leaf n − 1. Key n is dropped only
after its leaf is committed: whoever takes the host at time T cannot rewrite what was sealed before. Keys are made
here, never exported and never written; a child made by fork without exec loses them.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import sqlite3
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuaudit.bundle import canonical, limits, note, sealfile, segment, sqlite_file
from gpuaudit.bundle.clock import Clock, HostClock
from gpuaudit.bundle.columns import Rows
from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.bundle.header import NAME, ColumnSpec, Header, Kind
from gpuaudit.bundle.merkle import Frontier, leaf_hash
from gpuaudit.bundle.note import Signer, SignerUnavailable
from gpuaudit.bundle.receipt import Receipt
from gpuaudit.bundle.table import Table

__all__ = ["BundleWriter", "Sealed", "Signer", "SignerUnavailable"]

MAX_CHALLENGE_CHARS = 256
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")


class EpochKey:
    """A key for one leaf. It lives in this object only and is gone, wiped by the library, when that is dropped."""

    def __init__(self) -> None:
        self._private: Ed25519PrivateKey | None = Ed25519PrivateKey.generate()
        self.public_key = self._private.public_key().public_bytes_raw()
        _LIVE.add(self)

    def sign(self, message: bytes) -> bytes:
        """The signature; SignerUnavailable in a child process, which never holds the key."""
        if self._private is None:
            raise SignerUnavailable("this process does not hold the epoch key")
        return self._private.sign(message)

    def drop(self) -> None:
        """Forget the private key."""
        self._private = None


_LIVE: weakref.WeakSet[EpochKey] = weakref.WeakSet()


def _forget_in_child() -> None:
    for key in list(_LIVE):
        key.drop()


os.register_at_fork(after_in_child=_forget_in_child)


@dataclass(frozen=True)
class Sealed:
    """What a seal amounts to: root over ``size`` leaves, digest of the whole file, whether the identity signed it."""

    root_b64: str
    size: int
    file_sha256: str
    by_identity: bool


@dataclass(frozen=True)
class _Leaf:
    """What goes into one leaf before it has a header."""

    kind: Kind
    data: bytes
    table: str | None = None
    raw_len: int | None = None
    rows: int | None = None
    columns: tuple[ColumnSpec, ...] | None = None
    counters: tuple[int | None, int | None, int | None] = (None, None, None)


class BundleWriter:
    """The only way a bundle comes into being. Not for more than one thread."""

    def __init__(self, db: sqlite3.Connection, path: Path, origin: str, identity: Signer, clock: Clock) -> None:
        self._db = db
        self._path = path
        self._identity = identity
        self._clock = clock
        self._frontier = Frontier()
        self._key = EpochKey()
        self._epoch0 = self._key.public_key.hex()
        self._manifest: list[str] = []
        self._counters: dict[str, tuple[int, int, int]] = {}
        self._sealed = False
        self.origin = origin
        self.receipt: Receipt
        self.between_columns: Callable[[], None] | None = None
        """Called again and again while a segment is encoded, which takes a core some hundredths of a second."""

    @classmethod
    def create(
        cls, path: Path | str, *, site: str, host_id: str, capture_uuid: str, open_body: Mapping[str, Any],
        identity: Signer, challenge: str = "", clock: Clock | None = None,
    ) -> BundleWriter:  # fmt: skip
        """Create the file, write leaf 0 and sign it with the identity.

        ``site`` and ``host_id``: letters, digits, dot, underscore, hyphen, at most 64. ``open_body``: JSON; the writer
        adds ``challenge`` and ``identity`` (the raw public key, hex). ValueError for names that cannot stand in an
        origin, OutputExists when the file is there, HostUnfit when it cannot be written.
        """
        for what, value, pattern in (("site", site, _SITE), ("host_id", host_id, _SITE), ("uuid", capture_uuid, _UUID)):
            if not pattern.match(value):
                raise ValueError(f"{what} is {value!r:.80}, which cannot stand in an origin")
        if len(challenge) > MAX_CHALLENGE_CHARS or not challenge.isprintable() or challenge != challenge.strip():
            raise ValueError(f"challenge: at most {MAX_CHALLENGE_CHARS} printable characters on one line")
        body = {**open_body, "challenge": challenge, "identity": identity.public_key.hex()}
        path = Path(path)
        db = sqlite_file.create(path)
        writer = cls(db, path, f"{site}/{host_id}/{capture_uuid}", identity, clock or HostClock())
        try:
            header = writer._append(_Leaf("open", canonical.dumps(body)), by_identity=True)
        except BaseException:
            writer.close()
            raise
        fingerprint = note.spki_sha256(identity.public_key)
        writer.receipt = Receipt(writer.origin, challenge, fingerprint, writer._epoch0, leaf_hash(header).hex())
        return writer

    @property
    def size(self) -> int:
        """Leaves committed so far."""
        return self._frontier.size

    def append_segment(
        self, table: Table, rows: Rows, *, seen: int, written: int, lost: int, critical: bool = False
    ) -> int:
        """Seal rows of a table; the index of the leaf.

        The counters are for the table since the capture began, these rows included: what the source tried to hand
        over, what stands in the bundle, what was lost. ValueError when ``written`` is not the rows appended so far or
        a counter runs backwards; HostUnfit when the disk is full (what is sealed stays sealed).
        """
        encoded = segment.encode(table, rows, self.between_columns)
        before = self._counters.get(table.name, (0, 0, 0))
        counters = (seen, written, lost)
        if written != before[1] + encoded.rows or seen < before[0] or lost < before[2] or seen < written:
            raise ValueError(f"{table.name}: seen, written, lost are {counters} after {before} and {encoded.rows} rows")
        kinds: dict[str, Kind] = {"clock": "clock", "gaps": "gap"}
        kind = kinds.get(table.name, "event" if critical else "segment")
        self._append(_Leaf(kind, encoded.data, table.name, encoded.raw_len, encoded.rows, encoded.columns, counters))
        self._counters[table.name] = counters
        return self.size - 1

    def append_artefact(self, name: str, body: bytes | Mapping[str, Any] | list[Any]) -> int:
        """Seal a named piece of evidence that is not rows: bytes as they are, anything else as canonical JSON."""
        return self._append_named("artefact", name, body)

    def append_event(self, name: str, body: Mapping[str, Any]) -> int:
        """Seal one critical event at once, as canonical JSON."""
        return self._append_named("event", name, body)

    def _append_named(self, kind: Kind, name: str, body: bytes | Mapping[str, Any] | list[Any]) -> int:
        if not NAME.match(name):
            raise ValueError(f"{kind} name {name!r:.60}: lower-case letters, digits and underscores, at most 48")
        self._append(_Leaf(kind, body if isinstance(body, bytes) else canonical.dumps(body), name))
        return self.size - 1

    def seal(self, totals: Mapping[str, Any]) -> Sealed:
        """Write the seal leaf, make one file of the bundle and put its ``.seal`` beside it.

        When the identity cannot sign any more (:class:`SignerUnavailable`) the last epoch key alone seals, and the
        body says so. HostUnfit when the disk is full: the sealed prefix is kept.
        """
        by_identity = True
        try:
            self._append(self._seal_leaf(totals, "identity"), by_identity=True)
        except SignerUnavailable:
            by_identity = False
            self._append(self._seal_leaf(totals, "epoch"))
        self._sealed = True
        sqlite_file.finalise(self._db, self._path)
        digest, length = _digest(self._path)
        root = self._frontier.root()
        text = sealfile.record_text(self.origin, self.size, root, file_sha256=digest, file_len=length)
        try:
            signatures = [note.sign(text, f"{self.origin}/epoch/{self.size - 1}", self._key)]
            if by_identity:
                signatures.append(note.sign(text, f"{self.origin}/identity", self._identity))
        finally:
            self._key.drop()
        _write_new(sealfile.path_beside(self._path), sealfile.assemble([note.assemble(text, signatures)]))
        return Sealed(base64.b64encode(root).decode(), self.size, digest, by_identity)

    def _seal_leaf(self, totals: Mapping[str, Any], sealed_by: str) -> _Leaf:
        body = {"manifest": "".join(self._manifest), "sealed_by": sealed_by, "totals": dict(totals)}
        return _Leaf("seal", canonical.dumps(body))

    def close(self) -> None:
        """Let go of the file. Without :meth:`seal` what was committed stays as an unsealed prefix."""
        self._key.drop()
        self._db.close()

    def _append(self, leaf: _Leaf, *, by_identity: bool = False) -> bytes:
        """Commit one leaf with its checkpoint, then drop its key; the header's bytes."""
        if self._sealed:
            raise ValueError("nothing may follow the seal")
        idx = self.size
        _check_room(leaf, idx)
        following = None if leaf.kind == "seal" else EpochKey()
        payload = os.urandom(limits.SALT_BYTES) + leaf.data
        digest = hashlib.sha256(payload).hexdigest()
        seen, written, lost = leaf.counters
        header = Header(
            idx=idx, kind=leaf.kind, sha256=digest, len=len(payload),
            raw_len=len(leaf.data) if leaf.raw_len is None else leaf.raw_len, rows=leaf.rows, table=leaf.table,
            columns=leaf.columns, boot_id=self._clock.boot_id(), boot_ns=self._clock.boot_ns(),
            utc_ns=self._clock.utc_ns(), seen=seen, written=written, lost=lost,
            next_key=following.public_key.hex() if following else None, epoch0=self._epoch0 if idx == 0 else None,
        ).to_bytes()  # fmt: skip
        hashed = leaf_hash(header)
        text = note.checkpoint_text(self.origin, idx + 1, self._frontier.root_with(hashed))
        signatures = [note.sign(text, f"{self.origin}/epoch/{idx}", self._key)]
        if by_identity:
            signatures.append(note.sign(text, f"{self.origin}/identity", self._identity))
        self._commit(idx, leaf.kind, header, payload, note.assemble(text, signatures))
        self._frontier.append(hashed)
        self._manifest.append(f"{digest}  leaf-{idx}.payload\n")
        if following is not None:
            self._key.drop()
            self._key = following
        return header

    def _commit(self, idx: int, kind: str, header: bytes, payload: bytes, checkpoint: str) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("INSERT INTO leaf VALUES(?,?,?,?)", (idx, kind, header, payload))
            self._db.execute("INSERT INTO checkpoint VALUES(?,?)", (idx + 1, checkpoint))
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise HostUnfit(
                f"cannot write leaf {idx} of {self._path}: {e}",
                hint=f"the {idx} leaves before it are sealed and kept; is the disk full?",
            ) from None


def _check_room(leaf: _Leaf, idx: int) -> None:
    """Refuse what no reader would take."""
    most = limits.MAX_LEAVES - (1 if leaf.kind == "seal" else limits.LEAVES_AT_END if leaf.columns else 2)
    if idx > most:
        raise HostUnfit(f"the bundle is full: it has {idx} leaves", hint="end this capture and start another")
    if len(leaf.data) > limits.MAX_RAW_BYTES and leaf.columns is None:
        raise ValueError(f"{leaf.kind} {leaf.table or ''}: {len(leaf.data)} bytes, more than {limits.MAX_RAW_BYTES}")


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        return digest, f.tell()


def _write_new(path: Path, text: str) -> None:
    """Write a small file durably, as a whole or not at all: half a ``.seal`` would look like tampering."""
    part = path.with_name(path.name + ".part")
    try:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", newline="") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        part.rename(path)
    except OSError as e:
        raise HostUnfit(f"cannot write {path}: {e.strerror}", hint="the bundle itself is sealed and complete") from None
    sqlite_file.sync_folder(path)
