"""Which file system a request to a disk belongs to: the one whose sectors it touches, while it was mounted.

A file system is named where all of the requests lie in it, and in no other as well; where it is mounted, if one mount
shows all of it, or it has no other. Nothing is guessed: where a device is made of several disks, nothing is known of
them. Units: ns, sectors of 512 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.evidence import RowKeys
from gpuaudit.analyze.store import Store

SECTOR_BYTES = 512
MAX_SECTORS = 1 << 53
"""More than any disk has."""

MAX_ROWS = 16_384
"""Of more mounts nothing is named: some of them would decide what the others mean."""

EVER_NS = (1 << 63) - 1
"""Of a mount that was there until the end."""

COLUMNS = {
    "sector": f"CASE WHEN sector < {MAX_SECTORS} THEN sector ELSE -1 END::BIGINT",
    "size_bytes": "coalesce(size_bytes::BIGINT, 0)",
}
"""SQL: what is asked of ``block_io``, beside bounds and device."""


@dataclass(frozen=True)
class Mount:
    """One mount of a file system, and where that lies on its disk; seen from ``from_ns`` until ``to_ns``."""

    device: tuple[int, int]
    type: str
    root: str
    path: str
    disk: tuple[int, int]
    first: int
    end: int
    from_ns: int
    to_ns: int
    key: tuple[int, int]


@dataclass(frozen=True)
class Place:
    """A file system: its device, how it is called in a sentence, where it is mounted (empty: in several places, or not
    known which), and the rows that say so."""

    device: str
    text: str
    path: str
    rows: RowKeys


def read_mounts(store: Store) -> list[Mount]:
    """Every mount whose file system lies on one disk."""
    rows = store.sql(
        "SELECT op, start_ns, mount_id, major, minor, type, root, path, disk_major, disk_minor, first_sector, sectors, "
        "leaf, row FROM mounts WHERE disk_major IS NOT NULL AND disk_minor IS NOT NULL AND first_sector < "
        f"{MAX_SECTORS} AND sectors < {MAX_SECTORS} ORDER BY start_ns, op DESC, leaf, row LIMIT {MAX_ROWS + 1}"
    )
    if len(rows) > MAX_ROWS:
        return []
    gone: dict[tuple[Any, ...], int] = {}
    out = []
    for op, at, mount_id, major, minor, kind, root, path, disk, part, first, length, leaf, row in reversed(rows):
        same = (mount_id, major, minor, root, path)
        if op == "unmounted":
            gone[same] = int(at)
            continue
        out.append(Mount(
            (int(major), int(minor)), str(kind), str(root), str(path), (int(disk), int(part)), int(first),
            int(first) + int(length), int(at), gone.pop(same, EVER_NS), (int(leaf), int(row)),
        ))  # fmt: skip
    return out[::-1]


def place(mounts: Sequence[Mount], requests: Mapping[str, npt.NDArray[Any]]) -> Place | None:
    """Of requests to one disk (``block_io`` rows with :data:`COLUMNS`), some at least."""
    starts, ends, sector, size = (requests[c] for c in ("start_ns", "end_ns", "sector", "size_bytes"))
    placed = size > 0  # a flush is of the whole disk
    if not placed.any():
        return None
    disk = (int(requests["major"][0]), int(requests["minor"][0]))
    first, end = int(sector[placed].min()), int((sector + -(-size // SECTOR_BYTES))[placed].max())
    low, high = int(starts.min()), int(ends.max())
    held = [m for m in mounts if m.disk == disk and m.from_ns <= low and high <= m.to_ns]
    found = [m for m in held if m.first <= first and end <= m.end]
    if len({(m.device, m.type) for m in found}) != 1:
        return None
    whole = [m for m in found if m.root == "/"] or found
    path = whole[0].path if len({m.path for m in whole}) == 1 else ""
    device = f"{found[0].device[0]}:{found[0].device[1]}"
    where = f"mounted at {path}" if path else f"on {device}, which is mounted in several places"
    keys = np.array([m.key for m in found], dtype=np.int64)
    return Place(device, f"the {found[0].type} file system {where}", path, keys)
