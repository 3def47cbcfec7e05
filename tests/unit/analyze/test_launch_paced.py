"""Steps that their thread paced by launching: proven by waits that find the GPU done, and by nothing less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gpuaudit.analyze.effects import host_paced
from tests.rule_scenes.launch_paced import GAP, LAUNCH, LAUNCHES, REST, STEPS, TAIL, step_ns, steps
from tests.rule_scenes.slow import off
from tests.scenes import MS, T0, US, S, Scene
from tests.unit.analyze.test_causes_of_calls import chains, number

WAIT = 8 * US
LAST = step_ns() - LAUNCH
"""From the start of a step to that of its last launch."""

BESIDE = 7 * US
"""From the start of a step to a moment in its first gap."""


def every(gap: int = GAP) -> int:
    """From one step to the next."""
    return step_ns(gap) + TAIL + WAIT + REST


def each(scene: Scene, after: int, op: str, duration: int = US, *, gap: int = GAP, tid: int = 7, **more: Any) -> Scene:
    """A call in every step, so long after it began."""
    for i in range(STEPS):
        scene.cuda(7, op, T0 + S + i * every(gap) + after, duration, **{"tid": tid, **more})
    return scene


def recorded(stream: int = 5, after: int = LAST + LAUNCH + US) -> Scene:
    """Steps that wait for an event, recorded on a stream so long after they began."""
    return each(steps(op="cudaEventSynchronize", of={"handle": 9}), after, "cudaEventRecord", handle=9, stream=stream)


def copied(direction: int) -> Scene:
    """Steps with five copies of 40 µs each, which is more than a tenth of them."""
    scene = steps(gap=80 * US)
    for i in range(5):
        after = i * (LAUNCH + 80 * US) + BESIDE
        each(scene, after, "cudaMemcpyAsync", 40 * US, gap=80 * US, direction=direction, stream=5)
    return scene


def gathered(stream: int) -> Scene:
    """Steps with a collective on a stream."""
    scene = steps()
    for row in each(Scene(), BESIDE, "ncclAllReduce").rows["cuda_calls"]:
        scene.add("nccl_calls", **row, comm_handle=1, stream=stream)
    return scene


def paced(scene: Scene) -> list[int]:
    """How many steps each effect has."""
    return [e.count for e in host_paced.effects(scene.context())]


def test_launches_and_short_gaps_are_told_to_the_nanosecond() -> None:
    (chain,) = chains(steps(), "launch_paced")
    assert number(chain, "explained") == STEPS * step_ns()
    assert number(chain, "effect_time") == STEPS * (step_ns() + TAIL)
    assert number(chain, "launches") == STEPS * LAUNCHES
    assert [number(chain, name) for name in ("median", "gap", "wait")] == [LAUNCH, GAP, WAIT]
    assert chain.gain is not None
    assert (chain.gain.low.value, chain.gain.high.value) == (0, STEPS * step_ns())
    assert any("longer by a few microseconds" in a for a in chain.against)
    assert (chain.severity, chain.confidence) == ("warning", "medium"), "nothing shows that the GPU lost any of it"


@pytest.mark.parametrize(
    "scene",
    [
        lambda: steps(op="cudaDeviceSynchronize", of={}),
        lambda: each(steps(op="cudaDeviceSynchronize", of={}), BESIDE, "cudaSetDevice", device=1),
        lambda: steps(stream=0, op="cudaMemcpy", of={"direction": 2}),
        recorded,
        lambda: gathered(5),
        lambda: copied(1),
        lambda: each(steps(), BESIDE, "cudaStreamQuery", stream=5, return_code=0),
    ],
    ids=["of the device", "of the one that was chosen", "in a copy back", "of an event", "of a collective too",
         "copies to the GPU", "it asked and was told yes"],
)  # fmt: skip
def test_a_wait_that_covers_all_kernels_of_its_step_proves_it(scene: Callable[[], Scene]) -> None:
    assert paced(scene()) == [STEPS]


@pytest.mark.parametrize(
    "scene",
    [
        lambda: steps(wait=80 * US),
        lambda: steps(tail=70 * US),
        lambda: steps(count=99),
        lambda: steps(rest=2 * MS),
        lambda: steps(of={"stream": 6}),
        lambda: steps(of={}),
        lambda: steps(of={"stream": 5, "return_code": 700}),
        lambda: steps(op="cudaEventSynchronize", of={"handle": 9}),
        lambda: recorded(stream=6),
        lambda: recorded(after=BESIDE),
        lambda: steps(op="cudaMemcpy", of={"direction": 2}),
        lambda: gathered(6),
        lambda: copied(2),
        lambda: each(steps(), BESIDE, "cudaStreamQuery", stream=5, return_code=600),
        lambda: each(steps(), BESIDE, "cudaLaunchKernel", tid=8, stream=6),
        lambda: each(steps(), BESIDE, "cudaStreamSynchronize", tid=8, stream=5),
        lambda: each(steps(), BESIDE, "cudaStreamEndCapture", stream=5, handle=1),
        lambda: each(steps(), BESIDE, "cudaLaunchKernel", stream=5, return_code=719),
        lambda: each(each(steps(op="cudaDeviceSynchronize", of={}), BESIDE, "cudaSetDevice", device=1),
                     BESIDE + 2 * US, "cudaSetDevice", device=0),
    ],
    ids=["waits", "works on after the last launch", "too few", "too little of its time", "of another stream",
         "of a stream that is not told", "the wait failed", "of an event that nobody recorded",
         "of an event on another stream", "of an event recorded too early", "a copy on the default stream",
         "a collective on another stream", "copies back, which may wait", "it asked and was told not yet",
         "another thread gives work", "another thread waits", "a graph is captured", "a launch failed",
         "of one device of two"],
)  # fmt: skip
def test_what_proves_less_is_no_effect(scene: Callable[[], Scene]) -> None:
    assert paced(scene()) == []


def test_a_host_that_does_something_else_between_launches_paces_its_steps_and_not_by_launching() -> None:
    scene = steps(gap=150 * US)
    assert paced(scene) == [STEPS]
    assert chains(scene, "launch_paced") == []


def test_some_steps_that_wait_speak_against_the_others() -> None:
    scene = steps()
    for i, row in enumerate(r for r in scene.rows["cuda_calls"] if r["op"] == "cudaStreamSynchronize"):
        row["duration_ns"] += REST - US if i < 5 else 0
    (chain,) = chains(scene, "launch_paced")
    assert number(chain, "launches") == (STEPS - 5) * LAUNCHES
    assert any(a.startswith("in 5 more steps the thread waited") for a in chain.against)


def test_time_off_the_cpu_is_not_launching() -> None:
    """The first gap of every step is a preemption, all but 2 µs of it."""
    scene = steps()
    for row in each(Scene(), BESIDE, "", GAP - 2 * US).rows["cuda_calls"]:
        off(scene, row["start_ns"], row["duration_ns"])
    (chain,) = chains(scene, "launch_paced")
    assert number(chain, "explained") == STEPS * (step_ns() - GAP + 2 * US)


def test_with_the_gpus_own_record_or_without_some_of_the_calls_nothing_is_inferred() -> None:
    timed = steps().add("gpu_activities", start_ns=T0, duration_ns=US, pid=7, op="kernel", name="k")
    assert paced(timed) == []
    nobodys = steps().add("gpu_activities", start_ns=T0, duration_ns=US, pid=None, op="kernel", name="k")
    assert paced(nobodys) == [], "whose work it was is not told: it may be this process's"
    lossy = steps()
    lossy.lost["cuda_calls"] = 1
    assert paced(lossy) == []
    counted = steps().add(
        "call_totals", start_ns=T0, duration_ns=S + MS, pid=7, tid=8, op="cudaLaunchKernel", low_ns=1,
        high_ns=1024, count=5, sum_ns=1_000, min_ns=100, max_ns=300, size_bytes=0, errors=0, nested=0,
    )  # fmt: skip
    assert paced(counted) == [STEPS - MS // every() - 1]
