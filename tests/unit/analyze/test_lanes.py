"""Chains in words and as lanes: intervals are those of the shares, width is obeyed, colour is never needed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gpuaudit.analyze import explain_chain, intervals
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.drawn_lanes import BLOCKS, draw
from gpuaudit.analyze.explain import explain_item
from gpuaudit.analyze.finding import Chain, Document
from gpuaudit.analyze.lanes import MOST_PEERS, Drawing, Lane, drawing
from gpuaudit.analyze.run import AnalyzeOptions, examine
from gpuaudit.bundle.errors import UsageError
from tests.chain_scenes import LATE_NS, LATE_STEPS, MALLOC_PID, SLOW_AT, two_chains
from tests.scenes import MS, T0, collectives
from tests.verifications import SEALED

Made = tuple[Document, Context]


@pytest.fixture(scope="module")
def made() -> Made:
    return examine(two_chains().store(), SEALED, AnalyzeOptions())


def chain_of(made: Made, detector: str) -> Chain:
    return next(c for c in made[0].chains if c.detector == detector)


def test_lanes_of_a_chain_are_the_intervals_it_was_computed_from(made: Made) -> None:
    chain = chain_of(made, "preempted")
    (step,) = drawing(made[1], chain).steps
    assert step.effect.tid == MALLOC_PID
    assert step.effect.time.tolist() == [[at, at + 20 * MS] for at in SLOW_AT]
    assert step.overlap.tolist() == [[at + 5 * MS, at + 20 * MS] for at in SLOW_AT]
    assert intervals.measure(step.overlap) == chain.links[0].overlap_ns.value


def test_a_late_rank_is_drawn_with_its_peers_and_what_made_it_late(made: Made) -> None:
    drawn = drawing(made[1], chain_of(made, "late_rank"))
    assert [x.role for x in drawn.lanes] == ["effect", "cause", "peer", "peer", "peer"]
    assert sorted(x.pid or 0 for x in drawn.lanes if x.role == "peer") == [100, 101, 103]
    for step in drawn.steps[:3]:
        assert step.cause.role == "effect"
        assert LATE_NS * len(LATE_STEPS) * 0.99 < intervals.measure(step.overlap) <= intervals.measure(step.cause.time)
    assert drawn.steps[3].cause.label == "stress-ng (812)"


def test_a_chain_without_effects_is_drawn_by_its_rows(made: Made) -> None:
    document, context = made
    (book,) = [e for e in document.evidence if e.id == chain_of(made, "preempted").evidence[0]]
    stranger = Chain(
        "C9", "none", "notice", "x", {}, {}, (), chain_of(made, "preempted").impact, "low", "A", (), "", "", (book.id,)
    )
    (lane,) = drawing(context, stranger).lanes
    assert lane.role == "rows"
    assert lane.label == f"{book.id}: {book.rows} rows of {book.table}"
    assert len(lane.parts) == book.rows
    assert "nothing to draw" in draw(Drawing((), ()), 0, 80, colour=False)


def test_of_many_peers_those_that_waited_longest_have_a_lane() -> None:
    scene = collectives("asynchronous", ranks=MOST_PEERS + 3, late={2: LATE_NS}, late_steps=LATE_STEPS)
    made = examine(scene.store(), SEALED, AnalyzeOptions())
    drawn = drawing(made[1], chain_of(made, "late_rank"))
    assert sum(x.role == "peer" for x in drawn.lanes) == MOST_PEERS
    assert drawn.omitted == 2
    assert "2 more peers waited less, and have no lane" in draw(drawn, T0, 80, colour=False)


@pytest.mark.parametrize("width", [60, 83, 120])
def test_the_drawing_is_as_wide_as_asked_and_the_same_without_colour(made: Made, width: int) -> None:
    drawn = drawing(made[1], chain_of(made, "late_rank"))
    plain = draw(drawn, T0, width, colour=False)
    assert max(map(len, plain.splitlines())) == width
    coloured = draw(drawn, T0, width, colour=True)
    assert "\x1b[31m" in coloured
    assert re.sub(r"\x1b\[[0-9]+m", "", coloured) == plain


def test_a_column_is_as_high_as_what_it_covers() -> None:
    lane = Lane("effect", "x", intervals.from_bounds([0, 1_000, 2_500], [1_000, 1_001, 3_000]))
    lines = draw(Drawing((lane, Lane("cause", "y", intervals.single(0, 3_000))), ()), 0, 60, colour=False).splitlines()
    bar = next(x for x in lines if x.startswith("effect")).partition("▕")[2].rstrip("▏")
    third = len(bar) // 3
    assert set(bar[: third - 1]) == {"█"}
    assert BLOCKS[1] in bar[third - 1 : third + 2], "one nanosecond of a column is still seen"
    assert set(bar[third + 2 : 2 * third]) == {" "}


def test_somebody_woken_by_a_chain_reads_what_to_do_first(made: Made) -> None:
    chain = chain_of(made, "preempted")
    text = explain_item(made[0], chain.id, 100)
    assert max(map(len, text.splitlines())) <= 100
    said = [x.strip() for x in text.splitlines()]
    assert any(x.startswith("Completeness: grade") for x in said), "what the evidence is worth comes first"
    at = {key: next(i for i, x in enumerate(said) if x.startswith(key)) for key in (
        chain.id, "Next:", "Effect:", "because", "Where the time went", "Code:", "To test it:", "It could bring:",
        "Confidence", "It would be refuted by:", "It does not say:",
    )}  # fmt: skip
    assert sorted(at.values()) == list(at.values())
    flat = " ".join(text.split())
    assert "60.0 ms of 80.0 ms (75.0 %)" in flat
    rows = [x.split()[:4] for x in said[at["Where the time went"] : at["Code:"]] if "%" in x]
    assert rows == [["60.0", "ms", "75.0", "%"], ["20.0", "ms", "25.0", "%"], ["80.0", "ms", "100", "%"]]
    assert "at least 0 ns (the recording does not show what would be saved), at most 60.0 ms" in flat
    assert "late_rank" not in text


def test_a_late_rank_whose_cause_was_found_says_what_to_do_about_that_cause(made: Made) -> None:
    late, preempted = chain_of(made, "late_rank"), chain_of(made, "preempted")
    assert len(late.links) > 1
    assert late.next_step == preempted.next_step


def test_lines_of_code_are_told_and_so_is_that_there_are_none(made: Made) -> None:
    chain = replace(chain_of(made, "preempted"), code=("cudaMalloc from train.py:142 in forward()", "main() of hog.c"))
    said = [text for _, text in explain_chain.lines(chain)]
    at = said.index("Code: cudaMalloc from train.py:142 in forward()")
    assert said[at + 1].strip() == "main() of hog.c"
    none = [text for _, text in explain_chain.lines(replace(chain, code=()))]
    assert "Code: not known, no stack was recorded of these calls" in none


def test_an_unknown_id_is_told_with_those_that_there_are(made: Made) -> None:
    with pytest.raises(UsageError, match="no finding, chain or section 'C77'") as caught:
        explain_item(made[0], "C77", 80)
    assert "C1" in (caught.value.hint or "")


def test_hostile_names_stay_inert_in_lanes() -> None:
    scene = two_chains()
    for row in scene.rows["off_cpu"]:
        row["next_comm"] = "\x1b[2J\u202eevil\n"
    made = examine(scene.store(), SEALED, AnalyzeOptions())
    for chain in made[0].chains:
        text = draw(drawing(made[1], chain), T0, 100, colour=False) + explain_item(made[0], chain.id, 100)
        assert "\x1b" not in text
        assert "\u202e" not in text
