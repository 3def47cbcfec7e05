"""Where lost time went: shares that add up, what is known of the rest, and what became of each detector."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import pytest

from gpuaudit.analyze.chains import preempted
from gpuaudit.analyze.finding import Quantity, Section, SectionTable
from gpuaudit.analyze.sections.causes import evaluate
from tests.rule_scenes.slow import AT, block, launches, off
from tests.scenes import MS, US, Scene

SLEPT = {"op": "blocked", "next_pid": 0, "next_tid": 0, "next_comm": "swapper/1", "runqueue_ns": 0}


def scene() -> Scene:
    """40 ms: 10 in a read of a disk, 10 without a CPU, 5 in a sleep of its own; 8 ms on a CPU, and 7 not seen."""
    s = block(launches(slow=40 * MS), AT, 10 * MS, queue_ns=0)
    off(s, AT, 10 * MS, prev_state=2, syscall=17, **SLEPT)  # type: ignore[arg-type]
    off(s, AT + 10 * MS, 10 * MS)
    off(s, AT + 28 * MS, 5 * MS, prev_state=1, syscall=230, **SLEPT)  # type: ignore[arg-type]
    return s


@pytest.fixture(scope="module")
def section() -> Section:
    return evaluate(scene().context())


def table(section: Section, id: str) -> SectionTable:
    return next(t for t in section.tables if t.id == id)


def value(cell: Quantity | str | None) -> int | Fraction | None:
    assert isinstance(cell, Quantity)
    return cell.value


def test_the_rows_of_each_effect_add_up_to_it(section: Section) -> None:
    sums: dict[object, Fraction] = defaultdict(Fraction)
    for effect, _, _, share, *_ in table(section, "shares").rows:
        sums[effect] += Fraction(value(share) or 0)
    assert sums
    assert set(sums.values()) == {Fraction(1)}


def test_the_slow_call(section: Section) -> None:
    rows = [r for r in table(section, "shares").rows if "slow call of cudaLaunchKernel" in str(r[0])]
    assert [(r[1], value(r[2]), value(r[4]), value(r[5])) for r in rows] == [
        ("Waiting for a disk: disk 259:0", 10 * MS, 1, 1),
        ("Preempted: hog (99)", 10 * MS, 1, 1),
        ("unexplained", 20 * MS, 1, 1),
    ]
    (told,) = [s for s in section.statements if s.values["kind"] == "“slow call”"]
    assert (value(told.values["explained"]), value(told.values["share"])) == (20 * MS, Fraction(1, 2))
    assert value(told.values["effects"]) == 1
    assert "effects of the kind {kind} (number: {effects})" in told.text, "a sentence for one effect and for many"


def test_what_the_thread_did_in_the_rest_is_told_and_is_no_cause(section: Section) -> None:
    (row,) = [r for r in table(section, "unexplained").rows if "slow call" in str(r[0])]
    assert [value(c) for c in row[1:5]] == [20 * MS, 8 * MS, 0, 5 * MS]
    assert row[5] == "clock_nanosleep"


def test_what_became_of_every_detector_in_the_order_of_allotment(section: Section) -> None:
    rows = table(section, "detectors").rows
    states = {str(r[1]): str(r[3]) for r in rows}
    assert states["Waiting for a late rank"].startswith("not evaluated: ")
    # the slow call, and the silence that the thread's calls end in: what took its CPU explains either
    looked_at = {e.kind for e in scene().context().causal.effects} & preempted.DETECTOR.kinds
    assert states["Preempted"] == f"effects looked at: {len(looked_at)}"
    assert looked_at == {"slow_call", "api_silence"}
    order = [str(r[1]) for r in rows]
    assert order.index("Waiting for a disk") < order.index("Waiting for a lock") < order.index("Preempted")


def test_without_an_effect_there_is_nothing_to_share() -> None:
    section = evaluate(Scene().clock().context())
    assert section.state == "evaluated"
    assert not section.statements
    assert [t.id for t in section.tables] == ["detectors"]


def test_an_effect_too_short_to_be_told_is_in_the_sums_alone() -> None:
    section = evaluate(launches(slow=900 * US).context())
    shares = table(section, "shares")
    assert not [r for r in shares.rows if "slow call" in str(r[0])]
    assert shares.omitted == 1
    (statement,) = [s for s in section.statements if s.values["kind"] == "“slow call”"]
    lost = statement.values["lost"]
    assert isinstance(lost, Quantity)
    assert lost.value == 900 * US
