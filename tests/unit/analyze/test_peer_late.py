"""Waiting for a late rank: the overlap by hand, whom it is of, what it goes on with, and when nothing is said."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import pytest

from gpuaudit.analyze.context import Found, NotEvaluated
from gpuaudit.analyze.finding import Chain
from gpuaudit.analyze.registry import plugins
from tests.scenes import MS, T0, US, Mode, S, Scene, collectives

EVALUATE = next(p.evaluate for p in plugins() if p.declaration.id == "peer_late")
STEP = 70
LATE = 102
TOKENIZER, ITS_THREAD = 300, 301


def scene(mode: Mode = "asynchronous") -> Scene:
    """Four ranks; rank 2 is 30 ms late in one of 200 steps."""
    made = collectives(mode, steps=200, late={2: 30 * MS}, late_steps=[STEP])
    for rank in range(4):
        made.process(100 + rank, "dispatcher")
    return made


def step_calls(s: Scene) -> list[dict[str, int]]:
    """The calls of the late step, by rank."""
    return sorted(s.rows["nccl_calls"][STEP * 4 : STEP * 4 + 4], key=lambda r: r["rank"])


def off_cpu(s: Scene, pid: int, tid: int, start: int, end: int, **more: object) -> None:
    """A thread off its CPU: asleep unless ``more`` says otherwise."""
    s.add("off_cpu", **{
        "start_ns": start, "duration_ns": end - start, "pid": pid, "tid": tid, "op": "blocked", "comm": "x",
        "prev_state": 1, "cpu_out": 3, **more,
    })  # fmt: skip


def tokenizer(s: Scene) -> Scene:
    """For 24 ms of its lateness the late rank's thread was runnable while a tokenizer ran on its CPU.

    The tokenizer's own rows show it on a CPU for 20 ms of them, in which it sent something and launched a kernel.
    """
    arrival = step_calls(s)[2]["start_ns"]
    start, end = arrival - 25 * MS, arrival - MS
    off_cpu(
        s, LATE, LATE, start, end, op="preempted", prev_state=0, next_pid=TOKENIZER, next_tid=ITS_THREAD,
        next_comm="tokenizer", runqueue_ns=end - start,
    )  # fmt: skip
    off_cpu(s, TOKENIZER, ITS_THREAD, start - 50 * MS, start)
    off_cpu(s, TOKENIZER, ITS_THREAD, start + 20 * MS, end + 50 * MS)
    s.process(TOKENIZER, "tokenizer", role="workload", parent_pid=100)
    s.add(
        "socket_io", start_ns=start + MS, duration_ns=MS, pid=TOKENIZER, op="send", receive=0, inode=5, family=1,
        count=4, errors=0, size_bytes=100, sum_ns=MS, max_ns=MS,
    )  # fmt: skip
    s.cuda(TOKENIZER, "cudaLaunchKernel", start + 2 * MS, US)
    return s


def only(s: Scene) -> Chain:
    outcome = EVALUATE(s.context())
    assert isinstance(outcome, Found), outcome
    (chain,) = outcome.items
    assert isinstance(chain, Chain)
    return chain


@cache
def told() -> Chain:
    return only(tokenizer(scene()))


@pytest.mark.parametrize("mode", ["blocking", "asynchronous"])
def test_the_overlap_is_that_of_each_peers_own_call(mode: Mode) -> None:
    s = scene(mode)
    calls = step_calls(s)
    late = calls[2]["start_ns"]
    median = sorted(c["start_ns"] for c in calls if c["rank"] != 2)[1]
    expected = {}
    for c in (c for c in calls if c["rank"] != 2):
        row = c if mode == "blocking" else next(
            x for x in s.rows["cuda_calls"] if x["pid"] == c["pid"] and x["start_ns"] > c["start_ns"]
        )  # fmt: skip
        start, end = row["start_ns"], row["start_ns"] + row["duration_ns"]
        expected[c["pid"]] = (end - start, late - max(start, median))
    chain = only(s)
    assert {(link.effect_ns.value, link.overlap_ns.value) for link in chain.links} == set(expected.values())
    assert len(chain.links) == 3
    assert chain.impact.value == sum(overlap for _, overlap in expected.values())
    assert chain.subject["rank"] == "2"
    assert chain.subject["culprit_pid"] == str(LATE)


def test_the_least_gain_is_what_a_comparison_shows() -> None:
    """Collectives that nobody entered late take 0.2 ms: of what a peer waited alone, all but that would be saved."""
    chain = told()
    assert chain.gain is not None
    low, high = int(chain.gain.low.value or 0), int(chain.gain.high.value or 0)
    assert Fraction(97, 100) < Fraction(low, high) <= 1
    assert high == chain.impact.value


def test_it_goes_on_from_the_peers_to_the_process_on_the_late_ranks_cpu() -> None:
    """Three peers waited ← rank 2 was late ← it had no CPU ← the tokenizer ran there, which was sending."""
    *peers, preempted, culprit = told().links
    assert len(peers) == 3
    assert "late arrival of rank 2 (dispatcher 102)" in preempted.effect
    assert preempted.overlap_ns.value == 24 * MS
    assert "tokenizer (300)" in preempted.cause
    assert culprit.effect == "tokenizer (300) ran on that CPU"
    assert (culprit.effect_ns.value, culprit.overlap_ns.value) == (24 * MS, 20 * MS)
    assert culprit.explained.value == Fraction(20, 24)
    assert "part of the workload, child of dispatcher (100)" in culprit.cause
    assert "1 call of cudaLaunchKernel; traffic on its sockets" in culprit.cause


def test_every_link_names_its_rows() -> None:
    context = tokenizer(scene()).context()
    outcome = EVALUATE(context)
    assert isinstance(outcome, Found)
    entries = {e.id: e for e in context.book.entries()}
    for link in outcome.items[0].links:  # type: ignore[union-attr]
        assert link.evidence
        for e in (entries[i] for i in link.evidence):
            assert len(context.store.sql(e.query)) == e.rows
    tables = {entries[i].table for i in outcome.items[0].links[-1].evidence}  # type: ignore[union-attr]
    assert tables == {"off_cpu", "processes", "cuda_calls", "socket_io"}


def test_a_culprit_whose_own_rows_do_not_show_it_running_is_no_link() -> None:
    s = tokenizer(scene())
    s.rows["off_cpu"] = [r for r in s.rows["off_cpu"] if r["pid"] == LATE]
    assert [link.effect for link in only(s).links if "ran on that CPU" in link.effect] == []


def test_waiting_comes_before_what_the_waiting_thread_went_through() -> None:
    """A peer that is preempted while it waits for the late rank loses nothing by it."""
    s = scene("blocking")
    peer, late = step_calls(s)[0], step_calls(s)[2]["start_ns"]
    off_cpu(
        s, 100, 100, late - 20 * MS, late - MS, op="preempted", prev_state=0, next_pid=900, next_tid=900,
        next_comm="hog", runqueue_ns=19 * MS,
    )  # fmt: skip
    context = s.context()
    outcome = context.causal.outcomes["preempted"]
    assert isinstance(outcome, Found)
    assert list(outcome.items) == []
    (key,) = (e.key for e in context.causal.effects if (e.pid, e.op) == (peer["pid"], "ncclAllReduce"))
    parts = {p.who[0].declaration.id: p for p in context.causal.allotments[key].parts}
    assert parts["preempted"].allotted_ns == 0
    assert parts["preempted"].contested_ns == 19 * MS


def test_a_slow_call_on_another_thread_is_not_the_wait() -> None:
    """At the very same time rank 0 has a slow copy on a second thread."""
    s = scene()
    at = step_calls(s)[0]["start_ns"]
    for i in range(200):
        s.cuda(100, "cudaMemcpy", at if i == STEP else T0 + 30 * S + i * MS, 28 * MS if i == STEP else US, tid=55)
    assert not any("cudaMemcpy" in link.effect for link in only(s).links)


def test_no_late_rank_nothing_said() -> None:
    outcome = EVALUATE(collectives("asynchronous", steps=200).context())
    assert isinstance(outcome, Found)
    assert list(outcome.items) == []


def test_two_ranks_cannot_be_told_apart() -> None:
    outcome = EVALUATE(collectives("asynchronous", ranks=2, steps=200, late={1: 30 * MS}, late_steps=[STEP]).context())
    assert isinstance(outcome, NotEvaluated)
    assert "2 of 2 ranks observed" in outcome.reason


def test_without_identity_it_is_not_evaluated() -> None:
    s = scene()
    for row in s.rows["nccl_calls"]:
        row |= {"comm_id": None, "rank": None}
    outcome = EVALUATE(s.context())
    assert outcome == NotEvaluated("no communicator's identity was recorded")


def test_the_chain_of_a_habitually_late_rank_goes_on_in_the_same_way() -> None:
    """Rank 2 is 30 ms late in every step, 20 ms of which the tokenizer had its CPU: peers ← rank 2 ← tokenizer."""
    s = collectives("asynchronous", steps=10, late={2: 30 * MS}, gap=200 * MS)
    for rank in range(4):
        s.process(100 + rank, "dispatcher")
    s.process(TOKENIZER, "tokenizer", role="workload", parent_pid=100)
    for call in (r for r in s.rows["nccl_calls"] if r["rank"] == 2):
        start, end = call["start_ns"] - 21 * MS, call["start_ns"] - MS
        off_cpu(
            s, LATE, LATE, start, end, op="preempted", prev_state=0, next_pid=TOKENIZER, next_tid=ITS_THREAD,
            next_comm="tokenizer", runqueue_ns=end - start,
        )  # fmt: skip
        off_cpu(s, TOKENIZER, ITS_THREAD, start - 50 * MS, start)
        off_cpu(s, TOKENIZER, ITS_THREAD, end, end + 50 * MS)
    (chain,) = [c for c in s.document().chains if c.detector == "late_rank"]
    waited, preempted, culprit = chain.links
    assert "the other ranks are inside the collective" in waited.effect
    assert "10 late arrivals of rank 2" in preempted.effect
    assert preempted.overlap_ns.value == culprit.overlap_ns.value == culprit.effect_ns.value == 200 * MS
    assert "tokenizer (300) is part of the workload" in culprit.cause
    times = [int(share.time.value or 0) for share in chain.shares]
    assert sum(times) == preempted.effect_ns.value


def test_two_collectives_of_one_synchronisation_save_its_time_once() -> None:
    """Two collectives back to back, one wait for both; rank 2 is late for both by the same 30 ms in two of 200 steps.

    In the second of those they are of a kind of their own, with nothing to compare them with: what would be saved for
    certain is three times 30 ms, of the six times that are claimed.
    """
    s = Scene().clock()
    for step in range(200):
        base, late = T0 + S + step * 100 * MS, 30 * MS if step in (60, 120) else 0
        arrival = [base, base + 10 * US, base + 20 * US + late, base + 15 * US]
        done = max(arrival) + 200 * US
        for r, at in enumerate(arrival):
            for n in range(2):
                s.add(
                    "nccl_calls", start_ns=at + n * 30 * US, duration_ns=9 * US, pid=100 + r, tid=100 + r,
                    op="ncclAllGather" if step == 120 else "ncclAllReduce",
                    return_code=0, comm_handle=r, comm_id=5, rank=r, nranks=4, datatype=7, count=1,
                    size_bytes=4, stream=1,
                )  # fmt: skip
            s.cuda(100 + r, "cudaStreamSynchronize", at + 60 * US, done - at - 60 * US, stream=1)
    chain = only(s)
    assert chain.gain is not None
    low, high = int(chain.gain.low.value or 0), int(chain.gain.high.value or 0)
    assert 6 * 29 * MS < high < 6 * 31 * MS
    assert 3 * 29 * MS < low < 3 * 31 * MS
