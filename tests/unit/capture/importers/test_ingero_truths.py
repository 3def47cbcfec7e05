"""Every fact that is known of the four Ingero databases, asked of the imported bundles."""

# ruff: noqa: S608 - the queries are put together from this file alone

from __future__ import annotations

import json
import sqlite3
from functools import cache
from typing import Any

import pytest

from tests.ingero_bundles import DATA, EMPTY_CACHE, NAMES, NODE_1, NODE_2, STARVATION, imported, original, store

OWN = "EXISTS (SELECT 1 FROM off_cpu s WHERE s.tid = f.tid AND s.end_ns > f.start_ns AND s.start_ns < f.end_ns)"
"""The call overlaps an interval off the CPU of its own thread."""
T0 = """(SELECT min(t) FROM (SELECT min(start_ns) AS t FROM cuda_calls UNION ALL SELECT min(end_ns) FROM off_cpu
  UNION ALL SELECT min(end_ns) FROM os_calls UNION ALL SELECT min(wake_ns) FROM off_cpu UNION ALL
  SELECT min(end_ns) FROM block_io UNION ALL SELECT min(start_ns) FROM lifecycle))"""
"""The first time that a row of the database carries."""


def nth(table: str, where: str, percent: int) -> str:
    """The nearest-rank percentile of durations."""
    return (
        f"SELECT duration_ns FROM {table} WHERE {where} ORDER BY 1 LIMIT 1 OFFSET "
        f"(SELECT ({percent} * count(*) + 99) // 100 - 1 FROM {table} WHERE {where})"
    )


SWITCHES = "SELECT {} sum(count), sum(sum_ns) FROM period_totals WHERE op = 'off_cpu'"
ROWS = " + ".join(f"(SELECT count(*) FROM {t})" for t in ("cuda_calls", "off_cpu", "block_io", "os_calls", "lifecycle"))

