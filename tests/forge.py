"""Bundles by a forger who holds keys of their own: every signature is good, and the rest is whatever the test wants."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpuaudit.bundle import canonical, note, sqlite_file, zstd
from gpuaudit.bundle.merkle import Frontier, leaf_hash
from gpuaudit.bundle.writer import EpochKey
from tests.bundles import CAPTURE_UUID, HOST_ID, SITE, MemorySigner, StepClock

ORIGIN = f"{SITE}/{HOST_ID}/{CAPTURE_UUID}"
SALT = bytes(16)


@dataclass(frozen=True)
class Leaf:
    """One leaf to forge: ``header`` replaces keys of a plausible header, ``raw`` changes its bytes after that."""

    kind: str
    data: bytes
    header: dict[str, Any] = field(default_factory=dict)
    raw: Callable[[bytes], bytes] | None = None


def opening(signer: MemorySigner) -> Leaf:
    """A leaf 0 that names the forger's identity."""
    return Leaf("open", canonical.dumps({"challenge": "", "identity": signer.public_key.hex()}))


def one_column(rows: int, content: bytes, *, frame: bytes | None = None, **spec: Any) -> Leaf:
    """A segment of an unknown table with the one column ``x``; ``spec`` replaces keys of its description."""
    frame = zstd.compress(content) if frame is None else frame
    column = {"name": "x", "dtype": "<u8", "unit": "", "encoding": "plain", "shuffle": False, "valid": False}
    column |= {"entries": None, "offset": 16, "length": len(frame), "raw_len": len(content), **spec}
    counters = {"seen": str(rows), "written": str(rows), "lost": "0"}
    header = {"table": "foo", "rows": rows, "columns": [column], "raw_len": len(content), **counters}
    return Leaf("segment", frame, header)


def u8(*values: int) -> bytes:
    """Eight bytes each."""
    return np.array(values, dtype="<u8").tobytes()


def forge(path: Path, signer: MemorySigner, leaves: Sequence[Leaf]) -> Path:
    """Write ``leaves`` with a genuine chain of epoch keys and the forger's identity."""
    db = sqlite_file.create(path)
    keys = [EpochKey() for _ in range(len(leaves) + 1)]
    clock = StepClock()
    frontier = Frontier()
    for i, leaf in enumerate(leaves):
        payload = SALT + leaf.data
        body = {
            "v": 1, "idx": i, "kind": leaf.kind, "sha256": hashlib.sha256(payload).hexdigest(), "len": len(payload),
            "raw_len": len(leaf.data), "rows": None, "table": None, "columns": None, "boot_id": clock.boot_id(),
            "boot_ns": str(clock.boot_ns()), "utc_ns": str(clock.utc_ns()), "seen": None, "written": None,
            "lost": None, "next_key": None if leaf.kind == "seal" else keys[i + 1].public_key.hex(),
        }  # fmt: skip
        first = {"epoch0": keys[0].public_key.hex()} if i == 0 else {}
        header = canonical.dumps({**body, **first, **leaf.header})
        header = leaf.raw(header) if leaf.raw else header
        frontier.append(leaf_hash(header))
        text = note.checkpoint_text(ORIGIN, i + 1, frontier.root())
        signatures = [note.sign(text, f"{ORIGIN}/epoch/{i}", keys[i])]
        if i == 0 or leaf.kind == "seal":
            signatures.append(note.sign(text, f"{ORIGIN}/identity", signer))
        db.execute("INSERT INTO leaf VALUES(?,?,?,?)", (i, leaf.kind, header, payload))
        db.execute("INSERT INTO checkpoint VALUES(?,?)", (i + 1, note.assemble(text, signatures)))
    sqlite_file.finalise(db, path)
    return path
