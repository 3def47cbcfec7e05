"""The corpus of known causes: what it holds, how claims are scored, and what the detectors make of part of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from bench.causes import __main__ as command
from bench.causes import baseline, score, stages
from bench.causes.events import write_bundle
from gpuaudit.analyze.registry import plugins
from tests.corpus.model import Played, Scenario, play
from tests.corpus.scenarios import COMPOUND, SCENARIOS, SINGLE, TWINS


class Corpus(Mapping[str, Played]):
    """The scenarios by name, each played when it is first asked for: who only collects these tests plays none."""

    def __init__(self, scenarios: Sequence[Scenario]) -> None:
        self.scenarios = {s.name: s for s in scenarios}
        self.played: dict[str, Played] = {}

    def __getitem__(self, name: str) -> Played:
        if name not in self.played:
            self.played[name] = play(self.scenarios[name])
        return self.played[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scenarios)

    def __len__(self) -> int:
        return len(self.scenarios)


PLAYED = Corpus(SCENARIOS)

SHOWN = (
    "launches wait for a cold file", "the CPU quota is used up", "a container next door has the CPU",
    "data workers cannot keep up", "a link reports that it failed", "the other host is slow at times",
    "a disk, then a hog, in the same calls", "a rank is late for a hog", "a hog preempts another thread",
    "a sleeper while the recorder writes", "workers that waited for orders", "slow calls and nothing else",
)  # fmt: skip
"""Played through the detectors here; ``python -m bench.causes`` plays them all."""


@cache
def judged(name: str) -> score.Judged:
    return score.judge(PLAYED[name], score.claimed(PLAYED[name]))


def test_the_corpus_is_large_and_has_every_kind() -> None:
    assert len(SCENARIOS) >= 40
    assert len(SINGLE) >= 20
    assert len(COMPOUND) >= 10
    assert len(TWINS) >= 20
    assert len({s.name for s in SCENARIOS}) == len(SCENARIOS)


def test_every_detector_of_causes_has_a_scenario() -> None:
    """Planted, or right to say of something planted: a detector that the corpus cannot show is not scored."""
    planted = {cause for p in PLAYED.values() for cause, _ in (*p.truth, *p.also)}
    assert {p.declaration.id for p in plugins() if p.declaration.kind == "chain"} <= planted


def test_twins_have_no_cause_but_that_of_a_late_rank() -> None:
    for s in TWINS:
        assert {cause for cause, _ in PLAYED[s.name].truth} <= {"late_rank"}, s.name
    for s in (*SINGLE, *COMPOUND):
        assert PLAYED[s.name].truth, s.name
        assert s.kind == "single" or len(PLAYED[s.name].truth) > 1 or "nothing explains" in s.name, s.name


def test_planted_shares_are_shares() -> None:
    with_share = 0
    for played in PLAYED.values():
        by_process: Counter[int] = Counter()
        for cause, pid in played.truth:
            share = played.share(cause, pid)
            if share is not None:
                assert 0 < share <= 1, (played.scenario.name, cause)
                with_share += 1
                by_process[pid] += 1
    assert with_share > 25


def test_rows_are_those_of_the_seed_and_threads_are_in_one_place() -> None:
    for name in ("a CPU hog preempts launches", "a rank is late for a lock", "a quota used up at another time"):
        first, again = PLAYED[name], play(PLAYED[name].scenario)
        assert first.scene.rows == again.scene.rows
        assert first.scene.rows != play(first.scenario, 1).scene.rows
        _never_off_twice(first)


def _never_off_twice(played: Played) -> None:
    """A thread leaves its CPU only after it came back."""
    last: dict[tuple[int, int], int] = {}
    for row in played.scene.rows["off_cpu"]:
        thread = row["pid"], row["tid"]
        assert row["start_ns"] >= last.get(thread, 0), (played.scenario.name, thread)
        last[thread] = row["start_ns"] + row["duration_ns"]


def test_claims_are_held_against_the_truth() -> None:
    played = PLAYED["a hog, and a disk on other calls"]
    pid = next(pid for cause, pid in played.truth if cause == "preempted")
    planted = played.share("preempted", pid)
    assert planted is not None
    claims = {("preempted", pid): planted - Fraction(1, 50), ("lock_wait", pid): None, ("preempted", 1): None}
    judged = score.judge(played, claims)
    assert judged.wrong == [("lock_wait", pid), ("preempted", 1)]
    assert judged.missed == [("blocking_io", pid)]
    whole = score.total(judged.scores)
    assert (whole.right, whole.wrong, whole.missed, whole.errors) == (1, 2, 1, [Fraction(2)])
    assert (whole.precision, whole.recall) == (Fraction(1, 3), Fraction(1, 2))
    nothing = score.total(score.judge(PLAYED["a quiet host"], {}).scores)
    assert (nothing.precision, nothing.recall) == (None, None)


def test_what_is_right_to_say_too_is_not_counted() -> None:
    played = PLAYED["a rank is late, nobody knows why"]
    ((_, rank),) = played.truth
    peer = next(pid for cause, pid in sorted(played.also) if cause == "peer_late" and pid != rank)
    whole = score.total(score.judge(played, {("late_rank", rank): None, ("peer_late", peer): None}).scores)
    assert (whole.right, whole.wrong, whole.missed) == (1, 0, 0)


def test_the_baseline_claims_whatever_lies_in_the_window() -> None:
    """Its own rule, and no more: with a tail every evidence is a cause, without one none is."""
    twin = PLAYED["another process reads a cold file"]
    assert ("blocking_io", 3_100) in baseline.claimed(twin, longest=True)
    assert baseline.claimed(twin) == {}, "a few calls in a thousand are past the p99"
    assert ("blocking_io", 3_100) in baseline.claimed(PLAYED["launches wait for a cold file"], longest=True)
    assert baseline.claimed(PLAYED["a quiet host"], longest=True) == {}
    assert ("oom_kill", 6_900) in baseline.claimed(PLAYED["the kernel kills a process of a GPU"])


@pytest.mark.parametrize("name", SHOWN)
def test_what_was_planted_is_found_and_nothing_else_is_claimed(name: str) -> None:
    found = judged(name)
    assert (found.wrong, found.missed) == ([], [])


def test_shares_are_within_five_points_and_better_than_the_baseline() -> None:
    ours = score.total(score.summed(judged(name) for name in SHOWN))
    theirs = score.total(score.summed(score.judge(PLAYED[n], baseline.claimed(PLAYED[n], longest=True)) for n in SHOWN))
    assert ours.errors
    assert max(ours.errors) <= 5
    assert theirs.precision is not None
    assert ours.precision is not None
    assert ours.precision > theirs.precision
    assert ours.recall is not None
    assert theirs.recall is not None
    assert ours.recall > theirs.recall


def test_the_command_prints_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "a quiet host", "--list"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 scenarios (0 single, 0 compound, 1 twin), 1 seed")
    assert "this tree" in out
    assert "baseline" in out
    assert command.main(["--only", "a quiet host", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["baseline, p99"]["all"]["wrong"] == 0


def test_detectors_and_joins_by_hand_say_the_same_nanoseconds(tmp_path: Path) -> None:
    """On a host made for it, through a sealed bundle: three detectors against plain SQL, process by process."""
    bundle = tmp_path / "events.db"
    rows = write_bundle(bundle, 30_000)
    assert abs(sum(rows.values()) - 30_000) < 1_500
    told = stages.measure(bundle)
    assert set(told["covered"]) == {"preempted", "lock_wait", "blocking_io"}
    assert told["covered"] == told["by_hand"]
    assert min(ns for by_pid in told["covered"].values() for ns in by_pid.values()) > 0