FACTS: dict[str, dict[str, str]] = {
    STARVATION: {
        "aggregate totals (all events seen / flagged stored)": "SELECT sum(count), sum(kept) FROM period_totals",
        "context switches + off-CPU ns (aggregates, all PIDs)": SWITCHES.format(""),
        "same for pt_data_worker processes only": "SELECT count(DISTINCT pid), sum(count) FROM period_totals JOIN "
        "(SELECT pid FROM processes WHERE comm = 'pt_data_worker') USING (pid) WHERE op = 'off_cpu'",
        "mm_page_alloc count, bytes": "SELECT sum(count), sum(size_bytes) FROM period_totals WHERE op = "
        "'page_allocation'",
        "cudaMemcpyAsync p50": nth("cuda_calls", "op = 'cudaMemcpyAsync'", 50),
        "cudaMemcpyAsync max": "SELECT max(duration_ns) FROM cuda_calls WHERE op = 'cudaMemcpyAsync'",
        "cudaLaunchKernel p50": nth("cuda_calls", "op = 'cudaLaunchKernel'", 50),
        "cudaLaunchKernel p99 (= single first launch, t+0.159s)": nth("cuda_calls", "op = 'cudaLaunchKernel'", 99),
        "CUDA+driver events: total, and after first second": f"SELECT count(*), count(*) FILTER (start_ns > {T0} + "
        "1000000000) FROM cuda_calls",
        "CUDA runtime API time ns (sum)": "SELECT sum(duration_ns) FROM cuda_calls WHERE op LIKE 'cuda%'",
        "stored chains by severity": "SELECT string_agg(severity || '=' || n, ',' ORDER BY severity) FROM (SELECT "
        "severity, count(*) AS n FROM stored_conclusions GROUP BY 1)",
        "CPU>90% snapshots / all": "SELECT count(*) FILTER (cpu_percent > 90), count(*) FROM host_samples",
        "CUDA runtime calls overlapping own-thread off-CPU": f"SELECT count(*) FROM cuda_calls f WHERE op LIKE 'cuda%' "
        f"AND {OWN}",
        "forks of trainer 2233": "SELECT count(*) FROM lifecycle WHERE op = 'fork' AND pid = 2233",
        "event span ns": "SELECT max(t) - min(t) FROM (SELECT start_ns AS t FROM cuda_calls UNION ALL SELECT end_ns "
        "FROM off_cpu UNION ALL SELECT start_ns FROM lifecycle)",
    },
    EMPTY_CACHE: {
        "cudaFree n": "SELECT count(*) FROM cuda_calls WHERE op = 'cudaFree'",
        "cudaFree p50": nth("cuda_calls", "op = 'cudaFree'", 50),
        "cudaFree p99": nth("cuda_calls", "op = 'cudaFree'", 99),
        "cudaStreamSync p50": nth("cuda_calls", "op = 'cudaStreamSynchronize'", 50),
        "cudaStreamSync p99": nth("cuda_calls", "op = 'cudaStreamSynchronize'", 99),
        "cudaMemcpyAsync p50 (stored rows)": nth("cuda_calls", "op = 'cudaMemcpyAsync'", 50),
        "cudaMemcpyAsync p99 (stored rows)": nth("cuda_calls", "op = 'cudaMemcpyAsync'", 99),
        "cudaFree calls overlapping own-thread off-CPU": f"SELECT count(*) FROM cuda_calls f WHERE op = 'cudaFree' AND "
        f"{OWN}",
        "cudaFree burst: first entry, last entry (ms after t0), total ns": f"SELECT (min(start_ns) - {T0}) // 1000000, "
        f"(max(start_ns) - {T0}) // 1000000, sum(duration_ns) FROM cuda_calls WHERE op = 'cudaFree'",
        "runtime malloc encloses driver cuMemAlloc when ts=entry (all) / when ts=end (none)": "SELECT count(*) FILTER "
        "(EXISTS (SELECT 1 FROM cuda_calls d WHERE d.op = 'cuMemAlloc_v2' AND d.parent_ns = f.start_ns AND d.tid = "
        "f.tid)), count(*) FILTER (EXISTS (SELECT 1 FROM cuda_calls d WHERE d.op = 'cuMemAlloc_v2' AND d.tid = f.tid "
        "AND d.start_ns <= f.start_ns AND d.start_ns - d.duration_ns >= f.start_ns - f.duration_ns)) FROM cuda_calls f "
        "WHERE op = 'cudaMalloc'",
        "cudaLaunchKernel >1ms: n, total ns, n overlapping own off-CPU": "SELECT count(*), sum(duration_ns), count(*) "
        f"FILTER ({OWN}) FROM cuda_calls f WHERE op = 'cudaLaunchKernel' AND duration_ns > 1000000",
        "  ns of that explained by off-CPU": "SELECT sum(least(s.end_ns, f.end_ns)::BIGINT - greatest(s.start_ns, "
        "f.start_ns)::BIGINT) FROM cuda_calls f JOIN off_cpu s ON s.tid = f.tid AND s.end_ns > f.start_ns AND "
        "s.start_ns < f.end_ns WHERE f.op = 'cudaLaunchKernel' AND f.duration_ns > 1000000",
        "off-CPU ns of trainer main thread 30581 (rows)": "SELECT count(*), sum(duration_ns) FROM off_cpu WHERE tid = "
        "30581",
        "off-CPU ns of atopacctd 779 (idle daemon)": "SELECT count(*), sum(duration_ns) FROM off_cpu WHERE tid = 779",
        "cudaMalloc n / bytes (rows)": "SELECT count(*), sum(size_bytes) FROM cuda_calls WHERE op = 'cudaMalloc'",
        "cudaMalloc/cudaFree true counts (aggregates)": "SELECT sum(count) FILTER (op = 'cudaMalloc'), sum(count) "
        "FILTER (op = 'cudaFree') FROM period_totals",
        "stack traces / with python frames": "SELECT count(DISTINCT stack), count(DISTINCT stack) FILTER (kind = "
        "'python') FROM stack_frames",
        "stored chains": "SELECT count(*), string_agg(DISTINCT severity) FROM stored_conclusions",
    },
    NODE_1: {
        "by source": "SELECT (SELECT count(*) FROM off_cpu), count(*) FILTER (op = 'read'), count(*) FILTER (op = "
        "'write'), (SELECT count(*) FROM cuda_calls) FROM block_io",
        "block_read p50": nth("block_io", "op = 'read'", 50),
        "block_read p99": nth("block_io", "op = 'read'", 99),
        "block_read bytes by python3 1887": "SELECT count(*), sum(size_bytes) FROM block_io WHERE op = 'read' AND pid "
        "= 1887",
        "sched_switch p50": nth("off_cpu", "true", 50),
        "off-CPU intervals >=80% covered by a block read": "SELECT count(*) FROM off_cpu s WHERE EXISTS (SELECT 1 FROM "
        "block_io r WHERE r.op = 'read' AND (least(r.end_ns, s.end_ns)::BIGINT - greatest(r.start_ns, "
        "s.start_ns)::BIGINT) * 10 > 8 * s.duration_ns)",
        "stored chains": "SELECT count(*), count(*) FILTER (severity = 'HIGH'), max(ratio) FROM stored_conclusions",
    },
    NODE_2: {
        "rows by source": "SELECT (SELECT count(*) FROM off_cpu), (SELECT count(*) FROM cuda_calls), (SELECT count(*) "
        "FROM block_io)",
        "sched_switch p50 (= 50 ms sleep loop)": nth("off_cpu", "true", 50),
        "sched_switch outside 45-55ms": "SELECT count(*) FROM off_cpu WHERE duration_ns NOT BETWEEN 45000000 AND "
        "55000000",
        "cuMemAlloc p50": nth("cuda_calls", "op = 'cuMemAlloc_v2'", 50),
        "cuMemAlloc p99": nth("cuda_calls", "op = 'cuMemAlloc_v2'", 99),
        "block writes by ingero itself / jbd2 / workload": "SELECT count(*) FILTER (role = 'recorder'), count(*) "
        "FILTER (p.comm LIKE 'jbd2%'), count(*) FILTER (role IN ('workload', 'traced')) FROM block_io JOIN processes p "
        "USING (pid)",
        "stored chain": "SELECT severity, ratio FROM stored_conclusions",
    },
}  # fmt: skip
"""The query of each fact over our tables; what no table can hold is asked of the import itself, below."""

