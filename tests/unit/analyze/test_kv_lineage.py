"""Life of a KV cache from calls: a server like vLLM that serves, swaps, sleeps, wakes and serves again."""

from __future__ import annotations

import pytest

from gpuaudit.analyze import kv_lineage
from gpuaudit.analyze.finding import Quantity, Section
from gpuaudit.analyze.sections import steps as section
from tests.scenes import MS, T0, US, S, Scene
from tests.server_steps import KV, WEIGHTS, server
from tests.unit.analyze.test_steps import numbers, table

MIB = 1 << 20
STEPS = 40
SLEEP, WAKE = T0 + 4 * S, T0 + 20 * S
CACHE = (KV, KV + (256 << 20), KV + (1 << 32))
"""Two pieces that are mapped side by side, and one by itself, of 256 MiB each."""


def mapped(scene: Scene, at: int) -> None:
    for i, address in enumerate(CACHE):
        scene.cuda(7, "cuMemMap", at + i * MS, 100 * US, size_bytes=256 << 20, device_pointer=address, handle=i,
                   python_stack=77)  # fmt: skip


def steps(scene: Scene, start: int) -> None:
    """Every tenth is a prefill; 50 ms apart."""
    for i in range(STEPS):
        at, prefill = start + i * 50 * MS, i % 10 == 0
        launch = "cudaLaunchKernel" if prefill else "cudaGraphLaunch"
        scene.cuda(7, launch, at, 20 * US, stream=1)
        scene.cuda(7, "cudaStreamSynchronize", at + 10 * MS, 10 * MS, stream=1)


def copy(scene: Scene, at: int, direction: int | None, to: int, source: int, **more: object) -> None:
    values = {"size_bytes": MIB, "direction": direction, "device_pointer": to, "source_pointer": source, **more}
    scene.cuda(7, str(values.pop("op", "cudaMemcpyAsync")), at, 10 * US, **values)


def sleeper() -> Scene:
    """Weights are allocated, the cache is mapped: 40 steps, asleep for 16 s, and 40 steps in new memory."""
    scene = Scene().clock().process(7, start_ns=T0 + MS)
    scene.add(
        "engines", start_ns=T0, duration_ns=S, engine=0, op="vllm", url="http://127.0.0.1:8000/metrics", pid=7,
        found_by="listening socket of a traced process", remote=0, state="scraped",
    )  # fmt: skip
    scene.add("stack_frames", start_ns=T0, pid=7, tid=7, stack=77, kind="python", depth=0, path="cumem.py", line=139,
              symbol="create_and_map")  # fmt: skip
    for at in (T0 + 10 * MS, WAKE):
        scene.cuda(7, "cuMemMap", at, 100 * US, size_bytes=256 << 20, device_pointer=WEIGHTS)
        for i in range(4):
            scene.cuda(7, "cudaMemcpy", at + (2 + 20 * i) * MS, 10 * MS, size_bytes=64 << 20, direction=1,
                       device_pointer=WEIGHTS + i * (64 << 20), source_pointer=4_096)  # fmt: skip
    mapped(scene, T0 + 200 * MS)
    mapped(scene, WAKE + 200 * MS)
    for i, address in enumerate((*CACHE, WEIGHTS)):
        scene.cuda(7, "cuMemUnmap", SLEEP + i * MS, 50 * US, device_pointer=address, size_bytes=256 << 20)
    steps(scene, T0 + S)
    steps(scene, WAKE + S)
    return scene


def moved() -> Scene:
    """The same with a copy of every way."""
    scene = sleeper()
    scene.cuda(7, "cudaMalloc", T0 + 300 * MS, MS, size_bytes=MIB, device_pointer=1 << 30)
    at = T0 + S
    for i in (3, 4):  # swapped out: before a decode step by its thread, and in one by another
        copy(scene, at + i * 50 * MS - 2 * MS, 2, 4_096, KV + MIB, size_bytes=2 * MIB)
        copy(scene, at + i * 50 * MS + 2 * MS, 2, 4_096, KV + MIB, size_bytes=4 * MIB, tid=8)
    copy(scene, at + 10 * 50 * MS + MS, 3, CACHE[2], KV)  # in a prefill
    copy(scene, at + 11 * 50 * MS + MS, 3, 1 << 40, KV + 5)
    copy(scene, at + 11 * 50 * MS + 2 * MS, 4, KV, (1 << 30) + 5)
    copy(scene, at + 11 * 50 * MS + 3 * MS, None, KV, 5)
    for device in (1, 0):  # to another GPU, and to the same one
        copy(scene, at + 12 * 50 * MS + MS, 3, 1 << 41, KV, op="cudaMemcpyPeerAsync", device=device, peer_device=0)
    scene.cuda(7, "cudaMemcpyBatchAsync", at + 13 * 50 * MS, 10 * US, stream=1)
    copy(scene, SLEEP + S, 2, 4_096, KV)  # of memory that is not there
    copy(scene, WAKE + S + 50 * MS - 2 * MS, 1, KV + MIB, 4_096)  # and back, in the second life
    copy(scene, WAKE + 10 * S, 1, KV, 4_096)
    return scene


@pytest.fixture(scope="module")
def made() -> Section:
    return section.evaluate(moved().context())


