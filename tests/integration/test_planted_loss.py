"""Packets lost on a cable between two ranks, inside all-reduces of the doubles: found with their share.

What an all-reduce took beyond the median of its rank's own all-reduces is what the loss cost, by the rank's own clock.
The twin has slow all-reduces at the time at which another job on the same cable loses packets.
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

from tests.integration.network import Network, network
from tests.integration.planted import SOURCES, Analysed, Bench, analysed, bench, close, effect_ns, share
from tests.integration.recording import start, truth, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

STEPS, COUNT, SLOW_TIMES = 120, 300, 3
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
    resent: list[int]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, bpf: None) -> Iterator[Found]:
    folder = tmp_path_factory.mktemp("loss")
    with network() as net, bench(folder, SOURCES | {"sockets"}) as b:
        # Every fiftieth packet with data: the second of the 120 steps' losses is in the second half.
        net.drop(net.server, f"tcp dport {LOSSY} meta length > 200 numgen inc mod 50 == 25")
        b.follow(job(b, net, "lossy", LOSSY, TRANSFER_MS))
        net.drop(net.server, f"tcp dport {NOISY} meta length > 200 numgen inc mod 2 == 0")
        noisy = job(b, net, "noisy", NOISY, 1, "--pause-at", "init")
        try:
            for _ in range(2):
                wait_for_line(noisy, "at init")
            late = ("--late-rank", 1, "--late-by", "work", "--busy-ms", 300, "--late-every", STEPS // 2)
            b.follow(job(b, net, "clean", CLEAN, 5, *late))
        finally:
            os.killpg(noisy.pid, signal.SIGKILL)
            noisy.communicate()
        a = analysed(b)
        yield Found(
            a,
            told(folder / "lossy"),
            told(folder / "clean"),
            [r["start_ns"] for r in b.recording.rows["tcp_retransmits"]],
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


def test_packets_of_another_job_explain_nothing(found: Found) -> None:
    """Its all-reduces were slow for a rank that computed, while another job's packets were sent again."""
    assert any(a < at < b for rank in found.clean for a, b in rank.slow for at in found.resent)
    pids = {str(rank.pid) for rank in found.clean}
    chains = [c for c in found.analysed.document.chains if c.subject.get("pid") in pids]
    assert "tcp_retransmits" not in {c.detector for c in chains}
