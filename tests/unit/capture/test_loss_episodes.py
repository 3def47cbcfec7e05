"""Gaps from loss counters: every loss once, and no later than its time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.capture.loss_episodes import EPISODE_NS, LONGEST_NS, LossCount, LossEpisodes, LostRecords

KEY = ("cuda_calls", 3)
MS = 1_000_000


def counter(losses: list[int]) -> LossCount:
    """What the programs count when records are lost at these times: ``count_lost`` of capture/bpf/shared.h."""
    first = last = episodes = before = 0
    for n, at in enumerate(losses):
        if at - last > EPISODE_NS:
            first, before, episodes = at, n, episodes + 1
        last = at
    return LossCount(len(losses) + 7, len(losses), first, last, episodes, before)


def test_an_episode_is_one_gap_with_its_own_times() -> None:
    losses = LossEpisodes()
    start = 5_000 * MS
    at = [start, start + 3 * MS, start + 50 * MS]
    assert list(losses.follow({}, start - MS)) == []
    assert list(losses.follow({KEY: counter(at[:2])}, start + 10 * MS)) == []  # it may go on
    assert list(losses.follow({KEY: counter(at)}, start + 100 * MS)) == []
    (gap,) = losses.follow({KEY: counter(at)}, start + 151 * MS)
    assert gap == LostRecords("cuda_calls", 3, 3, at[0], at[-1] + 1)
    assert gap.reason == "the ring of cuda_calls was full on CPU 3: 3 records were lost"
    assert list(losses.follow({KEY: counter(at)}, start + 400 * MS, ended=True)) == []


def test_the_end_of_a_capture_ends_an_episode() -> None:
    (gap,) = LossEpisodes().follow({KEY: counter([9_000 * MS])}, 9_001 * MS, ended=True)
    assert (gap.count, gap.start_ns, gap.end_ns) == (1, 9_000 * MS, 9_000 * MS + 1)


def test_episodes_that_nobody_looked_at_between_are_told_of_together() -> None:
    losses = LossEpisodes()
    assert list(losses.follow({}, 1_000 * MS)) == []
    at = [1_500 * MS, 1_700 * MS, 1_900 * MS, 1_901 * MS]
    first, second = losses.follow({KEY: counter(at)}, 2_100 * MS)
    assert first == LostRecords("cuda_calls", 3, 2, 1_000 * MS, 1_900 * MS)
    assert second == LostRecords("cuda_calls", 3, 2, 1_900 * MS, 1_901 * MS + 1)


def test_a_long_episode_is_told_in_pieces() -> None:
    losses, start = LossEpisodes(), 1_000 * MS
    at = list(range(start, start + 25_000 * MS, 50 * MS))
    gaps = []
    for n in range(1, len(at) + 1):
        gaps += list(losses.follow({KEY: counter(at[:n])}, at[n - 1] + MS))
    assert len(gaps) == 2
    gaps += list(losses.follow({KEY: counter(at)}, at[-1] + MS, ended=True))
    assert sum(g.count for g in gaps) == len(at)
    assert gaps[0].start_ns == start
    assert LONGEST_NS < gaps[0].end_ns - gaps[0].start_ns < LONGEST_NS + 100 * MS
    assert all(a.end_ns <= b.start_ns for a, b in pairwise(gaps))


steps = st.lists(st.tuples(st.integers(1, 400), st.booleans(), st.booleans()), max_size=60)


@given(steps)
def test_every_loss_is_in_exactly_one_gap(taken: list[tuple[int, bool, bool]]) -> None:
    """Losses and looks in any order: the gaps name every loss once, and none outside its gap's times."""
    losses, now, lost, gaps = LossEpisodes(), 10_000 * MS, list[int](), list[LostRecords]()
    for pause_ms, loses, looks in taken:
        now += pause_ms * MS
        if loses:
            lost.append(now)
        if looks:
            gaps += losses.follow({KEY: counter(lost)} if lost else {}, now)
    gaps += losses.follow({KEY: counter(lost)} if lost else {}, now + 1, ended=True)
    assert sum(g.count for g in gaps) == len(lost)
    assert [sum(g.start_ns <= at < g.end_ns for at in lost) for g in gaps] == [g.count for g in gaps]
