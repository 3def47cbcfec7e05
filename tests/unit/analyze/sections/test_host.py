"""The host's own tables: sums of rows that were made by hand, each number with its rows, and no claim of a cause."""

from __future__ import annotations

from typing import Any

from gpuaudit.analyze.explain import explain_document
from gpuaudit.analyze.finding import Quantity, Section, SectionTable
from gpuaudit.analyze.sections.host import evaluate
from tests.scenes import MS, T0, US, S, Scene

UNINTERRUPTIBLE, INTERRUPTIBLE = 2, 1


def off(s: Scene, at: int, took: int | None, op: str, **more: Any) -> None:
    base = {
        "start_ns": T0 + at, "duration_ns": took, "pid": 7, "tid": 7, "op": op, "comm": "python3", "prev_state": 0,
        "next_pid": 99, "next_tid": 99, "next_comm": "the hog", "cpu_out": 1,
    }  # fmt: skip
    s.add("off_cpu", **{**base, **more})


def scene() -> Scene:
    s = Scene().clock().process(7).process(1, "audit", role="recorder")
    s.process(8, "bpftrace", role="observer", reason="holds a BPF program")
    s.process(9, "trainer", rank=3, local_rank=1, world_size=8, rank_source="RANK,LOCAL_RANK,WORLD_SIZE", job_id="77")
    off(s, 0, 5 * MS, "preempted", runqueue_ns=5 * MS)
    off(s, 10 * MS, 7 * MS, "blocked", prev_state=INTERRUPTIBLE, runqueue_ns=2 * MS, syscall=202)
    off(s, 20 * MS, 9 * MS, "blocked", prev_state=UNINTERRUPTIBLE, runqueue_ns=1 * MS, syscall=17)
    off(s, 30 * MS, 4 * MS, "blocked", prev_state=INTERRUPTIBLE, next_comm="swapper/1")
    off(s, 40 * MS, 1 * S, "preempted", pid=1, tid=1)
    s.add("migrations", start_ns=T0 + MS, pid=7, tid=7, from_cpu=0, to_cpu=1)
    disk = {"pid": 7, "tid": 7, "comm": "python3", "major": 259, "minor": 0, "sector": 8, "operation": 0, "op": "read"}
    s.add("block_io", start_ns=T0, duration_ns=3 * MS, size_bytes=4096, error=0, queue_ns=10 * US, **disk)
    s.add("block_io", start_ns=T0 + S, duration_ns=5 * MS, size_bytes=8192, error=-5, **disk)
    s.add("tcp_retransmits", start_ns=T0, pid=7, comm="python3", family=10, state=1, segments=2, local_address="::1",
          local_port=5000, remote_address="fe80::2", remote_port=80)  # fmt: skip
    s.add("socket_io", start_ns=T0, duration_ns=S, pid=7, op="send", receive=0, inode=5, family=2, count=10, errors=1,
          size_bytes=1000, sum_ns=2 * MS, max_ns=MS, remote_address="10.0.0.2", remote_port=80)  # fmt: skip
    s.add(
        "reclaims",
        start_ns=T0,
        duration_ns=2 * MS,
        pid=7,
        tid=7,
        comm="python3",
        order=0,
        reclaimed_pages=32,
        op="cgroup",
        cgroup_limit=1,
    )
    s.add(
        "oom_kills", start_ns=T0, pid=4242, comm="victim", resident_bytes=1 << 30, killer_pid=7, killer_comm="python3"
    )
    s.add("page_allocations", start_ns=T0, duration_ns=S, pid=7, order=1, count=100)
    for at, faults in ((0, 10), (10 * S, 25)):
        s.add("process_samples", start_ns=T0 + at, pid=7, major_faults=faults, resident_bytes=faults * 1000)
        s.add("pressure", start_ns=T0 + at, resource="io", some_ns=faults * MS, full_ns=MS)
        s.add("cgroup_cpu", start_ns=T0 + at, cgroup="/job", version=2, throttled_ns=faults * MS,
              throttled_periods=faults, quota_ns=50 * MS, period_ns=100 * MS)  # fmt: skip
    s.add("lifecycle", start_ns=T0, pid=5, tid=5, op="exit", event=2, comm="rank", exit_code=1)
    s.add("lifecycle", start_ns=T0, pid=6, tid=6, op="exit", event=2, comm="rank", exit_code=0, signal=9)
    s.add("lifecycle", start_ns=T0, pid=6, tid=6, op="signal", event=3, comm="rank", signal=9, other_pid=5)
    return s


def tables(section: Section) -> dict[str, SectionTable]:
    return {t.id: t for t in section.tables}


def rows(section: Section, name: str) -> list[dict[str, Any]]:
    found = tables(section)[name]
    names = [c for c, _ in found.columns]
    return [
        dict(zip(names, (c.value if isinstance(c, Quantity) else c for c in row), strict=True)) for row in found.rows
    ]


