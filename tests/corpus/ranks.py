"""Ranks that reduce together: one that comes late and why, packets lost inside a collective, links that fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tests.corpus.distractors import retransmit
from tests.corpus.model import Host, Planted, Range
from tests.corpus.training import Rows, Victim
from tests.corpus.waits import INTERRUPTIBLE, RECVFROM
from tests.scenes import COMM, MS, T0, US, S

FIRST_PID = 5_100
FAILING = 1
"""GPU with the link that fails."""

NVLINK_ERROR = 74
"""NVIDIA's XID of an NVLink."""


def question(host: Host, v: Victim) -> None:
    """Asleep until a server answers, to which the question had to be sent again."""
    wake = v.at + v.ns - min(60 * US, v.ns // 10)
    host.off_cpu(
        v.pid, v.tid, v.at, v.ns, prev_state=INTERRUPTIBLE, wake_ns=wake, runqueue_ns=v.at + v.ns - wake,
        syscall=RECVFROM, waker_pid=0, waker_tid=0, waker_comm="swapper/2",
    )  # fmt: skip
    retransmit(host, v.pid, "python3", wake - host.around(400 * US), port=41_000)


@dataclass(frozen=True)
class Late:
    """One rank is late ``times`` times by ``by`` ns; its thread spends ``covered`` percent of that as ``rows`` say."""

    cause: str | None = None
    rows: Rows | None = None
    rank: int = 2
    times: Range = (12, 30)
    by: Range = (8 * MS, 45 * MS)
    covered: Range = (70, 97)
    wrong_rank: bool = False
    """Negative twin: what could have been the cause happens on another rank, at the same time."""


@dataclass(frozen=True)
class Stretched:
    """``times`` collectives take ``by`` ns longer on every rank; packets are sent again, or not, ``where``."""

    cause: str | None = "tcp_retransmits"
    times: Range = (4, 10)
    by: Range = (40 * MS, 260 * MS)
    packets: Range = (1, 4)
    where: Literal["within", "between", "other process", "nowhere"] = "within"
    rank: int = 1
    link: Literal["sound", "reports", "counts"] = "sound"
    """Errors of the fabric in that time: the driver reports an XID of NVLink, or the counters of a link grow."""


@dataclass(frozen=True)
class Ranks:
    """``observed`` ranks of a communicator of ``nranks``, each its own process: launches, an all-reduce, a wait."""

    late: Late | None = None
    stretched: Stretched | None = None
    observed: int = 4
    nranks: int = 4
    steps: Range = (110, 180)
    gap: Range = (25 * MS, 40 * MS)
    blocking: bool = False
    links_fail: bool = False
    """The counters of a link grow all the time, in collectives and between them."""
    waits_for_absent: Range | None = None
    """ns that every collective waits for a rank on another host, which was not recorded: all of them, and so none is
    slower than usual. One that is late only in the collectives that are ``stretched`` is another host's too."""
    other: int = 1_300

    def happen(self, host: Host) -> None:
        for r in range(self.observed):
            host.scene.process(FIRST_PID + r, "python3", start_ns=T0 - 100 * S, rank=r, world_size=self.nranks)
        steps = host.of(self.steps)
        order = list(range(5, steps))
        host.draw.shuffle(order)
        late = {order.pop(): host.of(self.late.by) for _ in range(host.of(self.late.times))} if self.late else {}
        slow = {order.pop(): host.of(self.stretched.by) for _ in range(host.of(self.stretched.times))} if (
            self.stretched
        ) else {}  # fmt: skip
        base = T0 + 200 * MS
        bad: list[tuple[int, int]] = []
        for step in range(steps):
            over = self._step(host, base, late.get(step, 0), slow.get(step, 0))
            if step in slow:
                bad.append((base, over))
            base = over + host.of(self.gap)
        host.reaches(base)
        for r in range(self.observed):
            host.scene.samples(T0, base, r, [FIRST_PID + r])
        self._truth(host)
        if self.stretched and self.stretched.link != "sound":
            self._fabric(host, base, bad)
        if self.links_fail:
            self._links(host, base, [(T0, base)])
            host.planted.append(Planted("nvlink", 0))

    def _step(self, host: Host, base: int, late: int, slow: int) -> int:
        """One all-reduce; when it is over."""
        arrival = [base + host.of((0, 120 * US)) for _ in range(self.observed)]
        if late and self.late:
            middle = sorted(a for r, a in enumerate(arrival) if r != self.late.rank)[(self.observed - 1) // 2]
            arrival[self.late.rank] += late
            self._why(host, middle, arrival[self.late.rank])
        absent = host.of(self.waits_for_absent) if self.waits_for_absent else 0
        done = max(arrival) + 200 * US + slow + absent
        if slow and self.stretched:
            self._lost(host, max(arrival), done)
        for r, at in enumerate(arrival):
            pid = FIRST_PID + r
            for i in range(3):
                start = base - (4 - i) * 400 * US
                host.scene.cuda(pid, "cudaLaunchKernel", start, host.around(6 * US), stream=1, function=0x5555_0000 + i)
            inside = done - at if self.blocking else host.around(10 * US)
            host.scene.add(
                "nccl_calls", start_ns=at, duration_ns=inside, pid=pid, tid=pid, op="ncclAllReduce", return_code=0,
                comm_handle=7_000 + r, comm_id=COMM, rank=r, nranks=self.nranks, datatype=7, reduce_op=0, count=1 << 20,
                size_bytes=1 << 22, stream=1,
            )  # fmt: skip
            host.scene.cuda(
                pid, "cudaStreamSynchronize", at + inside + 3 * US, max(done - at - inside, 2 * US), stream=1
            )
        return done

    def _why(self, host: Host, middle: int, arrival: int) -> None:
        assert self.late is not None
        pid = FIRST_PID + self.late.rank
        host.lengthened[pid, "arrival"] = host.lengthened.get((pid, "arrival"), 0) + arrival - middle
        if self.late.rows is None:
            return
        ns = (arrival - middle) * host.of(self.late.covered) // 100
        who = FIRST_PID if self.late.wrong_rank else pid
        # The pause begins before the others arrive, as one does that knows nothing of them.
        before = min(300 * US, ns // 10)
        self.late.rows(host, Victim(who, who, middle - before, ns + before))
        if self.late.cause is not None and not self.late.wrong_rank:
            host.planted.append(Planted(self.late.cause, pid, "arrival", ns))

    def _lost(self, host: Host, begun: int, done: int) -> None:
        assert self.stretched is not None
        s = self.stretched
        pid = FIRST_PID + s.rank
        for _ in range(host.of(s.packets)):
            if s.where == "within":
                retransmit(host, pid, "python3", begun + host.of((MS, max(2 * MS, (done - begun) // 2))))
            elif s.where == "between":
                retransmit(host, pid, "python3", begun - 5 * MS)
            elif s.where == "other process":
                retransmit(host, self.other, "rsync", begun + host.of((MS, max(2 * MS, (done - begun) // 2))))

    def _truth(self, host: Host) -> None:
        everyone = {FIRST_PID + r for r in range(self.observed)}
        if self.late:
            host.planted.append(Planted("late_rank", FIRST_PID + self.late.rank))
            host.also |= {("peer_late", pid) for pid in everyone}
        if self.stretched and self.stretched.where == "within" and self.stretched.cause:
            host.planted.append(Planted(self.stretched.cause, FIRST_PID + self.stretched.rank))
            host.also |= {(self.stretched.cause, pid) for pid in everyone}
        if self.stretched and self.nranks > self.observed:
            host.planted.append(Planted("slow_host", 0))

    def _links(self, host: Host, end: int, bad: Sequence[tuple[int, int]]) -> None:
        """Link counters every 5 s; one link of a GPU counts replays and recoveries in the ``bad`` times."""
        for at in (*range(T0, end, 5 * S), end):
            for gpu in range(self.observed):
                failed = sum(max(0, min(at, b) - a) for a, b in bad) if gpu == FAILING else 0
                errors = failed // (400 * MS)
                host.scene.add(
                    "nvml_links", start_ns=at, duration_ns=0, gpu_index=gpu, gpu_uuid=f"GPU-{gpu}", link=0, active=1,
                    crc_flit_errors=errors * 3, crc_data_errors=errors, replay_errors=errors,
                    recovery_errors=errors // 2, unavailable="",
                )  # fmt: skip

    def _fabric(self, host: Host, end: int, bad: Sequence[tuple[int, int]]) -> None:
        """What is told of the link that failed within the collectives that took long."""
        assert self.stretched is not None
        if self.stretched.link == "counts":
            self._links(host, end, bad)
        else:
            for begun, over in bad:
                host.scene.add(
                    "nvml_events", start_ns=begun + (over - begun) * host.of((2, 20)) // 100, duration_ns=0,
                    gpu_index=FAILING, gpu_uuid=f"GPU-{FAILING}", op="xid", event_type=8, event_data=NVLINK_ERROR,
                )  # fmt: skip
        host.planted += [
            Planted("fabric_error", 0), Planted("nvlink" if self.stretched.link == "counts" else "xid", 0),
        ]  # fmt: skip
