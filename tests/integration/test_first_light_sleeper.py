"""Why a thread was off its CPU, through the whole command: a sleeper explains nothing, a hog is named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.road import Road, outcome, road

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

# Kernels long enough that half of one is left to wait for even where the caller is kept from its CPU for a while.
KERNEL_US, NAPS = 200_000, 10
NAP_MS = KERNEL_US // 1000


@pytest.fixture(scope="module")
def shared(doubles: Path, bpf: None) -> Iterator[Road]:
    with road(doubles) as r:
        yield r


def test_first_light_sleeper_beside_a_slow_call_is_no_chain(shared: Road) -> None:
    """A thread naps while another waits for long kernels: the bundle has both, and nobody puts them together."""
    r = shared
    options = ("--naps", str(NAPS), "--nap-ms", str(NAP_MS))
    command = (r.folder / "bin" / "sleeper", "--cudart", r.folder / "bin" / "libcudart.so.13", *options)
    done = r.run("capture", "--out", "sleeper.db", "--", *command, env={"DOUBLE_CUDA_KERNEL_US": str(KERNEL_US)})
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"sleeper_tid"')))
    slow = (
        f"SELECT start_ns, end_ns FROM cuda_calls WHERE tid = {said['caller_tid']} AND op = 'cudaDeviceSynchronize' "
        f"AND duration_ns >= {KERNEL_US * 500}"
    )
    asleep = f"SELECT start_ns, end_ns FROM off_cpu WHERE tid = {said['sleeper_tid']} AND op = 'blocked'"
    (both,) = r.query(
        "sleeper",
        f"SELECT (SELECT count(*) FROM ({slow})) AS slow, (SELECT count(*) FROM ({asleep})) AS asleep, "
        f"(SELECT count(*) FROM ({slow}) c JOIN ({asleep}) s ON s.start_ns < c.end_ns AND c.start_ns < s.end_ns) AS n",
    )
    assert both["slow"] >= NAPS // 2
    assert both["asleep"] >= NAPS // 2
    assert both["n"] >= NAPS // 2, "the sleep overlaps the slow calls, which is what must tempt nobody"
    document = r.findings("sleeper")
    assert document["chains"] == []
    assert document["findings"] == []
    assert {o["id"]: o["state"] for o in document["outcomes"] if o["state"] == "finding"} == {}
    assert outcome(document, "late_rank")["state"] == "not evaluated"


def test_first_light_preempted_thread_names_the_hog(shared: Road) -> None:
    """A victim pinned to the core of a hog in real-time bursts: off_cpu says preempted, by whom, and on which core."""
    r, cpu = shared, sorted(os.sched_getaffinity(0))[-1]
    spin, cudart = r.folder / "bin" / "spin", r.folder / "bin" / "libcudart.so.13"
    hog = f"{spin} --cpu {cpu} --ms 600000 --name 'the hog' --burst-ms 5"
    victim = f"{spin} --cpu {cpu} --ms 2500 --cudart {cudart} --name 'the victim'"
    r.run("capture", "--out", "hog.db", "--", "sh", "-ec", f"{hog} & {victim}; kill $!")
    mine = "comm = 'the victim' AND next_comm = 'the hog'"
    rows = r.query(
        "hog",
        "SELECT op, prev_state, cpu_out, wake_ns, waker_pid, count(DISTINCT next_pid) AS hogs, count(*) AS n, "
        f"min(duration_ns) AS least FROM off_cpu WHERE {mine} AND duration_ns IS NOT NULL GROUP BY ALL",
    )
    (by_hog,) = rows
    assert (by_hog["op"], by_hog["prev_state"], by_hog["cpu_out"]) == ("preempted", 0, cpu)
    assert (by_hog["wake_ns"], by_hog["waker_pid"]) == (None, None), "nobody wakes a thread that never slept"
    assert by_hog["hogs"] == 1
    assert by_hog["n"] >= 3
    assert by_hog["least"] > 0
    hogs = r.query("hog", "SELECT count(*) AS n FROM off_cpu WHERE comm = 'the hog'")
    assert hogs == [{"n": 0}], "it maps no probed library, so nothing is recorded of it"
    assert r.findings("hog")["chains"] == []