def test_a_cache_that_sleeps_and_wakes_has_two_generations(made: Section) -> None:
    first, second = table(made, "kv_cache").rows
    slept = SLEEP + MS - T0 - 200 * MS - 100 * US  # half of it was gone when the second of three was freed
    assert numbers(first[1:]) == [
        "1 of 2", 200 * MS + 100 * US, 200 * MS + 100 * US - 82 * MS, slept, "freed", 768 << 20, 3, "cuMemMap",
        "cumem.py:139 in create_and_map()", "7",
    ]  # fmt: skip
    assert numbers((second[1], *second[5:8])) == ["2 of 2", "alive at the end", 768 << 20, 3]


def test_copies_are_told_by_way_and_by_the_step_that_they_fall_into(made: Section) -> None:
    rows = [numbers(r[1:]) for r in table(made, "kv_moves").rows]
    assert rows == [
        ["1 of 2", "to the host", "decode", 8 * MIB, 2, 2],
        ["1 of 2", "to the host", "before decode", 4 * MIB, 2, 2],
        ["1 of 2", "inside the cache", "prefill or mixed", MIB, 1, 1],
        ["1 of 2", "from other memory of a GPU", "decode", MIB, 1, 1],
        ["1 of 2", "to other memory of a GPU", "decode", 2 * MIB, 2, 2],
        ["1 of 2", "to another GPU", "decode", MIB, 1, 1],
        ["1 of 2", "from memory that is not told", "decode", MIB, 1, 1],
        ["2 of 2", "from the host", "before decode", MIB, 1, 1],
        ["2 of 2", "from the host", "no step", MIB, 1, None],
        ["", "not told, or other memory", "", None, 1, None],
    ]


def test_a_sentence_says_what_was_swapped_in_how_many_steps(made: Section) -> None:
    said = [
        {k: v.value if isinstance(v, Quantity) else v for k, v in x.values.items() if k != "process"}
        for x in made.statements
    ]
    assert said == [
        {"phase": "decode", "bytes": 12 * MIB, "copies": 4, "steps": 2},
        {"phase": "decode", "bytes": MIB, "copies": 1, "steps": 1},
    ]


def test_every_number_leads_to_its_rows() -> None:
    context = moved().context()
    told = section.evaluate(context)
    entries = {e.id: e for e in context.book.entries()}
    for row in (*table(told, "kv_moves").rows, *table(told, "kv_cache").rows):
        for q in (c for c in row if isinstance(c, Quantity)):
            (used,) = q.evidence
            assert len(context.store.sql(entries[used].query)) == entries[used].rows > 0
    out = next(r for r in table(told, "kv_moves").rows if r[2:4] == ("to the host", "decode"))[4]
    assert isinstance(out, Quantity)
    assert entries[out.evidence[0]].rows == 2


def test_many_copies_are_told_by_what_they_have_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_lineage, "MAX_KEYS", 1)
    monkeypatch.setattr(kv_lineage, "MAX_RANGES", 1)
    context = moved().context()
    rows = [numbers(r[1:]) for r in table(section.evaluate(context), "kv_moves").rows]
    assert rows[0] == ["1 of 2", "to the host", "decode", 8 * MIB, 2, 2]


def test_what_the_host_fills_before_the_next_step_is_no_cache_and_later_swaps_do_not_count() -> None:
    scene = server(count=60)
    for i in range(80):  # five times its size, from the second step on
        copy(scene, T0 + S + 60 * MS + i * MS, 1, KV + i % 10 * MIB, 4_096, size_bytes=32 * MIB)
    assert len(table(section.evaluate(scene.context()), "kv_cache").rows) == 1
    scene = server(count=60)
    copy(scene, T0 + 300 * MS, 1, KV, 4_096, size_bytes=256 * MIB)
    assert not [t for t in section.evaluate(scene.context()).tables if t.id == "kv_cache"]


def test_memory_of_a_passing_moment_is_no_cache() -> None:
    scene = server(count=60)
    scene.cuda(7, "cudaMalloc", T0 + 900 * MS, MS, size_bytes=1 << 30, device_pointer=1 << 33)
    scene.cuda(7, "cudaFree", T0 + 2 * S, MS, device_pointer=1 << 33)
    ((_, _, _, _, _, _, size, pieces, *_),) = table(section.evaluate(scene.context()), "kv_cache").rows
    assert numbers([size, pieces]) == [512 << 20, 1]


def test_pages_that_are_mapped_one_by_one_are_one_cache() -> None:
    scene = server(count=60)
    kept = [r for r in scene.rows["cuda_calls"] if not KV <= (r.get("device_pointer") or 0) < WEIGHTS]
    scene.rows["cuda_calls"] = kept
    for i in range(32):
        scene.cuda(7, "cuMemMap", T0 + (200 + i) * MS, 10 * US, size_bytes=2 * MIB, device_pointer=KV + i * 2 * MIB)
    ((_, _, _, _, _, _, size, pieces, op, place, _),) = table(section.evaluate(scene.context()), "kv_cache").rows
    assert numbers([size, pieces, op, place]) == [64 * MIB, 32, "cuMemMap", "no stack was taken of these calls"]


def test_a_server_whose_load_was_not_seen_is_told_as_such() -> None:
    scene = server(count=60)
    scene.lost["cuda_calls"] = 3
    told = section.evaluate(scene.context())
    assert told.notes == ("KV cache of python3 (7): not told: 3 records of cuda_calls were lost.",)
