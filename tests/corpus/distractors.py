"""What goes on beside: evidence that is there at the same time and explains nothing."""

from __future__ import annotations

from dataclasses import dataclass

from tests.corpus import waits
from tests.corpus.model import Host, Range
from tests.corpus.training import Victim
from tests.scenes import MS, T0, US, S


@dataclass(frozen=True)
class Daemon:
    """Another recorded process that does what idle services do: it sleeps, is preempted now and then, and writes."""

    pid: int = 1_200
    comm: str = "atopacctd"
    times: Range = (20, 60)
    role: str = "traced"

    def happen(self, host: Host) -> None:
        host.scene.process(self.pid, self.comm, self.role, start_ns=T0 - 900 * S)
        at = T0
        for _ in range(host.of(self.times)):
            asleep = host.of((3 * MS, 40 * MS))
            host.off_cpu(self.pid, self.pid, at, asleep, comm=self.comm)
            at += asleep + host.of((50 * US, 2 * MS))
            if host.draw.random() < 0.3:
                waits.preempted("kworker/2:1", 77)(host, Victim(self.pid, self.pid, at, host.of((50 * US, 900 * US))))
                at += MS
            if host.draw.random() < 0.4:
                waits.request(host, Victim(self.pid, self.pid, at, host.of((80 * US, 3 * MS))), self.comm, write=True)
                at += 3 * MS


@dataclass(frozen=True)
class Recorder:
    """The recorder's own writes and sleeps."""

    pid: int = 2_900

    def happen(self, host: Host) -> None:
        Daemon(self.pid, "audit", (10, 30), "recorder").happen(host)


@dataclass(frozen=True)
class Observer:
    """Another tool that watches the host, and writes what it saw."""

    pid: int = 2_950

    def happen(self, host: Host) -> None:
        Daemon(self.pid, "tracer", (10, 30), "observer").happen(host)


@dataclass(frozen=True)
class Retransmits:
    """TCP packets sent again by a process that takes no part."""

    times: Range = (3, 15)
    pid: int = 1_300

    def happen(self, host: Host) -> None:
        host.scene.process(self.pid, "rsync")
        at = T0
        for _ in range(host.of(self.times)):
            at += host.of((2 * MS, 60 * MS))
            retransmit(host, self.pid, "rsync", at)


def retransmit(host: Host, pid: int, comm: str, at: int, port: int = 40_000) -> None:
    """One packet sent again."""
    host.scene.add(
        "tcp_retransmits", start_ns=at, pid=pid, comm=comm, inode=5_000 + pid, uid=1_000, cgroup_id=40, family=2,
        state=1, segments=1, error=0, local_address="10.0.0.1", local_port=port, remote_address="10.0.0.2",
        remote_port=29_500,
    )  # fmt: skip


@dataclass(frozen=True)
class Pressure:
    """Pressure of the host, by resource: ns of each quarter second in which some task waited."""

    resource: str = "memory"
    some: Range = (0, 5 * MS)

    def happen(self, host: Host) -> None:
        total, at = 0, T0
        while at < max(host.end, T0 + S):
            host.scene.add("pressure", start_ns=at, resource=self.resource, some_ns=total, full_ns=total // 3)
            total += host.of(self.some)
            at += 250 * MS


USUAL = (Daemon(), Recorder(), Observer(), Retransmits())
"""What goes on beside every scenario that does not say otherwise."""
