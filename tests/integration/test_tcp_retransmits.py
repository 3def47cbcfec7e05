"""TCP packets that are sent again between two network namespaces of this test, against the kernel's own count."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from gpuaudit.capture.selection import Selection
from tests.integration.network import PORT, SERVER, Network
from tests.integration.network import network as made
from tests.integration.recording import DEADLINE_S, Recording, Row, recording, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

TCP = Selection(sources=frozenset({"tcp"}))
SIZE_BYTES = 1 << 20
ESTABLISHED, SYN_SENT, FIN_WAIT1, NEW_SYN_RECV = 1, 2, 4, 12


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with made() as net:
        yield net


def segments(rows: list[Row]) -> int:
    return sum(row["segments"] for row in rows)


def await_row(r: Recording, **wanted: object) -> Row:
    """The first row with these values, once it is there."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := r.of("tcp_retransmits", **wanted)):
        assert time.monotonic() < deadline, f"no packet was sent again: {wanted}"
        r.drain()
        time.sleep(0.02)
    return found[0]


@pytest.mark.parametrize(("near", "far"), [("10.77.0.1", "10.77.0.2"), ("fd77::1", "fd77::2")], ids=["IPv4", "IPv6"])
def test_as_many_as_the_kernel_counts_and_the_owner_s(network: Network, near: str, far: str) -> None:
    """One packet in 15 is lost; who sends it again is usually an interrupt, whose it is the process that connected."""
    with recording(TCP) as r:
        server = network.start(network.server, SERVER, "1")
        wait_for_line(server, "listening")
        before = network.retransmitted(network.client)
        client, end = network.connect(far, SIZE_BYTES)
        network.drop(network.server, f"tcp dport {PORT} numgen inc mod 15 == 7")
        out, said = client.communicate("go\n", timeout=DEADLINE_S)
        network.drop(network.server, "")
        assert (client.returncode, out.split()[-1]) == (0, str(SIZE_BYTES)), said
        assert server.wait(DEADLINE_S) == 0
        server.communicate()
        r.finish()
        after = network.retransmitted(network.client)
        rows = r.of("tcp_retransmits", remote_address=far, remote_port=PORT, local_port=end["port"])
    assert segments(rows) == after - before > 0
    assert {(x["pid"], x["comm"], x["uid"]) for x in rows} == {(client.pid, "the client", 0)}
    assert {x["local_address"] for x in rows} == {near}
    assert {x["error"] for x in rows} in ({0}, {None})  # before Linux 6.15 it is not told
    assert {x["family"] for x in rows} == {socket.AF_INET6 if ":" in far else socket.AF_INET}
    assert {x["state"] for x in rows} <= {ESTABLISHED, FIN_WAIT1}
    assert {x["inode"] for x in rows} == {end["inode"]}
    assert all(x["cgroup_id"] for x in rows)
    assert r.lost() == 0


def test_a_handshake_that_needs_a_second_try(network: Network) -> None:
    """The first SYN is lost, then the first answer to one: the client's is the connecting process, the server's the
    listening one, although no connection exists yet."""
    with recording(TCP) as r:
        server = network.start(network.server, SERVER, "1")
        wait_for_line(server, "listening")
        before = {n: network.retransmitted(n) for n in (network.client, network.server)}
        network.drop(network.server, f"tcp dport {PORT} tcp flags & (syn | ack) == syn numgen inc mod 2 == 0")
        network.drop(network.client, f"tcp sport {PORT} tcp flags & (syn | ack) == (syn | ack) numgen inc mod 2 == 0")
        client, end = network.connect("10.77.0.2", 10)
        for namespace in (network.client, network.server):
            network.drop(namespace, "")
        client.communicate("go\n", timeout=DEADLINE_S)
        server.communicate(timeout=DEADLINE_S)
        r.finish()
        after = {n: network.retransmitted(n) for n in (network.client, network.server)}
    ours = r.of("tcp_retransmits", local_port=end["port"], remote_port=PORT)
    theirs = r.of("tcp_retransmits", local_port=PORT, remote_port=end["port"])
    assert segments(ours) == after[network.client] - before[network.client] > 0
    assert segments(theirs) == after[network.server] - before[network.server] > 0
    assert {(x["pid"], x["state"], x["local_address"]) for x in ours} == {(client.pid, SYN_SENT, "10.77.0.1")}
    assert {(x["pid"], x["comm"], x["state"]) for x in theirs} == {(server.pid, "the server", NEW_SYN_RECV)}
    assert {(x["local_address"], x["remote_address"]) for x in theirs} == {("10.77.0.2", "10.77.0.1")}


def test_owners_that_were_never_seen_at_it_and_owners_that_are_gone(network: Network) -> None:
    """One has sent before the capture began and waits; another one closes its socket and ends with data on its way."""
    server = network.start(network.server, SERVER, "2")
    wait_for_line(server, "listening")
    early, early_end = network.connect("10.77.0.2", 10)
    late, late_end = network.connect("10.77.0.2", 10)
    network.drop(network.server, f"tcp dport {PORT}")
    assert early.stdin is not None
    early.stdin.write("go\n")
    early.stdin.flush()
    wait_for_line(early, "sent")
    with recording(TCP) as r:
        row = await_row(r, local_port=early_end["port"])
        assert (row["pid"], row["comm"], row["inode"]) == (early.pid, "the client", early_end["inode"])
        late.communicate("go and end\n", timeout=DEADLINE_S)
        row = await_row(r, local_port=late_end["port"], inode=None)
        assert (row["pid"], row["comm"], row["state"]) == (late.pid, "the client", FIN_WAIT1)
        r.finish()
    for process in (early, server):
        process.kill()
        process.communicate()
