"""Real bundles for tests, made by the real writer, and the means to attack them."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuaudit.bundle import note, sealfile
from gpuaudit.bundle.columns import Rows, from_records
from gpuaudit.bundle.header import Header, parse
from gpuaudit.bundle.keys import Identity
from gpuaudit.bundle.merkle import Frontier, leaf_hash
from gpuaudit.bundle.note import Signature, Signer
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.writer import BundleWriter, SignerUnavailable

CAPTURE_UUID = "0b9f3a52-6a7e-4c1d-9a51-3f1f3f6f2a10"
HOST_ID = "host-1"
SITE = "lab"


class MemorySigner:
    """An identity that lives in memory; ``absent`` makes it refuse, as a token does that was pulled out."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.public_key = self._private.public_key().public_bytes_raw()
        self.absent = False

    @property
    def identity(self) -> Identity:
        return Identity(self.public_key)

    def sign(self, message: bytes) -> bytes:
        if self.absent:
            raise SignerUnavailable("the token is not there")
        return self._private.sign(message)


class StepClock:
    """A clock that moves a second per reading, until told otherwise."""

    def __init__(self) -> None:
        self.boot = 1_000_000_000_000
        self.utc = 1_790_000_000_000_000_000

    def boot_id(self) -> str:
        return "5f0c5a4e-8b1c-4d8e-9a55-0d6cf6a5b0aa"

    def boot_ns(self) -> int:
        self.boot += 1_000_000_000
        return self.boot

    def utc_ns(self) -> int:
        self.utc += 1_000_000_000
        return self.utc


def gap_rows(count: int, first: int = 0) -> Rows:
    records = [
        {"start_ns": first + i, "duration_ns": None if i % 3 else i, "source": "nvml", "reason": f"poll {i} late"}
        for i in range(count)
    ]
    return from_records(TABLES["gaps"], records)


def clock_rows(count: int) -> Rows:
    records = [
        {"start_ns": i, "duration_ns": 100, "realtime_ns": -i, "monotonic_ns": 2**64 - 1 - i} for i in range(count)
    ]
    return from_records(TABLES["clock"], records)


def open_writer(path: Path, identity: Signer, **options: Any) -> BundleWriter:
    options = {"capture_uuid": CAPTURE_UUID, "clock": StepClock(), **options}
    return BundleWriter.create(path, site=SITE, host_id=HOST_ID, open_body={"host": {}}, identity=identity, **options)


def fill(writer: BundleWriter) -> None:
    """Leaf 1 gap, 2 clock, 3 artefact, 4 event."""
    writer.append_segment(TABLES["gaps"], gap_rows(20), seen=21, written=20, lost=1)
    writer.append_segment(TABLES["clock"], clock_rows(5), seen=5, written=5, lost=0)
    writer.append_artefact("cost", {"probe_pair_ns": "510"})
    writer.append_event("oom", {"pid": 77})


def make_bundle(path: Path, identity: Signer, *, seal: bool = True, **options: Any) -> BundleWriter:
    """Six leaves with the seal, five without; without it the file is left as after a crash, its log beside it."""
    writer = open_writer(path, identity, **options)
    fill(writer)
    if seal:
        writer.seal({"gaps": {"seen": "21", "written": "20", "lost": "1"}})
        writer.close()
    return writer


def copy_bundle(source: Path, folder: Path, *, seal: bool = True) -> Path:
    """A copy to attack, with or without its ``.seal``; no log."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "bundle.db"
    shutil.copyfile(source, target)
    if seal:
        shutil.copyfile(sealfile.path_beside(source), sealfile.path_beside(target))
    return target


def alter(path: Path, *statements: str, parameters: tuple[Any, ...] = (), unchecked: bool = False) -> None:
    """Change a bundle with plain SQL, as an attacker with sqlite3 would."""
    db = sqlite3.connect(path, isolation_level=None)
    if unchecked:
        db.execute("PRAGMA ignore_check_constraints=ON")
    for statement in statements:
        db.execute(statement, parameters if statement.count("?") else ())
    db.close()


def leaves(path: Path) -> list[tuple[int, bytes, bytes, str]]:
    """(idx, header, payload, note) of every leaf."""
    db = sqlite3.connect(path)
    found = db.execute("SELECT idx,header,payload,note FROM leaf JOIN checkpoint ON size=idx+1 ORDER BY idx").fetchall()
    db.close()
    return found


def replace_leaf(path: Path, idx: int, header: Header, payload: bytes | None = None) -> None:
    """Put another header (and payload) in the place of a leaf, its checkpoint left alone."""
    alter(path, "UPDATE leaf SET header=? WHERE idx=?", parameters=(header.to_bytes(), idx))
    if payload is not None:
        alter(path, "UPDATE leaf SET payload=? WHERE idx=?", parameters=(payload, idx))


def change_header(path: Path, leaf: int, **changes: Any) -> Header:
    """A header of the bundle with some of its fields replaced; nothing is written."""
    found = parse(leaves(path)[leaf][1], leaf)
    return Header(**{**vars(found), **changes})


def resign(path: Path, first: int, keys: Mapping[str, Signer]) -> None:
    """Recompute every checkpoint from leaf ``first`` on and sign it with what keys the attacker has, by name."""
    frontier = Frontier()
    for idx, header, _, old in leaves(path):
        frontier.append(leaf_hash(header))
        if idx < first:
            continue
        origin = old.partition("\n")[0]
        text = note.checkpoint_text(origin, idx + 1, frontier.root())
        _, before = note.parse(old)
        signatures: list[Signature] = [note.sign(text, s.name, keys[s.name.rpartition("/")[2]]) for s in before]
        alter(path, "UPDATE checkpoint SET note=? WHERE size=?", parameters=(note.assemble(text, signatures), idx + 1))


def withhold(path: Path, identity: Signer, *indexes: int) -> None:
    """Take payloads out of a sealed bundle and say so in its ``.seal``, as the holder of the identity may."""
    digests = {i: hashlib.sha256(leaves(path)[i][2]).hexdigest() for i in indexes}
    for i in indexes:
        alter(path, "UPDATE leaf SET payload=NULL WHERE idx=?", parameters=(i,))
    alter(path, "VACUUM")
    beside = sealfile.path_beside(path)
    before = sealfile.parse(beside.read_bytes())[-1]
    data = path.read_bytes()
    text = sealfile.record_text(
        before.origin, before.size, before.root, file_sha256=hashlib.sha256(data).hexdigest(), file_len=len(data),
        withheld=digests,
    )  # fmt: skip
    record = note.assemble(text, [note.sign(text, f"{before.origin}/identity", identity)])
    beside.write_text(beside.read_text("utf-8") + sealfile.assemble([record]), "utf-8")
