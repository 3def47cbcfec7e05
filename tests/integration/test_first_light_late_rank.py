"""Four ranks, fifty all-reduces, one late rank: through ``audit capture``, ``analyze``, ``query``, against the truth.

The truth is what the ranks write down themselves: every call with CLOCK_BOOTTIME before and after it, and how many
there were. In both modes of the NCCL double: blocking, where the wait is in the call, and asynchronous as real NCCL,
where it is in the synchronisation of the stream.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.integration.recording import start, wait_for_line
from tests.integration.road import Road, number, outcome, road
from tests.integration.sessions import DEADLINE_S, Session
from tests.integration.told import Told, told

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

STEPS, RANKS, LATE_RANK, LATE_MS = 50, 4, 2, 30
BLOCKING = {"blocking": "1", "asynchronous": "0"}
WAITS_IN = {"blocking": "ncclAllReduce", "asynchronous": "cudaStreamSynchronize"}


def close(got: int | Fraction, want: float) -> bool:
    """Within 10 % or 1 ms."""
    return abs(got - want) <= max(abs(want) / 10, 1_000_000)


def check_chain(chain: dict[str, Any], truth: Told, late: int, mode: str) -> None:
    """The chain names the rank that its own timestamps show late, by that much, and explains as much of the wait."""
    assert truth.last_rank() == late
    assert (chain["subject"]["rank"], chain["subject"]["pid"]) == (str(late), str(truth.pids[late]))
    lateness = truth.lateness(late)
    values = chain["values"]
    assert number(values["evaluated"]) == len(lateness)
    assert number(values["occurrences"]) == len(lateness)
    assert close(number(values["lateness_p50"]), sorted(lateness)[(len(lateness) + 1) // 2 - 1])
    assert close(number(values["lateness_max"]), max(lateness))
    (link,) = chain["links"]
    explained = number(link["explained"])
    assert explained == Fraction(number(link["overlap_ns"]), number(link["effect_ns"]))
    assert abs(float(explained) - truth.share_waited(late, WAITS_IN[mode])) <= 0.1


def check_counts(r: Road, name: str, truth: Told) -> None:
    """Every call of the truth is in the bundle, none more but the launcher's one, and nothing was lost on the way."""
    counts = r.calls(name)
    assert {k: n for k, n in counts.items() if k[0] in truth.pids} == truth.counts
    assert {k[1]: n for k, n in counts.items() if k[0] not in truth.pids} == {"ncclGetUniqueId": 1}
    (lost,) = r.query(name, "SELECT sum(seen) AS seen, sum(written) AS written, sum(lost) AS lost FROM losses")
    assert int(lost["lost"]) == 0
    assert int(lost["seen"]) == int(lost["written"]) > 0


@pytest.fixture(scope="module")
def shared(doubles: Path, bpf: None) -> Iterator[Road]:
    with road(doubles) as r:
        yield r


@pytest.mark.parametrize("mode", BLOCKING)
def test_first_light_late_rank(shared: Road, mode: str) -> None:
    r, out = shared, shared.folder / f"{mode}.truth"
    command = (r.folder / "bin" / "ranks", "--out", out, "--ranks", str(RANKS), "--steps", str(STEPS))
    late = ("--late-rank", str(LATE_RANK), "--late-ms", str(LATE_MS))
    captured = r.capture(mode, *command, *late, env={"NCCL_DOUBLE_BLOCKING": BLOCKING[mode]})
    assert (captured["ended_by"], captured["workload_status"]) == ("workload", 0)
    assert {t: c["lost"] for t, c in captured["totals"].items() if c["lost"]} == {}
    truth = told(out)
    assert truth.counts[truth.pids[0], "ncclAllReduce"] == STEPS
    check_counts(r, mode, truth)
    document = r.findings(mode)
    assert document["bundle"]["status"] == "SEALED"
    # What made single calls slow on a busy host is told beside it.
    (chain,) = [c for c in document["chains"] if c["detector"] == "late_rank"]
    check_chain(chain, truth, LATE_RANK, mode)
    assert "device-side lateness: not evaluated" in outcome(document, "late_rank")["reason"]
    # no NVIDIA driver here: a gap and a lower grade, never an error
    assert outcome(document, "throttling")["state"] == "not evaluated"
    assert "libnvidia-ml.so.1 was not found" in outcome(document, "throttling")["reason"]
    assert document["quality"]["grade"] == "B"


