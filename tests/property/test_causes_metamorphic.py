"""What may change without changing what caused what: clocks, names, segments, order, and processes that stand by.

A thread's slow call of 40 ms is cut into slots; in each it may be preempted by somebody or by interrupts, wait for a
sibling's lock or a disk, free memory, or sleep for reasons of its own, which is no cause. Its sibling is disturbed too,
and so is a process that stands by.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.analyze.causal.detect import shares
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.quality import read_quality
from gpuaudit.analyze.window import read_window
from tests.rule_scenes.slow import AT, block, launches, off
from tests.scenes import MS, Row, Scene

Kind = Literal["preempted", "irq_load", "lock_wait", "blocking_io", "memory_reclaim", "asleep"]
Slots = dict[int, tuple[Kind, int]]

SLOTS, SLOT = 8, 5 * MS
TIMES = ("start_ns", "wake_ns", "seen_ns", "monotonic_ns")
NAMES = {"hog": "zz-hog", "python3": "aa-trainer", "loader": "0-loader", "swapper/1": "swapper/1"}
CULPRIT = {
    "preempted": "hog", "irq_load": "interrupt work of ksoftirqd/1", "lock_wait": "loader", "blocking_io": "disk 259:0",
    "memory_reclaim": "",
}  # fmt: skip
"""What the culprit's name begins with, by detector."""

kinds = st.sampled_from([*CULPRIT, "asleep"])
slots = st.dictionaries(st.integers(0, SLOTS - 1), st.tuples(kinds, st.integers(MS, SLOT)), min_size=2)


def disturb(scene: Scene, slot: int, kind: Kind, length: int, pid: int = 7) -> Scene:
    """One disturbance of the main thread of ``pid``, from the beginning of a slot."""
    at = AT + slot * SLOT
    asleep: dict[str, Any] = {
        "op": "blocked",
        "next_pid": 0,
        "next_tid": 0,
        "next_comm": "swapper/1",
        "runqueue_ns": 0,
        "pid": pid,
    }
    if kind == "preempted":
        return off(scene, at, length, pid=pid)
    if kind == "irq_load":
        return off(scene, at, length, pid=pid, next_pid=15, next_tid=15, next_comm="ksoftirqd/1")
    if kind == "memory_reclaim":
        return scene.add(
            "reclaims", start_ns=at, duration_ns=length, pid=pid, tid=pid, op="host", cgroup_limit=0, comm="python3",
            order=0, reclaimed_pages=32,
        )  # fmt: skip
    if kind == "lock_wait":
        woken: dict[str, Any] = {"wake_ns": at + length, "waker_pid": pid, "waker_tid": pid + 1, "waker_comm": "loader"}
        off(scene, at, length // 2, pid=pid, tid=pid + 1)
        return off(scene, at, length, prev_state=1, syscall=202, **asleep, **woken)
    if kind == "blocking_io":
        block(scene, at, length, pid=pid, queue_ns=0)
        return off(scene, at, length, prev_state=2, syscall=17, **asleep)
    return off(scene, at, length, prev_state=1, syscall=230, **asleep)


def made(disturbed: Slots) -> Scene:
    scene = launches(slow=SLOTS * SLOT, count=150)
    for slot, (kind, length) in disturbed.items():
        disturb(scene, slot, kind, length)
    return beside(scene, 50)


def beside(scene: Scene, pid: int) -> Scene:
    """A process that stands by: its own slow call, preempted, at the same time."""
    launches(slow=20 * MS, pid=pid, count=150, scene=scene)
    return off(scene, AT, 15 * MS, pid=pid, next_pid=98, next_tid=98, next_comm="other")


def essence(context: Context, about: int | None = None) -> Any:
    """The chains (of one process, or all) and every effect's table of shares, without ids of rows."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k != "evidence"}
        return [plain(v) for v in value] if isinstance(value, list) else value

    found = context.causal
    effects = [e for e in found.effects if about in (None, e.pid)]
    return plain(
        {
            "chains": [c.to_json() for c in found.chains if about in (None, int(c.subject["pid"]))],
            "shares": {e.key: [s.to_json() for s in shares(e, found.allotments[e.key])] for e in effects},
        }
    )


def moved(by: int) -> Callable[[str, list[Row]], list[Row]]:
    def change(_: str, rows: list[Row]) -> list[Row]:
        return [{k: v + by if k in TIMES and v is not None else v for k, v in r.items()} for r in rows]

    return change


def renamed(_: str, rows: list[Row]) -> list[Row]:
    return [
        {k: NAMES.get(v, v) if isinstance(v, str) and k.endswith("comm") else v for k, v in r.items()} for r in rows
    ]


def shuffled(seed: int) -> Callable[[str, list[Row]], list[Row]]:
    def change(table: str, rows: list[Row]) -> list[Row]:
        random.Random(f"{seed}{table}").shuffle(rows)
        return rows

    return change


def with_names_changed(essence_: Any) -> Any:
    text = json.dumps(essence_)
    for old, new in NAMES.items():
        text = text.replace(old, new)
    return json.loads(text)


@settings(max_examples=3, deadline=None)
@given(slots, st.integers(-(10**11), 10**17), st.integers(0, 2**32))
def test_nothing_changes(disturbed: Slots, by: int, seed: int) -> None:
    scene = made(disturbed)
    context = scene.context()
    whole = essence(context)
    for table in whole["shares"].values():
        assert sum(Fraction(*_pair(row["share"]["value"])) for row in table) == 1
    assert essence(scene.mapped(moved(by)).context()) == whole, "clocks shifted"
    assert essence(scene.mapped(shuffled(seed)).context()) == whole, "rows shuffled"
    assert essence(scene.mapped(renamed).context()) == with_names_changed(whole), "processes renamed"
    mine = essence(context, about=7)
    assert essence(beside(scene.mapped(lambda _, rows: rows), 60).context(), about=7) == mine, "a bystander more"


def _pair(value: Any) -> tuple[int, int]:
    return (int(value["num"]), int(value["den"])) if isinstance(value, dict) else (int(value), 1)


@settings(max_examples=2, deadline=None)
@given(slots)
def test_cut_into_segments(disturbed: Slots) -> None:
    scene = made(disturbed)
    assert essence(_cut(scene, 5)) == essence(scene.context())


def _cut(scene: Scene, segments: int) -> Context:
    store = scene.store(segments)
    window = read_window(store)
    return Context(store, window, read_quality(store, window, "SEALED"), EvidenceBook(store))


@settings(max_examples=4, deadline=None)
@given(slots, st.integers(0, SLOTS - 1), st.sampled_from(list(CULPRIT)), st.integers(2 * MS, SLOT))
def test_more_of_a_disturbance_never_lowers_its_share(disturbed: Slots, slot: int, kind: Kind, length: int) -> None:
    before = {n: d for n, d in disturbed.items() if n != slot}
    scene = made(before)
    more = disturb(made(before), slot, kind, length)
    assert allotted(more, kind) == allotted(scene, kind) + length


def allotted(scene: Scene, kind: str) -> int:
    """ns of the slow call of process 7 that were allotted to the disturbance."""
    found = scene.context().causal
    (effect,) = [e for e in found.effects if (e.kind, e.pid) == ("slow_call", 7)]
    return sum(
        p.allotted_ns
        for p in found.allotments[effect.key].parts
        if p.who[0].declaration.id == kind and p.who[1].culprit.startswith(CULPRIT[kind])
    )
