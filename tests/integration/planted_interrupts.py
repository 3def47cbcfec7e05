"""Interrupts on one CPU, for tests that plant them: packets that another CPU sends are received there, at some length.

Packets come over a cable between two network namespaces. The kernel is told to receive them on that CPU (receive packet
steering), where each of them has to pass many rules; what does not end at once is left to the kernel's own thread for
interrupts, which goes before the launcher while this lasts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.network import Network
from tests.integration.recording import start, wait_for_line

RULES, PACKETS = 2_000, 900
"""For each packet, and in each flood: fewer than the kernel keeps for a CPU (net.core.netdev_max_backlog)."""

FLOOD = """
import os, socket, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("at flood", flush=True)
while True:
    before = time.monotonic()
    for _ in range(int(sys.argv[2])):
        out.sendto(b"x", ("10.77.0.2", 9))
    with socket.socket() as last:  # is refused after all of them were received
        last.connect_ex(("10.77.0.2", 9))
    time.sleep(time.monotonic() - before)
"""


def handler(cpu: int) -> int:
    """The kernel's own thread for software interrupts of a CPU."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text("utf-8", "replace").strip() == f"ksoftirqd/{cpu}":
                return int(comm.parent.name)
        except OSError:
            continue
    raise AssertionError(f"no thread serves software interrupts on CPU {cpu}")


@contextmanager
def before_launchers(thread: int) -> Iterator[None]:
    """A thread of the kernel at a real-time priority above that of launchers, as administrators give it."""
    os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(2))
    try:
        yield
    finally:
        os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def receive_slowly(net: Network) -> None:
    """Have each packet pass many rules before it is dropped."""
    rules = "; ".join(["udp dport 1 drop"] * RULES)
    table = f"table inet slow {{ chain in {{ type filter hook input priority 0; {rules}; udp dport 9 drop; }}; }}"
    command = ("ip", "netns", "exec", net.server, "nft", "-f", "-")
    subprocess.run(command, input=table, check=True, capture_output=True, text=True)


@contextmanager
def flood(net: Network, sender: int, receiver: int) -> Iterator[None]:
    """Half of the time one CPU receives what another one has sent."""
    place = "/sys/class/net/v0/queues/rx-0/rps_cpus"
    net.inside(net.server, "sh", "-c", f"echo {1 << receiver:x} >{place}")
    process = start("ip", "netns", "exec", net.client, sys.executable, "-c", FLOOD, str(sender), str(PACKETS))
    try:
        wait_for_line(process, "at flood")
        yield
    finally:
        process.kill()
        process.communicate()
