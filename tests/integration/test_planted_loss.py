"""Packets lost on a cable between two ranks, inside all-reduces of the doubles: found with their share.

What an all-reduce took beyond the median of its rank's own all-reduces is what the loss cost, by the rank's own clock.
The twin has all-reduces that are slow because a rank computes before it enters them. Meanwhile packets of that very
rank are lost, in the same process and on the same cable, but of no all-reduce; and packets of another job.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median

import pytest

from tests.integration.network import PORT, SERVER, Network, network
from tests.integration.planted import SOURCES, Analysed, Bench, analysed, bench, close, effect_ns, share
from tests.integration.recording import start, truth, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

STEPS, COUNT, SLOW_TIMES = 100, 300, 3
FLOAT_BYTES = 4
ADDRESS = "10.77.0.2"
LOSSY, CLEAN, NOISY = 29500, 29501, 29502
TRANSFER_MS = 50


@dataclass(frozen=True)
class Told:
    """One rank: its process, and its all-reduces that took three times their median."""

    pid: int
    slow: tuple[tuple[int, int], ...]
    median_ns: int

    @property
    def slow_ns(self) -> int:
        return sum(b - a for a, b in self.slow)

    @property
    def beyond(self) -> Fraction:
        """Share of the slow ones that is more than the median."""
        return Fraction(self.slow_ns - len(self.slow) * self.median_ns, self.slow_ns)


def job(b: Bench, net: Network, name: str, port: int, transfer_ms: int, *more: object) -> subprocess.Popen[str]:
    """Two ranks, one at each end of the cable; all their calls are blocking."""
    command = ("--out", b.folder / name, "--ranks", 2, "--steps", STEPS, "--count", COUNT, "--realtime", 1, *more)
    rate = COUNT * FLOAT_BYTES / transfer_ms / 1e6
    return start(
        "ip", "netns", "exec", net.client, b.programs / "planted-ranks", *map(str, command),
        "--first-netns", f"/run/netns/{net.server}",
        env={**os.environ, "NCCL_DOUBLE_BLOCKING": "1", "NCCL_DOUBLE_ADDRESS": ADDRESS, "NCCL_DOUBLE_PORT": str(port),
             "NCCL_DOUBLE_GB_PER_S": f"{rate:.9f}"}, start_new_session=True,
    )  # fmt: skip


def told(path: Path) -> list[Told]:
    out = []
    for rank in range(2):
        head, *lines = truth(path.with_name(f"{path.name}.{rank}"))
        calls = [(int(c["before_ns"]), int(c["after_ns"])) for c in lines if c.get("op") == "ncclAllReduce"]
        usual = int(median(b - a for a, b in calls))
        slow = tuple((a, b) for a, b in calls if b - a > SLOW_TIMES * usual)
        out.append(Told(int(head["pid"]), slow, usual))
    return out


@dataclass(frozen=True)
class Found:
    """The analysis, what the ranks of the lossy and of the clean job wrote down, and when packets were sent again."""

    analysed: Analysed
    lossy: list[Told]
    clean: list[Told]
    resent: dict[int, list[int]]
    """By the port that the packets went to."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, bpf: None) -> Iterator[Found]:
    folder = tmp_path_factory.mktemp("loss")
    with network() as net, bench(folder, SOURCES | {"sockets"}) as b:
        # Every fiftieth packet with data: the second of the 100 steps' losses is in the second half.
        net.drop(net.server, f"tcp dport {LOSSY} meta length > 200 numgen inc mod 50 == 25")
        b.follow(job(b, net, "lossy", LOSSY, TRANSFER_MS))
        half = "meta length > 200 numgen inc mod 2 == 0"
        net.drop(net.server, f"tcp dport {NOISY} {half} drop; tcp dport {PORT} {half}")
        noisy, server = job(b, net, "noisy", NOISY, 1, "--pause-at", "init"), net.start(net.server, SERVER, "1")
        try:
            wait_for_line(server, "listening")
            for _ in range(2):
                wait_for_line(noisy, "at init")
            late = ("--late-rank", 1, "--late-by", "post", "--busy-ms", 300, "--late-every", STEPS // 2)
            b.follow(job(b, net, "clean", CLEAN, 5, *late, "--server", ADDRESS, "--port", PORT))
        finally:
            server.kill()
            server.communicate()
            os.killpg(noisy.pid, signal.SIGKILL)
            noisy.communicate()
        a = analysed(b)
        rows = b.recording.rows["tcp_retransmits"]
        yield Found(
            a,
            told(folder / "lossy"),
            told(folder / "clean"),
            {port: [r["start_ns"] for r in rows if r["remote_port"] == port] for port in (NOISY, PORT)},
        )


@pytest.mark.parametrize("rank", [0, 1])
def test_lost_packets_inside_an_all_reduce_are_found(found: Found, rank: int) -> None:
    """By both ranks: the one whose packets were sent again, and the one that waited for them."""
    mine = found.lossy[rank]
    (chain,) = [c for c in found.analysed.document.chains if c.subject.get("pid") == str(mine.pid)]
    assert chain.detector == "tcp_retransmits"
    assert chain.values["culprit"] == ADDRESS
    assert len(mine.slow) >= 2
    assert abs(effect_ns(chain) - mine.slow_ns) <= mine.slow_ns // 20
    assert close(share(chain), mine.beyond), (share(chain), mine.beyond)
    assert sum(s.share.value or 0 for s in chain.shares) == 1


@pytest.mark.parametrize("port", [NOISY, PORT], ids=["of another job", "between its own"])
def test_other_packets_were_sent_again_in_slow_all_reduces(found: Found, port: int) -> None:
    """Of another job, or of the late rank before it entered the all-reduce."""
    assert any(a < at < b for rank in found.clean for a, b in rank.slow for at in found.resent[port])


def test_those_packets_explain_nothing(found: Found) -> None:
    """The one thing that is said of that job: the first rank waited for the second, which computed."""
    waits, late = found.clean
    (chain,) = [c for c in found.analysed.document.chains if c.subject.get("pid") in {str(r.pid) for r in found.clean}]
    assert (chain.detector, chain.subject["pid"], chain.subject["culprit_pid"]) == (
        "lock_wait", str(waits.pid), str(late.pid),
    )  # fmt: skip
    assert close(share(chain), waits.beyond), (share(chain), waits.beyond)
    assert not [x for x in chain.links if "sent again" in x.cause]
    assert not [s for s in chain.shares if s.label.startswith("TCP")]


def test_nothing_is_claimed_of_anybody_else(found: Found) -> None:
    assert found.analysed.beside(*(rank.pid for rank in (*found.lossy, *found.clean))) == []
