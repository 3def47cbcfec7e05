"""Every figure of the findings again, by somebody who has only ``audit query --json`` and plain Python.

Nothing here is taken from ``gpuaudit.analyze``: the definitions are those that the findings document prints beside its
numbers, written down a second time with lists, sorting and integers. The capture is synthetic, so no root is needed.
"""

from __future__ import annotations

import bisect
import json
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.commands import audit, audit_here, environment

Row = dict[str, Any]
Span = tuple[int, int]

SYNC = ("cudaStreamSynchronize", "cudaDeviceSynchronize")
FIVE_SECONDS = 5 * 10**9
POWER_OR_HEAT = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


class Stranger:
    """The findings document, and rows of the bundle as the command line gives them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.env = folder, environment(folder / "keys")
        self.audit("capture", "--synthetic", "late-rank", "--out", "x.db")
        self.audit("analyze", "x.db", "--rate", "2.50")
        self.document: dict[str, Any] = json.loads((folder / "x.findings.json").read_bytes())
        own = {r["pid"] for r in self.rows("SELECT pid FROM processes WHERE role IN ('recorder', 'attacher')")}
        call = "op, pid, tid, start_ns, duration_ns, return_code"
        self.cuda = self.rows(f"SELECT {call}, stream FROM cuda_calls")
        self.nccl = self.rows(f"SELECT {call}, stream, comm_id, rank, count, seq FROM nccl_calls")
        self.comms = self.rows(f"SELECT {call} FROM nccl_comms")
        self.off_cpu = self.rows("SELECT op, pid, start_ns, duration_ns FROM off_cpu")
        self.samples = self.rows(
            "SELECT gpu_uuid, start_ns, duration_ns, gpu_utilization_percent AS busy, event_reasons, clock_sm_mhz, "
            "clock_sm_max_mhz FROM nvml_samples ORDER BY gpu_uuid, start_ns"
        )
        self.holders = self.rows("SELECT gpu_uuid, start_ns, pid FROM nvml_processes")
        for table in (self.cuda, self.nccl, self.comms, self.off_cpu, self.holders):
            table[:] = [r for r in table if r["pid"] not in own]

    def audit(self, *args: str) -> str:
        done = audit(*args, env=self.env, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def of_gpu(self, uuid: str) -> list[Row]:
        """The samples of a GPU."""
        return [r for r in self.samples if r["gpu_uuid"] == uuid]

    def rows(self, sql: str) -> list[Row]:
        done = audit_here("query", "x.db", sql, "--json", env=self.env, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        found: list[Row] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    return Stranger(tmp_path_factory.mktemp("stranger"))


def number(quantity: Any) -> Any:
    """The number of a quantity, exact; None where it has none."""
    value = quantity["value"]
    if isinstance(value, dict):
        return Fraction(int(value["num"]), int(value["den"]))
    return None if value is None else int(value)


def numbers(item: Row) -> dict[str, Any]:
    return {k: number(v) for k, v in item["values"].items() if not isinstance(v, str)}


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same time without overlaps."""
    out: list[Span] = []
    for a, b in sorted(s for s in spans if s[0] < s[1]):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], b))
        else:
            out.append((a, b))
    return out


def length(spans: Iterable[Span]) -> int:
    return sum(b - a for a, b in joined(spans))


def common(x: Iterable[Span], y: Iterable[Span]) -> list[Span]:
    """Time in both, by looking each span of one up in the other."""
    left, right = joined(x), joined(y)
    starts = [a for a, _ in right]
    out = []
    for a, b in left:
        for c, d in right[max(0, bisect.bisect(starts, a) - 1) :]:
            if c >= b:
                break
            out.append((max(a, c), min(b, d)))
    return joined(out)


def without(x: Iterable[Span], y: Iterable[Span]) -> list[Span]:
    out: list[Span] = []
    for begin, end in joined(x):
        at = begin
        for a, b in common([(begin, end)], y):
            out.append((at, a))
            at = b
        out.append((at, end))
    return joined(out)


