"""What our evidence says to stored conclusions, on scenes whose truth is known; stalls; and calls without rows."""

from __future__ import annotations

import pytest

from gpuaudit.analyze import stored_claims, unlisted
from gpuaudit.analyze.effects import api_silence, stalls
from gpuaudit.analyze.run import document_bytes
from gpuaudit.analyze.sections import stored_conclusions
from gpuaudit.analyze.stored_claims import Judgement
from tests.scenes import MS, T0, US, S, Scene

PID, OTHER = 40, 41


def scene(alleged: str | None, *, tail_ns: int | None = 4 * MS, op: str | None = "cudaFree") -> Scene:
    """Twenty releases, the last one of 4 ms from T0 + 2 s, and a conclusion on them."""
    s = Scene().clock().process(PID, "trainer").process(OTHER, "daemon", role="bystander")
    for n in range(19):
        s.cuda(PID, "cudaFree", T0 + S + n * MS, 100 * US)
    s.cuda(PID, "cudaFree", T0 + 2 * S, 4 * MS)
    return s.add(
        "stored_conclusions", start_ns=T0 + 3 * S, tool="Some tool", key="k", severity="HIGH", op=op, summary="a tail",
        cause="so it says", alleged=alleged, tail_ns=tail_ns, usual_ns=100 * US, alleged_off_cpu_ns=9 * S,
    )  # fmt: skip


def off(s: Scene, at: int, length: int, pid: int = PID) -> Scene:
    return s.add("off_cpu", start_ns=at, duration_ns=length, pid=pid, tid=pid, op="off")


def judged(s: Scene) -> Judgement:
    context = s.context()
    (claim,), more = stored_claims.claims(context)
    assert more == 0
    return stored_claims.judge(context, claim)


def around(s: Scene) -> Scene:
    """Switches of the thread before and after, so that it was watched."""
    return off(off(s, T0 + S - MS, 50 * US), T0 + 3 * S, 50 * US)


@pytest.mark.parametrize(("covered", "verdict"), [
    (0, "refuted"), (199 * US, "refuted"), (200 * US, "unsupported"), (999 * US, "unsupported"), (MS, "supported"),
    (4 * MS, "supported"),
])  # fmt: skip
def test_time_off_a_cpu(covered: int, verdict: str) -> None:
    """Of 4 ms: a twentieth is 200 µs, a quarter 1 ms."""
    s = around(scene("off_cpu"))
    if covered:
        off(s, T0 + 2 * S, covered)
    found = judged(s)
    assert (found.verdict, found.slow_ns, found.watched_ns, found.overlap_ns) == (verdict, 4 * MS, 4 * MS, covered)
    assert found.touched == (1 if covered else 0)
    assert found.calls == 20


def test_a_cause_that_was_not_watched_is_neither() -> None:
    """Switch rows that begin after the call say nothing of it; nor do those of another thread."""
    late = off(off(scene("off_cpu"), T0 + 3 * S, MS), T0 + 4 * S, MS)
    for s in (late, off(scene("off_cpu"), T0 + 2 * S, 4 * MS, OTHER)):
        found = judged(s)
        assert (found.verdict, found.watched_ns, found.overlap_ns) == ("unsupported", 0, 0)
        assert found.why.startswith("evidence absent")


def test_who_waits_for_a_disk_is_not_kept_from_a_cpu() -> None:
    s = off(around(scene("off_cpu")), T0 + 2 * S, 4 * MS)
    assert judged(s).verdict == "supported"
    s.add("block_io", start_ns=T0 + 2 * S, duration_ns=3_200 * US, pid=PID, tid=PID, op="read", operation=0, sector=1,
          size_bytes=4096)  # fmt: skip
    found = judged(s)
    assert found.verdict == "refuted"
    assert "for no CPU" in found.why


@pytest.mark.parametrize(("pid", "verdict"), [(PID, "supported"), (OTHER, "refuted")])
def test_disk_requests_count_for_their_own_process(pid: int, verdict: str) -> None:
    s = scene("block_io")
    for at, length in ((T0 + S, MS), (T0 + 2 * S, 4 * MS), (T0 + 3 * S, MS)):
        s.add("block_io", start_ns=at, duration_ns=length, pid=pid, tid=pid, op="write", operation=1, sector=1,
              size_bytes=4096)  # fmt: skip
    found = judged(s)
    assert found.verdict == verdict
    assert ("none is of the callers" in found.why) == (pid == OTHER)


@pytest.mark.parametrize(("cpu", "at", "verdict"), [
    (97.0, T0 + 2 * S + 500 * MS, "supported"), (60.0, T0 + 2 * S + 500 * MS, "refuted"),
    (97.0, T0 + 4 * S, "unsupported"),
])  # fmt: skip
def test_full_cpus_of_the_second_before_a_sample(cpu: float, at: int, verdict: str) -> None:
    assert judged(scene("host_cpu").add("host_samples", start_ns=at, cpu_percent=cpu)).verdict == verdict


