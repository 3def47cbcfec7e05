"""Detectors that explain calls by calls: cold starts, bursts of allocations, copies; and what they leave alone."""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze.context import Found, NotEvaluated
from gpuaudit.analyze.finding import Chain, Quantity
from gpuaudit.analyze.registry import plugins
from tests.rule_scenes import allocation_burst, allocator_thrash, cold_start, synchronous_copy
from tests.scenes import MS, T0, US, S, Scene, collectives

DETECTORS = {p.declaration.id: p.evaluate for p in plugins()}


def chains(scene: Scene, detector: str) -> list[Chain]:
    """What a detector tells of a scene."""
    outcome = DETECTORS[detector](scene.context())
    assert isinstance(outcome, Found), outcome
    return [x for x in outcome.items if isinstance(x, Chain)]


def refused(scene: Scene, detector: str) -> str:
    """Why it could not look."""
    outcome = DETECTORS[detector](scene.context())
    assert isinstance(outcome, NotEvaluated), outcome
    return outcome.reason


def number(chain: Chain, name: str) -> Fraction:
    """A value of a chain."""
    q = chain.values[name]
    assert isinstance(q, Quantity)
    assert q.value is not None
    return Fraction(q.value)


def test_the_first_call_of_a_new_process_is_a_cold_start() -> None:
    (chain,) = chains(cold_start.launches(), "cold_start")
    assert number(chain, "effect_time") == number(chain, "explained") == 26 * MS
    assert chain.text == "kernel"
    assert sum(s.share.value or 0 for s in chain.shares) == 1


def test_the_first_recorded_call_of_a_process_found_running_is_not_its_first() -> None:
    scene = cold_start.launches(began=T0 - 100 * S)
    assert len(chains(scene, "cold_start")) == 1, "two seconds of silence before it: it had most likely not begun"
    for row in scene.rows["cuda_calls"]:
        row["start_ns"] -= 2 * S - 100 * MS
    assert chains(scene, "cold_start") == []


def test_a_second_slow_launch_of_the_kernel_is_no_cold_start() -> None:
    scene = cold_start.launches(first=70 * US)
    scene.rows["cuda_calls"][10]["duration_ns"] = 26 * MS
    assert chains(scene, "cold_start") == []


def test_a_first_synchronisation_waited_for_what_was_given_before_it() -> None:
    scene = cold_start.launches(function=None)
    for row in scene.rows["cuda_calls"]:
        row["op"] = "cudaStreamSynchronize"
    assert chains(scene, "cold_start") == []


def test_an_operation_that_was_counted_before_has_no_first_row() -> None:
    scene = cold_start.launches(function=None)
    assert [c.text for c in chains(scene, "cold_start")] == ["operation"]
    scene.add(
        "call_totals", start_ns=T0 + S, duration_ns=S // 2, pid=7, tid=7, op="cudaLaunchKernel", low_ns=1, high_ns=1024,
        count=5, sum_ns=1_000, min_ns=100, max_ns=300, size_bytes=0, errors=0, nested=0,
    )  # fmt: skip
    assert chains(scene, "cold_start") == []


def test_calls_that_another_tool_counted_before_without_rows_come_first() -> None:
    for op, kept in (("cudaLaunchKernel", 9), ("cuLaunchKernelEx", None)):
        scene = cold_start.launches()
        scene.add(
            "period_totals", start_ns=T0, duration_ns=S, pid=7, op=op, count=10, kept=kept, sum_ns=S // 100,
            min_ns=1, max_ns=MS,
        )  # fmt: skip
        assert {c.text for c in chains(scene, "cold_start")} == (set() if kept else {"operation"})
        scene.rows["period_totals"][0].update(kept=10)
        assert len(chains(scene, "cold_start")) == 1


def test_only_the_part_of_a_call_that_loads_code_is_claimed() -> None:
    (chain,) = chains(cold_start.loading(), "cold_start")
    assert (chain.text, number(chain, "share")) == ("loading", Fraction(13, 15))
    assert chain.shares[-1].time.value == 2 * MS


def test_a_first_collective_that_waited_for_a_late_rank_was_not_connecting() -> None:
    scene = collectives("blocking", steps=20, late={2: 300 * MS}, late_steps=[0], gap=500 * MS)
    for rank in range(4):
        scene.process(100 + rank, start_ns=T0)
    for chain in chains(scene, "cold_start"):
        assert number(chain, "explained") < MS, "only what was left after the last rank had entered"
    alone = scene.mapped(lambda _, rows: [r for r in rows if r["pid"] == 100] if "pid" in (rows or [{}])[0] else rows)
    assert [c.text for c in chains(alone, "cold_start")] == ["communicator"]


def test_of_two_ranks_the_first_collective_of_one_waited_for_the_other() -> None:
    scene = collectives("blocking", ranks=2, steps=20, late={1: 300 * MS}, late_steps=[0], gap=500 * MS)
    for rank in range(2):
        scene.process(100 + rank, start_ns=T0)
    assert chains(scene, "cold_start") == [], "the other one had not entered it, and made nothing"