@pytest.mark.parametrize("mode", BLOCKING)
def test_first_light_no_rank_is_late(shared: Road, mode: str) -> None:
    """The ranks run at real-time priority: a busy host makes none of them late, and the truth must say so too."""
    r, name = shared, f"{mode}-on-time"
    out = r.folder / f"{name}.truth"
    command = (r.folder / "bin" / "ranks", "--out", out, "--steps", str(STEPS), "--realtime", "1", "--step-ms", "10")
    r.capture(name, *command, env={"NCCL_DOUBLE_BLOCKING": BLOCKING[mode]})
    truth = told(out)
    check_counts(r, name, truth)
    late_in_truth = [sum(ns > 1_000_000 for ns in truth.lateness(rank)) for rank in range(RANKS)]
    assert max(late_in_truth) < STEPS // 10, f"this host made a rank late: {late_in_truth} of {STEPS}"
    document = r.findings(name)
    assert [c for c in document["chains"] if c["detector"] == "late_rank"] == []
    late_rank = outcome(document, "late_rank")
    assert late_rank["state"] == "clear", late_rank
    assert late_rank["reason"].startswith("1 of 1 communicators evaluated")


def test_first_light_host_wide_before_and_after(shared: Road) -> None:
    """One process group that made its communicator before the capture, one that starts after it; Ctrl-C ends it."""
    r, ranks, go = shared, shared.folder / "bin" / "ranks", shared.folder / "go"
    early_out, later_out = r.folder / "early", r.folder / "later"
    early = start(ranks, "--out", early_out, "--steps", "10", "--pause-at", "init", "--pause-file", go)
    for _ in range(RANKS):
        wait_for_line(early, "at init")
    out = r.folder / "host.db"
    session = Session(["--out", out, "--duration", "10m"], r.env)
    session.wait_for(r.folder / "host.db.receipt")
    r.wait_for_probes("host", RANKS, {int(p) for p in children(early.pid)})
    go.touch()
    assert early.wait(DEADLINE_S) == 0
    late = ("--late-rank", "3", "--late-ms", str(LATE_MS))
    assert start(ranks, "--out", later_out, "--steps", str(STEPS), *late).wait(DEADLINE_S) == 0
    code, said = session.end(signal.SIGINT)
    assert code == 0, said
    assert "(interrupt)" in said
    before, after = told(early_out), told(later_out)
    missed = ("ncclCommInitRank", "cudaMalloc", "cudaStreamCreate")  # made before the capture
    want = {k: n for k, n in before.counts.items() if k[1] not in missed} | after.counts
    mine = {*before.pids, *after.pids}
    assert {k: n for k, n in r.calls("host").items() if k[0] in mine} == want
    pids = ", ".join(map(str, before.pids))
    named = r.query("host", f"SELECT count(comm_id) AS n, count(rank) AS r FROM nccl_calls WHERE pid IN ({pids})")
    assert named == [{"n": 0, "r": 0}]
    document = r.findings("host")
    lateness = [c for c in document["chains"] if c["detector"] == "late_rank"]
    (chain,) = [c for c in lateness if int(c["subject"]["pid"]) in mine]
    check_chain(chain, after, 3, "asynchronous")
    reason = outcome(document, "late_rank")["reason"]
    for pid in before.pids:
        assert f"of process {pid} (10 calls): identity not recorded, it was made before the probes" in reason


def children(pid: int) -> list[str]:
    """Process ids of the children of a process with one thread."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
