"""Waits for a CPU, cut by who had it, against a look at each unit of time alone."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal import states
from tests.rule_scenes.slow import AT, launches, off
from tests.scenes import T0, Scene
from tests.unit.analyze.causal.test_turns import CPU, INTERRUPTIBLE, OTHER, UNIT, turn

Turns = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(90, 93), st.booleans()), max_size=12)
Waits = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(1, 8), st.booleans(), st.integers(-1, 8)), max_size=5
)


EFFECT = next(e for e in launches(slow=100 * UNIT).context().causal.effects if e.kind == "slow_call")


@settings(deadline=None, max_examples=60)
@given(turns=Turns, waits=Waits)
def test_every_moment_has_who_had_the_cpu_then(
    turns: list[tuple[int, int, int, bool]], waits: list[tuple[int, int, int, bool, int]]
) -> None:
    """Against looking at each unit of time alone. A turn: pause, length, who, on the other CPU. A wait: pause, sleep,
    wait, came from the other CPU, moved after so long in it (-1: not told)."""
    scene = Scene().clock()
    at = {False: AT, True: AT}
    had: dict[tuple[bool, int], int] = {}
    for pause, length, who, other in turns:
        start = at[other] + pause * UNIT
        turn(scene, start, length * UNIT, who, cpu=OTHER if other else CPU)
        had |= {(other, start + k * UNIT): who for k in range(length)}
        at[other] = start + length * UNIT
    turn(scene, T0, UNIT, 89)
    expected: dict[int, int] = {}
    slept, now = 0, AT
    for pause, sleep, wait, other, moved in waits:
        start = now + pause * UNIT
        ready, now = start + sleep * UNIT, start + (sleep + wait) * UNIT
        told: dict[str, Any] = (
            {"op": "blocked", "prev_state": INTERRUPTIBLE, "runqueue_ns": wait * UNIT} if sleep else {}
        )
        off(scene, start, now - start, cpu_out=OTHER if other else CPU, **told)
        since = now if other else ready
        if 0 <= moved < wait:
            since = ready + moved * UNIT
            scene.add("migrations", start_ns=since, pid=7, tid=7, from_cpu=OTHER, to_cpu=CPU)
        slept += sleep * UNIT
        for t in range(ready, now, UNIT):
            expected[t] = had.get((False, t), states.UNKNOWN) if t >= since else states.UNKNOWN
    read = states.of_effects(scene.context(), [EFFECT])
    if not waits:
        assert not read
        return
    s = read[EFFECT.key]
    assert intervals.measure(s.asleep(s.a["op"] == "blocked")) == slept
    found: dict[int, int] = {}
    for start, end, who in zip(s.runnable_from.tolist(), s.a["end_ns"].tolist(), s.a["next_pid"].tolist(), strict=True):
        for t in range(start, end, UNIT):
            assert t not in found
            found[t] = who
    assert found == expected