TOLD = {
    (STARVATION, "rows / id range contiguous"), (EMPTY_CACHE, "rows"), (NODE_1, "rows; node"),
    (NODE_1, "orphan stacks (trimmed)"),
}  # fmt: skip
"""Facts about the file itself."""


@cache
def truths() -> dict[str, dict[str, Any]]:
    """The expected value of each fact."""
    told = json.loads((DATA / "truths.json").read_text("utf-8"))
    return {name: {f["name"]: f["expected"] for f in facts} for name, facts in told.items()}


def test_no_fact_is_left_out() -> None:
    asked = {(name, fact) for name, facts in FACTS.items() for fact in facts} | TOLD
    assert asked == {(name, fact) for name, facts in truths().items() for fact in facts}


@pytest.mark.parametrize(("name", "fact"), [(n, f) for n, facts in FACTS.items() for f in facts])
def test_the_bundle_says_what_the_database_does(name: str, fact: str) -> None:
    ((*found,),) = store(original(name)).sql(FACTS[name][fact])
    expected = truths()[name][fact]
    assert found == (expected if isinstance(expected, list) else [expected])


@pytest.mark.parametrize("name", NAMES)
def test_the_facts_are_those_of_the_database(name: str) -> None:
    """The queries that stand beside the expected values, asked of the original: nothing was taken over by mistake."""
    told = json.loads((DATA / "truths.json").read_text("utf-8"))[name]
    with sqlite3.connect(f"file:{original(name)}?mode=ro&immutable=1", uri=True) as db:
        for fact in told:
            (row,) = db.execute(fact["sql"]).fetchall()
            assert list(row) == (fact["expected"] if isinstance(fact["expected"], list) else [fact["expected"]])