def test_a_slow_release_in_a_burst_of_releases() -> None:
    (chain,) = chains(allocation_burst.burst(), "allocation_burst")
    assert (chain.text, chain.values["culprit"]) == ("releases", "burst of releases")
    assert number(chain, "explained") == number(chain, "effect_time") == 1_900 * US
    assert (number(chain, "frees"), number(chain, "allocations")) == (Fraction(40), Fraction(0))
    assert number(chain, "median") == 400 * US


def test_as_many_releases_spread_out_are_no_burst() -> None:
    assert chains(allocation_burst.burst(every=10 * MS), "allocation_burst") == []
    assert chains(allocation_burst.burst(count=19), "allocation_burst") == []


def test_a_burst_of_another_thread_explains_only_what_it_overlaps_and_says_so() -> None:
    scene = allocation_burst.burst(slow=400 * US, tid=8)
    (chain,) = chains(_with_a_slow_launch(scene, allocation_burst.BURST - 10 * MS, 20 * MS), "allocation_burst")
    assert number(chain, "effect_time") == 20 * MS
    assert 0 < number(chain, "explained") <= 10 * MS
    assert any("another thread" in text for text in chain.against)
    later = _with_a_slow_launch(allocation_burst.burst(slow=400 * US, tid=8), allocation_burst.BURST + S, 20 * MS)
    assert chains(later, "allocation_burst") == []


def _with_a_slow_launch(scene: Scene, at: int, took: int) -> Scene:
    launches = [r for r in scene.rows["cuda_calls"] if r["op"] == "cudaLaunchKernel"]
    row = min(launches, key=lambda r: abs(r["start_ns"] - at))
    row["start_ns"], row["duration_ns"] = at, took
    return scene


def test_blocking_copies_by_memory_direction_and_size() -> None:
    for scene, memory in zip(synchronous_copy.scenes(), ("pageable", "pinned", "unknown"), strict=True):
        found = chains(scene, "synchronous_copy")
        (chain,) = [c for c in found if c.values["direction"] == "device to host"]
        assert chain.text == memory
        assert number(chain, "effect_time") == 50 * (2 * MS + 10 * US)
        assert number(chain, "explained") == 50 * 2 * MS
        assert number(chain, "size") == 50 * (8 << 20)
        assert len(found) == 1, "the small ones take half a hundredth of the time: a row of the table, and no chain"
        assert {s.label.split(": ")[1]: s.time.value for s in chain.shares if ": small" in s.label}.popitem()[1] == (
            50 * 10 * US
        )


def test_the_kernel_that_a_copy_waited_for_is_not_the_copys_time() -> None:
    (chain,) = chains(synchronous_copy.recorded(), "synchronous_copy")
    assert (chain.text, number(chain, "explained")) == ("pageable", Fraction(50 * MS))
    assert chain.shares[-1].time.value == 50 * MS
    (chain,) = chains(synchronous_copy.recorded(pageable=0), "synchronous_copy")
    assert chain.text == "pinned"


def test_copies_that_are_no_habit_are_no_effect() -> None:
    assert {e.kind for e in synchronous_copy.steps(count=9).context().causal.effects} == {"slow_call", "api_silence"}
    assert "blocking_copies" in {e.kind for e in synchronous_copy.steps(count=10).context().causal.effects}


def test_copies_before_the_first_launch_are_a_load_and_no_habit() -> None:
    def habits(launch: int | None) -> int:
        scene = synchronous_copy.steps()
        if launch is not None:
            scene.cuda(7, "cudaLaunchKernel", launch, US)
        return sum("blocking copies" in str(c.values["effect"]) for c in chains(scene, "synchronous_copy"))

    assert habits(None)
    assert habits(T0 + S + MS // 2) == habits(None)
    assert not habits(T0 + 3 * S)


def test_a_slow_copy_of_the_usual_size_is_not_slow_for_being_a_copy() -> None:
    scene = synchronous_copy.steps(count=200)
    backs = [r for r in scene.rows["cuda_calls"] if r.get("direction") == 2]
    scene.rows["cuda_calls"] = [r for r in scene.rows["cuda_calls"] if r.get("direction") != 1]
    for row in backs:
        row["duration_ns"] = 100 * US
    backs[77]["duration_ns"] = 15 * MS
    assert chains(scene, "synchronous_copy") == []
    backs[77]["size_bytes"] *= 100
    (chain,) = chains(scene, "synchronous_copy")
    assert number(chain, "explained") == 15 * MS


def test_memory_that_is_asked_for_again_was_freed_for_nothing() -> None:
    (chain,) = chains(allocator_thrash.steps(), "allocator_thrash")
    assert number(chain, "times") == 99
    assert number(chain, "sizes") == 1
    assert number(chain, "size") == 99 * (8 << 20)
    assert number(chain, "effect_time") == 200 * 500 * US
    assert number(chain, "explained") == 198 * 500 * US, "not the first allocation, and not the last release"


def test_sizes_that_do_not_come_again_or_not_soon_are_no_thrashing() -> None:
    assert chains(allocator_thrash.steps(grow=1), "allocator_thrash") == []
    assert chains(allocator_thrash.steps(count=20), "allocator_thrash") == []
    late = allocator_thrash.steps(count=30, every=1_100 * MS)
    for row in late.rows["cuda_calls"]:
        if row["op"] == "cudaMalloc":
            row["duration_ns"] = 80 * MS
            row["start_ns"] -= 80 * MS
    assert chains(late, "allocator_thrash") == []
