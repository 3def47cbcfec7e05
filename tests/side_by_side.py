"""Copies of what a scene holds under other identities, beside the original on the same host.

A copy has all rows of its processes, GPUs, communicators and cgroups, at the same times, with the same names; only the
numbers that tell them apart are others. Rows of no such thing (clocks, mounts, the host's own counters) are the host's,
which there is once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from tests.scenes import Row, Scene

NUMBERS = frozenset({
    "pid", "tid", "parent_pid", "next_pid", "next_tid", "waker_pid", "waker_tid", "for_pid", "killer_pid", "other_pid",
    "gpu_index", "cgroup_id", "next_cgroup_id",
})  # fmt: skip
OF_ROOTS = frozenset({"cgroup_id", "next_cgroup_id"})
"""0 and 1 are the root's, which there is once."""
COMMUNICATORS = frozenset({"comm_id", "parent_comm_id"})
TEXTS: dict[str, Callable[[str, int], str]] = {
    "gpu_uuid": lambda text, k: f"{text}-k{k}",
    "cgroup": lambda text, k: f"/k{k}{text}",
    "cpu_cgroup": lambda text, k: f"/k{k}{text}",
    "local_address": lambda text, k: f"7{k}.{text}",
    "remote_address": lambda text, k: f"7{k}.{text}",
}  # fmt: skip
"""Addresses are texts to the analysis."""
IDENTITIES = NUMBERS | COMMUNICATORS | TEXTS.keys()
MILLION = 1_000_000
LEAST = 735
"""Millions from which the numbers of copies begin, far from those of scenes, so that a sentence can be put back."""


def number(value: int, k: int) -> int:
    """What a number is in copy ``k``, which counts from 0."""
    return (LEAST + k) * MILLION + value


def copied(scene: Scene, k: int, only: Collection[int] = ()) -> Scene:
    """Copy ``k`` of the scene, or (``only``) of what these processes did: they share GPUs, cgroups and peers then."""
    other = scene.mapped(lambda _, rows: [c for r in rows if (c := _copy(r, k, only)) is not None])
    other.rows = {table: rows for table, rows in other.rows.items() if rows}
    other.lost = {}
    other.artefacts = [(name, _gpus(body, k)) for name, body in other.artefacts if not only and name == "gpus"]
    return other


def _copy(row: Row, k: int, only: Collection[int]) -> Row | None:
    if only:
        if row.get("pid") not in only:
            return None
        return {c: number(v, k) if (c.endswith("pid") and v in only) or c == "tid" else v
                for c, v in row.items()}  # fmt: skip
    mine = {c: _identity(c, row[c], k) for c in row.keys() & IDENTITIES if row[c] is not None}
    return {**row, **mine} if any(v != row[c] for c, v in mine.items()) else None


def _identity(column: str, value: Any, k: int) -> Any:
    if column in NUMBERS:
        return value if value < 1 + (column in OF_ROOTS) and column != "gpu_index" else number(value, k)
    if column in COMMUNICATORS:
        return value + (k + 1 << 48)
    return TEXTS[column](value, k) if column in TEXTS else value


def _gpus(body: bytes, k: int) -> bytes:
    told = json.loads(body)
    for gpu in told["gpus"]:
        gpu["uuid"] = TEXTS["gpu_uuid"](gpu["uuid"], k)
    return json.dumps(told).encode()


def together(scenes: Sequence[Scene]) -> Scene:
    """All of them on one host, whose clock is the first one's."""
    whole = scenes[0].mapped(lambda _, rows: rows)
    for scene in scenes[1:]:
        for table, rows in scene.rows.items():
            mine = whole.rows.setdefault(table, [])
            mine += [{**r, "seq": len(mine) + i} if "seq" in r else dict(r) for i, r in enumerate(rows)
                     if table != "clock"]  # fmt: skip
        whole.open_body.update(scene.open_body)
    facts = [json.loads(body) for s in scenes for name, body in s.artefacts if name == "gpus"]
    if facts:
        body = json.dumps({"gpus": [gpu for told in facts for gpu in told["gpus"]]}).encode()
        whole.artefacts = [*(a for a in whole.artefacts if a[0] != "gpus"), ("gpus", body)]
    return whole


def of_host(scene: Scene) -> dict[str, list[Row]]:
    """Rows of the host itself, its clock aside: a copy has none of them."""
    mine = {t: [r for r in rows if _copy(r, 0, ()) is None] for t, rows in scene.rows.items() if t != "clock"}
    return {table: rows for table, rows in mine.items() if rows}


def which(pid: int) -> int | None:
    """The copy that a process belongs to; None for the original."""
    return pid // MILLION - LEAST if pid >= LEAST * MILLION else None


def as_original(text: str, k: int, scene: Scene) -> str:
    """A text about copy ``k`` of ``scene`` in the names of the original."""
    for new, old in _texts(scene, k):
        text = text.replace(new, old)
    return re.sub(rf"(?<!\d){LEAST + k}(\d{{6}})(?!\d)", lambda m: str(int(m[1])), text)


def _texts(scene: Scene, k: int) -> Iterator[tuple[str, str]]:
    for row in (r for rows in scene.rows.values() for r in rows):
        for column in row.keys() & COMMUNICATORS:
            if row[column] is not None:
                yield f"{_identity(column, row[column], k):016x}", f"{row[column]:016x}"
        for column in row.keys() & TEXTS.keys():
            if row[column] is not None:
                yield _identity(column, row[column], k), row[column]