def test_every_event_became_a_row_or_is_counted() -> None:
    """Wake-ups lie in the intervals that they ended; one that has none is said to be left out."""
    for name in NAMES:
        with sqlite3.connect(f"file:{original(name)}?mode=ro&immutable=1", uri=True) as db:
            ((events, wakeups),) = db.execute("SELECT count(*), sum(source = 3 AND op = 2) FROM events").fetchall()
        ((rows, woken),) = store(original(name)).sql(f"SELECT {ROWS}, (SELECT count(wake_ns) FROM off_cpu)")
        (told,) = imported(original(name)).files
        assert rows == events - wakeups
        alone = [str(x) for x in told["not_carried"] if "wake-ups" in str(x)]  # type: ignore[attr-defined]
        assert woken + (int(alone[0].rsplit(" ", 1)[1]) if alone else 0) == wakeups
        assert told["unreadable"] == "0"


def test_what_the_files_lack_lowers_the_grade() -> None:
    """Trimmed rows, totals that do not fit, a selection, main threads only, versions that disagree."""
    told = {n: " / ".join(str(w["text"]) for w in imported(original(n)).files[0]["weaknesses"]) for n in NAMES}  # type: ignore[attr-defined]
    assert "the totals say 3844 rows were kept, and there are 3807" in told[STARVATION]
    assert "the totals say 451 rows were kept, and there are 3486" in told[EMPTY_CACHE]
    assert "8 stacks are left that no row refers to and ids of rows begin with 3538" in told[NODE_1]
    assert "ids of rows begin with 335" in told[NODE_2]
    assert "taken out" not in told[STARVATION] + told[EMPTY_CACHE]
    for text in told.values():
        assert "its rows are a selection" in text
        assert "switches of main threads" in text
        assert "and its user_version is 0" in text
    assert "totals count 1623496 events, of which 3807 have rows" in told[STARVATION]
    assert all("no totals" in told[n] for n in (NODE_1, NODE_2))


def test_the_host_and_the_gpu_are_those_of_the_sessions() -> None:
    body = store(original(NODE_1)).open_body
    assert body["host"]["hostname"] == "gpu-node-01"
    assert body["host"]["cpus"] == 4
    assert body["host"]["kernel"] == "6.17.0-1007-aws"
    assert [g["name"] for g in body["gpus"]] == ["Tesla T4, 15360 MiB"]
    (told,) = imported(original(NODE_1)).files
    assert told["facts"]["schema"] == "0.9"  # type: ignore[index]
    assert told["facts"]["sessions"][0]["pid_filter"] == "1887"  # type: ignore[index]


def test_threads_belong_to_their_processes() -> None:
    """A scheduler row names a thread; that its process exited with it tells whose it is."""
    found = store(original(EMPTY_CACHE)).sql("SELECT DISTINCT pid, tid FROM off_cpu ORDER BY tid")
    assert found == [(664, 664), (779, 779), (30581, 30581), (30581, 30591), (30581, 30592)]
    roles = dict(store(original(EMPTY_CACHE)).sql("SELECT pid, role FROM processes"))
    assert roles == {428: "bystander", 664: "bystander", 779: "bystander", 30581: "traced"}


def test_signed_numbers_are_unsigned_again() -> None:
    """A stack's hash is a 64-bit number that SQLite holds signed; a call refers to it as its frames do."""
    with sqlite3.connect(f"file:{original(STARVATION)}?mode=ro&immutable=1", uri=True) as db:
        hashes = {h & (1 << 64) - 1 for (h,) in db.execute("SELECT hash FROM stack_traces")}
    found = {s for (s,) in store(original(STARVATION)).sql("SELECT DISTINCT stack FROM stack_frames")}
    assert found == hashes
    assert max(found) > 1 << 63
    lost = store(original(STARVATION)).sql(
        "SELECT count(*) FROM cuda_calls WHERE native_stack IS NOT NULL AND native_stack NOT IN (SELECT stack FROM "
        "stack_frames)"
    )
    assert lost == [(0,)]


def test_the_first_line_of_a_function_is_not_the_line_that_ran() -> None:
    rows = store(original(EMPTY_CACHE)).sql(
        "SELECT count(*), count(line), count(first_line) FROM stack_frames WHERE kind = 'python'"
    )
    assert rows[0][0] == rows[0][2] > 0
    assert rows[0][1] == 0