def test_waiting_for_a_cpu_is_apart_from_sleeping() -> None:
    section = evaluate(scene().context())
    (row,) = rows(section, "off_cpu")
    assert row == {
        "process": "7 (python3)", "count": 4, "preempted": 5 * MS, "run_queue": 3 * MS, "asleep": 5 * MS,
        "uninterruptible": 8 * MS, "unknown": 4 * MS,
    }  # fmt: skip
    assert rows(section, "ran_instead") == [
        {"process": "7 (python3)", "who": "the hog", "count": 1, "time": 5 * MS, "longest": 5 * MS}
    ]
    assert [(r["call"], r["time"]) for r in rows(section, "system_calls")] == [("pread64", 8 * MS), ("futex", 5 * MS)]
    assert [r["threads"] for r in rows(section, "migrations")] == [1]


def test_disks_and_network() -> None:
    section = evaluate(scene().context())
    (row,) = rows(section, "block_io")
    assert (row["device"], row["op"], row["who"], row["size"]) == ("259:0", "read", "python3 (7)", 12_288)
    assert row["behalf"] == "the issuer, or unknown"
    assert (row["time"], row["longest"], row["queued"], row["errors"]) == (8 * MS, 5 * MS, 10 * US, 1)
    (sent,) = rows(section, "sockets")
    assert (sent["family"], sent["remote"], sent["size"], sent["errors"]) == ("IPv4", "10.0.0.2:80", 1000, 1)
    (again,) = rows(section, "retransmits")
    assert (again["owner"], again["local"], again["remote"]) == ("python3 (7)", "[::1]:5000", "[fe80::2]:80")


def test_memory_limits_and_lives() -> None:
    section = evaluate(scene().context())
    assert [(r["time"], r["pages"]) for r in rows(section, "reclaims")] == [(2 * MS, 32)]
    assert [(r["victim"], r["killer"], r["resident"]) for r in rows(section, "oom_kills")] == [
        ("victim (4242)", "python3 (7)", 1 << 30)
    ]
    assert [(r["order"], r["size"]) for r in rows(section, "pages")] == [("1", 100 * 2 * 4096)]
    (counters,) = rows(section, "processes")
    assert (counters["major"], counters["resident"], counters["user"]) == (15, 25_000, None)
    assert [(r["some"], r["full"], r["observed"]) for r in rows(section, "pressure")] == [(15 * MS, 0, 10 * S)]
    (throttled,) = rows(section, "throttling")
    assert (throttled["throttled"], throttled["throttled_periods"], throttled["quota"]) == (15 * MS, 15, 50 * MS)
    assert [(r["who"], r["code"], r["signal"]) for r in rows(section, "ends")] == [
        ("rank (5)", "1", "not recorded"), ("rank (6)", "0", "SIGKILL")
    ]  # fmt: skip
    assert [(r["who"], r["signal"], r["sender"]) for r in rows(section, "signals")] == [("rank (6)", "SIGKILL", "5")]


def test_ranks_and_observers_are_named() -> None:
    section = evaluate(scene().context())
    (place,) = rows(section, "places")
    assert (place["process"], place["rank"], place["world"], place["job"]) == ("9 (trainer)", "3", "8", "77")
    assert [(r["process"], r["role"]) for r in rows(section, "observers")] == [
        ("8 (bpftrace)", "observer"), ("1 (audit)", "recorder")
    ]  # fmt: skip


def test_every_number_has_its_rows_and_its_formula_and_no_cause_is_claimed() -> None:
    context = scene().context()
    section = evaluate(context)
    entries = {e.id: e.rows for e in context.book.entries()}
    numbers = [c for t in section.tables for row in t.rows for c in row if isinstance(c, Quantity)]
    assert len(numbers) > 40
    assert all(q.formula and q.evidence and all(entries[i] for i in q.evidence) for q in numbers)
    assert all(q.reason for q in numbers if q.value is None)
    assert "None of them says that it slowed the work" in section.notes[0]
    told = " ".join(explain_document(scene().document(), 120).split())
    assert "The kernel killed process 4242 (victim) for want of memory; it held 1.00 GiB" in told


def test_a_counter_that_was_read_once_has_not_grown() -> None:
    s = Scene().clock().process(7)
    s.add("process_samples", start_ns=T0, pid=7, major_faults=10)
    (row,) = evaluate(s.context()).tables[0].rows
    (major,) = [c for c in row if isinstance(c, Quantity) and "major" in c.formula]
    assert (major.value, major.reason) == (None, "read fewer than two times")


def test_an_old_capture_has_no_table_of_system_calls() -> None:
    """Their numbers were not recorded, which is not the same as no system call."""
    s = Scene().clock().process(7)
    off(s, 0, 5 * MS, "blocked", prev_state=INTERRUPTIBLE)
    section = evaluate(s.context())
    assert "system_calls" not in tables(section)
    assert rows(section, "off_cpu")[0]["unknown"] == 5 * MS


def test_nothing_of_the_host_is_not_evaluated() -> None:
    section = evaluate(Scene().clock().context())
    assert (section.state, section.reason) == ("not evaluated", "nothing of the host was recorded")
