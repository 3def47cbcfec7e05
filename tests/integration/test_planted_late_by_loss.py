"""A rank that comes late because it waits for a server whose questions are lost on a cable: the next link of its chain.

It asks before every all-reduce, and of each question the first packet is lost; what it waited for the answer is the
truth, by its own clock. The twin naps before its all-reduces, while a neighbour's packets to the same server are lost.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import pytest

from tests.integration.network import Network, network
from tests.integration.planted import SOURCES, TOLERANCE, Analysed, Bench, analysed, bench, close, covered, undisturbed
from tests.integration.recording import start, wait_for_line
from tests.integration.test_planted_lateness import (
    LATE,
    RANKS,
    STEPS,
    Told,
    chain_of,
    given_up,
    kept,
    nothing_else,
    others_of,
    parts,
    told,
)

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

ADDRESS = "10.77.0.2"
ASKED, NOISY = 29600, 29601
TITLE = "TCP packets sent again"
HALF = "meta length > 200 numgen inc mod 2 == 0"
"""Every second packet with a question in it."""

SERVER = """
import os, socket, sys, threading
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))  # it answers at once, whatever else this host does
def answer(listener):
    while True:
        connection, _ = listener.accept()
        while connection.recv(512, socket.MSG_WAITALL):
            connection.sendall(b"!")
for port in map(int, sys.argv[1:]):
    threading.Thread(target=answer, args=(socket.create_server(("0.0.0.0", port)),), daemon=True).start()
print("listening", flush=True)
sys.stdin.read()
"""

NEIGHBOUR = """
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print("asking", flush=True)
while True:
    connection.sendall(bytes(512))
    connection.recv(1)
"""


@dataclass(frozen=True)
class Found:
    """The analysis, what the ranks of both jobs wrote down, and when packets to either port were sent again."""

    analysed: Analysed
    asking: Told
    napping: Told
    resent: dict[int, list[int]]


def run(b: Bench, net: Network, name: str, *options: object) -> Told:
    """Record ranks in the client's namespace, of which one is late, from their start to their end."""
    given_up(b, b.folder / name)
    fixed = ("--out", b.folder / name, "--ranks", RANKS, "--steps", STEPS, "--late-rank", LATE, "--realtime", 1,
             "--step-ms", 5)  # fmt: skip
    b.follow(start("ip", "netns", "exec", net.client, b.programs / "planted-ranks", *map(str, (*fixed, *options))))
    return told(b.folder / name)


def ended(*processes: subprocess.Popen[str]) -> None:
    for p in processes:
        p.kill()
        p.communicate()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, bpf: None) -> Iterator[Found]:
    folder = tmp_path_factory.mktemp("late-by-loss")
    with network() as net, bench(folder, SOURCES | {"sockets"}) as b:
        net.drop(net.server, f"tcp dport {ASKED} {HALF} drop; tcp dport {NOISY} {HALF}")
        server = net.start(net.server, SERVER, str(ASKED), str(NOISY))
        try:
            wait_for_line(server, "listening")
            asked = ("--late-by", "socket", "--server", ADDRESS, "--port", ASKED, "--busy-ms", 40)
            asking = undisturbed(lambda: run(b, net, "asking", *asked), kept)
            neighbour = net.start(net.client, NEIGHBOUR, ADDRESS, str(NOISY))
            try:
                wait_for_line(neighbour, "asking")
                naps = ("--late-by", "nap", "--hold-ms", 150, "--busy-ms", 5)
                napping = undisturbed(lambda: run(b, net, "napping", *naps), kept)
            finally:
                ended(neighbour)
        finally:
            ended(server)
        a = analysed(b)
        rows = b.recording.rows["tcp_retransmits"]
        resent = {port: [r["start_ns"] for r in rows if r["remote_port"] == port] for port in (ASKED, NOISY)}
        yield Found(a, asking, napping, resent)


def test_the_packets_that_it_waited_for_are_the_next_link(found: Found) -> None:
    chain, rank = chain_of(found.analysed, found.asking), found.asking
    want, got = covered(rank.lateness, rank.spans, "socket"), parts(chain)
    assert len(found.resent[ASKED]) >= STEPS
    assert want > Fraction(1, 2)
    assert sum(got.values()) == 1
    assert close(got[TITLE], want), (got, want)
    assert others_of(chain, [TITLE]) < TOLERANCE, got
    (link,) = [x for x in chain.links if "sent again" in x.cause]
    assert "slept in recvfrom" in link.cause
    assert ADDRESS in link.cause
    assert f"({rank.pid})" in link.cause


def test_packets_of_a_neighbour_explain_no_nap(found: Found) -> None:
    """They were sent again while the rank was late, on the same cable to the same host."""
    chain, rank = chain_of(found.analysed, found.napping), found.napping
    assert any(a < at < b for a, b in rank.lateness.tolist() for at in found.resent[NOISY])
    assert TITLE not in parts(chain)
    assert not [x for x in chain.links if "sent again" in x.cause]
    assert parts(chain).get("unexplained", Fraction(1)) > 1 - TOLERANCE


@pytest.mark.parametrize("job", ["asking", "napping"])
def test_nothing_else_is_claimed_of_the_ranks(found: Found, job: str) -> None:
    nothing_else(found.analysed, getattr(found, job))


def test_nothing_is_claimed_of_anybody_else(found: Found) -> None:
    assert found.analysed.beside(*(p for rank in (found.asking, found.napping) for p in (rank.pid, *rank.peers))) == []
