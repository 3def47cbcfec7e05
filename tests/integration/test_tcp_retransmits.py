"""TCP packets that are sent again between two network namespaces of this test, against the kernel's own count."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gpuaudit.capture.selection import Selection
from tests.integration.recording import DEADLINE_S, Recording, Row, recording, start, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

TCP = Selection(sources=frozenset({"tcp"}))
PORT = 5201
SIZE_BYTES = 1 << 20
ESTABLISHED, SYN_SENT, FIN_WAIT1, NEW_SYN_RECV = 1, 2, 4, 12

SERVER = """
import os, socket, sys
with open("/proc/self/comm", "w") as f:
    f.write("the server")
listener = socket.create_server(("::", 5201), family=socket.AF_INET6, dualstack_ipv6=True)
print("listening", flush=True)
for _ in range(int(sys.argv[1])):
    connection, _ = listener.accept()
    got = 0
    while chunk := connection.recv(1 << 16):
        got += len(chunk)
    connection.sendall(str(got).encode())
    connection.close()
"""

CLIENT = """
import json, os, socket, sys
with open("/proc/self/comm", "w") as f:
    f.write("the client")
connection = socket.create_connection((sys.argv[1], 5201))
print(json.dumps({"inode": os.fstat(connection.fileno()).st_ino, "port": connection.getsockname()[1]}), flush=True)
told = sys.stdin.readline()
connection.sendall(bytes(int(sys.argv[2])))
print("sent", flush=True)
if "end" in told:
    sys.exit()
connection.shutdown(socket.SHUT_WR)
print(connection.recv(64).decode(), flush=True)
"""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Network:
    """Two namespaces and a cable. Addresses end in 1 for the client, in 2 for the server."""

    client: str
    server: str

    def retransmitted(self, namespace: str) -> int:
        """RetransSegs of /proc/net/snmp of one of the namespaces."""
        names, values = [x.split() for x in self.inside(namespace, "cat", "/proc/net/snmp").splitlines() if "Tcp:" in x]
        return int(values[names.index("RetransSegs")])

    def inside(self, namespace: str, *command: str) -> str:
        return run("ip", "netns", "exec", namespace, *command)

    def drop(self, namespace: str, rule: str) -> None:
        """Have what comes in and meets the rule vanish; an empty rule: nothing."""
        self.inside(namespace, "nft", "flush", "ruleset")
        if rule:
            table = f"table inet loss {{ chain in {{ type filter hook input priority 0; {rule} drop; }}; }}"
            self.inside(namespace, "nft", table)

    def connect(self, address: str, size_bytes: int) -> tuple[subprocess.Popen[str], dict[str, int]]:
        """A client that has connected and waits to be told to send; inode and port of its socket."""
        client = self.start(self.client, CLIENT, address, str(size_bytes))
        assert client.stdout is not None
        return client, json.loads(client.stdout.readline())

    def start(self, namespace: str, code: str, *arguments: str) -> subprocess.Popen[str]:
        command = ("ip", "netns", "exec", namespace, sys.executable, "-c", code, *arguments)
        return start(*command, stdin=subprocess.PIPE)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    name = uuid.uuid4().hex[:6]
    net = Network(f"gac{name}", f"gas{name}")
    try:
        run("ip", "netns", "add", net.client)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"no network namespace can be made here: {getattr(e, 'stderr', e)}")
    try:
        run("ip", "netns", "add", net.server)
        run("ip", "link", "add", "v0", "netns", net.client, "type", "veth", "peer", "v0", "netns", net.server)
        for end, namespace in (("1", net.client), ("2", net.server)):
            run("ip", "-n", namespace, "address", "add", f"10.77.0.{end}/24", "dev", "v0")
            run("ip", "-n", namespace, "address", "add", f"fd77::{end}/64", "dev", "v0", "nodad")
            run("ip", "-n", namespace, "link", "set", "v0", "up")
        try:
            net.drop(net.server, "")
        except (OSError, subprocess.CalledProcessError) as e:
            pytest.skip(f"nftables cannot be used here: {getattr(e, 'stderr', e)}")
        yield net
    finally:
        for namespace in (net.client, net.server):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


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