@pytest.mark.parametrize(("alleged", "op"), [("network", "cudaFree"), (None, "cudaFree"), ("off_cpu", "cudaMalloc"),
                                             ("block_io", None)])  # fmt: skip
def test_what_no_row_shows_is_said_to_be_absent(alleged: str | None, op: str | None) -> None:
    found = judged(scene(alleged, op=op))
    assert found.verdict == "unsupported"
    assert found.why.startswith("evidence absent")


def test_without_its_calls_time_off_a_cpu_may_still_be_explained() -> None:
    """Of a workload without rows of the operation: its waits for its own disk requests are no contention."""
    for pid, verdict in ((PID, "refuted"), (OTHER, "unsupported")):
        s = off(scene("off_cpu", op="cuLaunchKernel"), T0 + S, 10 * MS)
        s.add("block_io", start_ns=T0 + S, duration_ns=9 * MS, pid=pid, tid=pid, op="read", operation=0, sector=1,
              size_bytes=4096)  # fmt: skip
        assert judged(s).verdict == verdict


def test_a_p99_that_no_row_reaches_is_said() -> None:
    found = judged(around(scene("off_cpu", tail_ns=50 * MS)))
    assert found.why.endswith("no call as long as it states has a row")
    assert found.slow_ns == 4 * MS, "then the calls longer than three times the median that it states"


def test_the_section_quotes_and_says_when_there_is_nothing() -> None:
    section = stored_conclusions.evaluate(off(around(scene("off_cpu,network")), T0 + S, 3 * S, OTHER).context())
    assert section.state == "evaluated"
    assert section.reason == "claims: 1 refuted, 1 unsupported"
    claims, stated, whose = section.tables
    assert [r[0] for r in claims.rows] == ["“a tail”", "“a tail”"]
    assert stated.rows[0][0].value == 9 * S  # type: ignore[union-attr]
    assert [(r[0], r[1]) for r in whose.rows] == [("41 (daemon)", "bystander"), ("40 (trainer)", "traced")]
    assert stored_conclusions.evaluate(Scene().clock().context()).state == "not evaluated"


def test_stalls_are_of_the_workload_outside_its_calls_where_states_are_unknown() -> None:
    s = scene(None)
    off(s, T0 + 2 * S - MS, 3 * MS)  # 1 ms before the slow call, 2 ms inside it
    off(s, T0 + 5 * S, 7 * MS)
    off(s, T0 + 5 * S, 900 * MS, OTHER)
    s.add("off_cpu", start_ns=T0 + 6 * S, duration_ns=S, pid=PID, tid=PID, op="blocked", prev_state=1)
    (effect,) = stalls.effects(s.context())
    assert (effect.pid, effect.length_ns, effect.count) == (PID, 8 * MS, 2)
    assert "wanted to was not recorded" in effect.notes[0]
    assert s.document().chains == [], "what nothing covers may be sleep, and is no finding"


def test_calls_without_rows_are_said_beside_a_silence() -> None:
    s = scene(None).add(
        "period_totals", start_ns=T0, duration_ns=60 * S, pid=PID, op="cudaFree", count=25, kept=20,
        sum_ns=19 * 100 * US + 4 * MS + 2 * MS,
    )  # fmt: skip
    s.add("period_totals", start_ns=T0, duration_ns=60 * S, pid=PID, op="off_cpu", count=9_999, kept=0)
    context = s.context()
    assert unlisted.note(context, PID, "cudaMalloc") == unlisted.note(context, OTHER) == ()
    (note,) = unlisted.note(context, PID)
    assert note.startswith("5 of 25 GPU calls that the recording tool counted have no row (2.00 ms in all)")
    (effect,) = api_silence.effects(context)
    assert note in effect.notes


def test_extremes_that_a_stranger_may_have_sealed() -> None:
    """The largest numbers, many alleged causes, texts of any kind: a document, and no error."""
    most, late = (1 << 64) - 1, (1 << 62) - 1
    s = scene(",".join(f"cause {n}" for n in range(500)), op="x" * 5_000)
    s.add("stored_conclusions", start_ns=late, tool="\u202etool", key="", severity="", op=None, summary="s" * 9_000,
          alleged="off_cpu", tail_ns=late, usual_ns=0, ratio=float("nan"), alleged_off_cpu_ns=late)  # fmt: skip
    for op in ("cudaFree", "off_cpu"):
        s.add("period_totals", start_ns=T0, duration_ns=late - T0, pid=PID, op=op, count=most, kept=most, sum_ns=late,
              min_ns=late, max_ns=late, size_bytes=most)  # fmt: skip
    s.add("host_samples", start_ns=0, cpu_percent=float("inf"), load_average_1min=-1.0)
    s.add("off_cpu", start_ns=T0, duration_ns=late - T0, pid=PID, tid=PID, op="off")
    document = s.document()
    section = next(x for x in document.sections if x.id == "stored_conclusions")
    assert section.tables[0].omitted == 501 - len(section.tables[0].rows) > 0
    assert document_bytes(document)