def middle(values: Iterable[int]) -> int:
    """Median, rounded down where there are two in the middle."""
    v = sorted(values)
    return (v[(len(v) - 1) // 2] + v[len(v) // 2]) // 2


def test_every_statistic_of_every_operation(stranger: Stranger) -> None:
    tables = {"cuda_calls": stranger.cuda, "nccl_calls": stranger.nccl, "nccl_comms": stranger.comms,
              "off_cpu": stranger.off_cpu}  # fmt: skip
    told = {(o["table"], o["op"]): o for o in stranger.document["operations"]}
    assert set(told) == {(t, r["op"]) for t, rows in tables.items() for r in rows}
    for (table, op), o in told.items():
        mine = [r for r in tables[table] if r["op"] == op]
        done = sorted(int(r["duration_ns"]) for r in mine if r["duration_ns"] is not None)
        assert number(o["count"]) == len(mine)
        assert number(o["open"]) == len(mine) - len(done)
        if table != "off_cpu":
            assert number(o["errors"]) == sum(1 for r in mine if r["return_code"] not in (0, None))
        assert number(o["total"]) == sum(done)
        assert number(o["max"]) == done[-1]
        assert number(o["p50"]) == done[-(-len(done) // 2) - 1]
        assert number(o["p99"]) == (done[-(-99 * len(done) // 100) - 1] if len(done) >= 100 else None)


class Ranks:
    """The one communicator of the scenario: arrivals and waits of its ranks, collective by collective."""

    def __init__(self, s: Stranger) -> None:
        by_rank: dict[int, list[Row]] = defaultdict(list)
        for r in sorted(s.nccl, key=lambda r: (r["start_ns"], r["seq"])):
            by_rank[r["rank"]].append(r)
        self.calls = [by_rank[k] for k in sorted(by_rank)]
        self.n = len(self.calls[0])
        assert {len(c) for c in self.calls} == {self.n}
        self.arrival = [[int(c["start_ns"]) for c in calls] for calls in self.calls]
        self.last = [max(a[i] for a in self.arrival) for i in range(self.n)]
        self.sync = [[self._sync(s, c) for c in calls] for calls in self.calls]
        self.late = self._late()

    @staticmethod
    @cache
    def _syncs(s: Stranger, tid: int, stream: int) -> list[Span]:
        mine = [r for r in s.cuda if r["op"] in SYNC and r["tid"] == tid and r["return_code"] == 0]
        mine = [r for r in mine if r["op"] == SYNC[1] or r["stream"] == stream]
        return sorted((r["start_ns"], r["start_ns"] + r["duration_ns"]) for r in mine)

    def _sync(self, s: Stranger, call: Row) -> Span:
        """The first synchronisation that begins after the call, on its thread and stream."""
        mine = self._syncs(s, call["tid"], call["stream"])
        return mine[bisect.bisect_left(mine, (call["start_ns"] + call["duration_ns"], 0))]

    def _late(self) -> dict[int, list[tuple[int, int, int]]]:
        """Per rank: (collective, median arrival of the others, lateness) where it was last and beyond the threshold."""
        columns = [[a[i] for a in self.arrival] for i in range(self.n)]
        usual = middle(abs(a - middle(column)) for column in columns for a in column)
        out: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for i, column in enumerate(columns):
            rank = column.index(max(column))
            others = column[:rank] + column[rank + 1 :]
            median = middle(others)
            spread = max(usual, middle(abs(a - median) for a in others))
            if column[rank] - median > max(10**6, spread * 7 * 7413 // (2 * 5000)):
                out[rank].append((i, median, column[rank] - median))
        return out

    def wait(self, rank: int, i: int) -> Span:
        """Its call or its synchronisation, whichever has more of the time until the last rank came."""
        call = self.calls[rank][i]
        inside = (call["start_ns"], call["start_ns"] + call["duration_ns"])
        until = [(self.arrival[rank][i], self.last[i])]
        sync = self.sync[rank][i]
        return sync if length(common([sync], until)) > length(common([inside], until)) else inside

    def waiting(self, rank: int) -> list[Span]:
        spans = [(self.wait(rank, i), self.last[i]) for i in range(self.n)]
        return joined((a, min(b, last)) for (a, b), last in spans)


@pytest.fixture(scope="module")
def ranks(stranger: Stranger) -> Ranks:
    return Ranks(stranger)


def test_the_late_rank_its_lateness_and_the_wait(stranger: Stranger, ranks: Ranks) -> None:
    (chain,) = [c for c in stranger.document["chains"] if c["detector"] == "late_rank"]
    rank = int(chain["subject"]["rank"])
    late = ranks.late[rank]
    told = numbers(chain)
    lateness = sorted(ns for _, _, ns in late)
    assert (told["occurrences"], told["evaluated"], told["nranks"]) == (len(late), ranks.n, len(ranks.calls))
    assert (told["lateness_p50"], told["lateness_max"]) == (lateness[-(-len(late) // 2) - 1], lateness[-1])
    peers = [r for r in range(len(ranks.calls)) if r != rank]
    came = {i: ranks.arrival[rank][i] for i, _, _ in late}
    cause = [(median, came[i]) for i, median, _ in late]
    alone = [(max(ranks.arrival[p][i] for p in peers), came[i]) for i in came]
    effect = {p: [ranks.wait(p, i) for i in came] for p in peers}
    wait = sum(length(common(effect[p], cause)) for p in peers)
    assert told["wait"] == wait
    assert told["wait_alone"] == sum(length(common(effect[p], alone)) for p in peers)
    assert told["covered"] == Fraction(wait, length(cause) * len(peers))
    link = chain["links"][0]  # what the late rank itself went through on this host may follow
    spent = sum(length(e) for e in effect.values())
    assert (number(link["effect_ns"]), number(link["explained"])) == (spent, Fraction(wait, spent))
    end = max(ranks.wait(r, i)[1] for r in range(len(ranks.calls)) for i in range(ranks.n))
    life = max(end, *ranks.last) - min(a[0] for a in ranks.arrival)
    assert (told["peer_time"], told["wait_share"]) == (life * len(peers), Fraction(wait, life * len(peers)))


def test_what_the_late_rank_cost_by_comparison(stranger: Stranger, ranks: Ranks) -> None:
    (chain,) = [c for c in stranger.document["chains"] if c["detector"] == "late_rank"]
    rank = int(chain["subject"]["rank"])
    assert len({(c["op"], c["count"]) for calls in ranks.calls for c in calls}) == 1  # one kind: all can be compared
    touched = {i for late in ranks.late.values() for i, _, _ in late}
    longer = 0
    for peer in (r for r in range(len(ranks.calls)) if r != rank):
        took = [ranks.sync[peer][i][1] - ranks.arrival[peer][i] for i in range(ranks.n)]
        calm = sorted(took[i] for i in range(ranks.n) if i not in touched)
        usual = calm[(len(calm) - 1) // 2]
        longer += sum(min(max(0, took[i] - usual), ns) for i, _, ns in ranks.late[rank])
    assert numbers(chain)["longer"] == number(chain["impact"]) == longer


def gpu_time(samples: Iterable[Row]) -> list[Span]:
    """The time that samples stand for: each from its poll to the next, as its row says."""
    return joined((r["start_ns"], r["start_ns"] + r["duration_ns"]) for r in samples)


def held(s: Stranger, uuid: str) -> dict[int, set[int]]:
    """Processes by the moment of the poll that listed them."""
    out: dict[int, set[int]] = defaultdict(set)
    for r in s.holders:
        if r["gpu_uuid"] == uuid:
            out[r["start_ns"]].add(r["pid"])
    return out


BLOCKING = (*SYNC, "cudaEventSynchronize", "cudaMemcpy")


def test_the_ledger_row_by_row(stranger: Stranger, ranks: Ranks) -> None:
    """Sample by sample, with nothing but what the appendix says the parts are."""
    s = stranger
    rank_of = {calls[0]["pid"]: r for r, calls in enumerate(ranks.calls)}
    end = int(s.document["window"]["end_ns"])
    expected: dict[tuple[str, int | None, str], Fraction] = defaultdict(Fraction)

    @cache
    def inside(pid: int | None, *ops: str) -> list[Span]:
        """Time in calls of a process, in those named or in any; one still open lasts to the end of the capture."""
        calls = [r for r in (*s.cuda, *s.nccl, *s.comms) if r["pid"] == pid and (not ops or r["op"] in ops)]
        return joined(
            (r["start_ns"], end if r["duration_ns"] is None else r["start_ns"] + r["duration_ns"]) for r in calls
        )

    for uuid in sorted({r["gpu_uuid"] for r in s.samples}):
        listed = held(s, uuid)
        assert all(len(p) <= 1 for p in listed.values())  # one process per GPU in this scenario
        for poll in s.of_gpu(uuid):
            pid = next(iter(listed[poll["start_ns"]]), None)
            span = gpu_time([poll])
            waiting = common(span, ranks.waiting(rank_of[pid])) if pid else []
            blocked = without(common(span, inside(pid, *BLOCKING)), waiting)
            life = [(inside(pid)[0][0], inside(pid)[-1][1])] if inside(pid) else []
            starved = without(without(without(common(span, life), inside(pid)), blocked), waiting)
            rest = length(span) - sum(map(length, (waiting, blocked, starved)))
            busy = Fraction(poll["busy"], 100)
            low = bool((poll["event_reasons"] or 0) & POWER_OR_HEAT)
            clock = Fraction(poll["clock_sm_mhz"], poll["clock_sm_max_mhz"]) if low else Fraction(1)
            kernels = busy * (length(span) - length(waiting))
            parts = {
                "waiting_for_peers": Fraction(length(waiting)), "host_blocked": (1 - busy) * length(blocked),
                "starved": (1 - busy) * length(starved), "useful": kernels * clock, "throttled": kernels * (1 - clock),
                "idle_allocated" if pid else "idle_unallocated": (1 - busy) * rest,
            }  # fmt: skip
            for key, ns in parts.items():
                expected[uuid, pid, key] += ns
    waste = s.document["waste"]
    told = {(r["gpu"], r["pid"], r["key"]): number(r["gpu_time"]) for r in waste["rows"] if number(r["gpu_time"])}
    assert told == {k: ns for k, ns in expected.items() if ns}
    observed = sum(length(gpu_time(s.of_gpu(uuid))) for uuid in {r["gpu_uuid"] for r in s.samples})
    assert number(waste["observed"]) == observed == sum(expected.values())
    for r in waste["rows"]:
        ns = expected[r["gpu"], r["pid"], r["key"]]
        assert (number(r["share"]), number(r["money"])) == (Fraction(ns, observed), Fraction(5, 2) * ns / 3600 / 10**9)
    for k in waste["by_key"]:
        assert number(k["gpu_time"]) == sum(ns for (_, _, key), ns in expected.items() if key == k["key"])


def test_idle_and_throttled_time(stranger: Stranger) -> None:
    s = stranger
    told = {(f["rule"], f["subject"]["gpu"]): numbers(f) for f in s.document["findings"] if "gpu" in f["subject"]}
    expected = {}
    for uuid in {r["gpu_uuid"] for r in s.samples}:
        listed = held(s, uuid)
        polls = s.of_gpu(uuid)
        idle = gpu_time(r for r in polls if r["busy"] == 0 and listed[r["start_ns"]])
        idle = [x for x in idle if x[1] - x[0] >= FIVE_SECONDS]
        observed = length(gpu_time(polls))
        if idle:
            expected["idle_allocation", uuid] = {"idle": length(idle), "observed": observed, "stretches": len(idle)}
        low = [r for r in polls if (r["event_reasons"] or 0) & POWER_OR_HEAT]
        throttled = sum(r["duration_ns"] for r in low)
        if 100 * throttled >= observed:
            part = [Fraction(r["clock_sm_max_mhz"] - r["clock_sm_mhz"], r["clock_sm_max_mhz"]) for r in low]
            missing = sum(r["duration_ns"] * p for r, p in zip(low, part, strict=True))
            clocks = sorted(r["clock_sm_mhz"] for r in low)
            expected["throttling", uuid] = {"throttled": throttled, "observed": observed, "clock_deficit": int(missing),
                                            "clock": clocks[-(-len(clocks) // 2) - 1]}  # fmt: skip
    assert set(told) == set(expected)
    for key, values in expected.items():
        assert {k: told[key][k] for k in values} == values


def test_silent_time(stranger: Stranger) -> None:
    s = stranger
    end = number({"value": s.document["window"]["end_ns"]})
    exits = {r["pid"]: r["e"] for r in s.rows("SELECT pid, max(end_ns) AS e FROM processes GROUP BY pid")}
    expected = {}
    for pid in {r["pid"] for r in s.cuda}:
        calls = [r for r in [*s.cuda, *s.nccl, *s.comms] if r["pid"] == pid]
        lived = (min(r["start_ns"] for r in calls), end if exits[pid] is None else exits[pid])
        quiet = without([lived], [(r["start_ns"], r["start_ns"] + max(1, r["duration_ns"])) for r in calls])
        quiet = [q for q in quiet if q[1] - q[0] >= FIVE_SECONDS]
        if quiet:
            on = {(r["gpu_uuid"], r["start_ns"]) for r in s.holders if r["pid"] == pid}
            busy = gpu_time(r for r in s.samples if r["busy"] and (r["gpu_uuid"], r["start_ns"]) in on)
            expected[str(pid)] = {"silent": length(quiet), "observed": lived[1] - lived[0], "calls": len(calls),
                                  "gpu_busy": length(common(quiet, busy))}  # fmt: skip
    told = {f["subject"]["pid"]: numbers(f) for f in s.document["findings"] if f["rule"] == "api_silence"}
    assert set(told) == set(expected)
    for pid, values in expected.items():
        assert {k: told[pid][k] for k in values} == values
