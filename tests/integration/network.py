"""Two network namespaces with a cable between them, on which packets can be lost."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.integration.recording import start

PORT = 5201

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


@contextmanager
def network() -> Iterator[Network]:
    """Made for one test; skips where none can be made."""
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
