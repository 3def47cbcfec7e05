"""What a stranger may say of ranks, sockets and links: the longest names, the largest numbers, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuaudit.analyze.finding import Document
from tests.rule_scenes import fabric_error, slow_host
from tests.rule_scenes.tcp_retransmits import PIDS, SLOW_STEP, begin, ranks, resent, socket
from tests.scenes import MS, T0, US, S, Scene
from tests.unit.analyze.test_extremes import LONGEST, U64, through

HUGE = "x" * 100_000


def detectors(document: Document) -> set[str]:
    return {c.detector for c in document.chains}


def test_addresses_and_inodes_without_end(tmp_path: Path) -> None:
    scene = ranks()
    socket(scene, PIDS[0], 0, remote_address=HUGE, inode=U64, remote_port=65_535)
    resent(scene, begin(SLOW_STEP) + 205 * MS, remote_address=HUGE, inode=U64, segments=2**32 - 1, remote_port=65_535)
    document = through(scene, tmp_path)
    assert "tcp_retransmits" in detectors(document)
    assert all(len(v) < 500 for c in document.chains for v in c.values.values() if isinstance(v, str))


def test_a_communicator_of_two_thousand_million_ranks(tmp_path: Path) -> None:
    scene = slow_host.scene()
    for row in scene.rows["nccl_calls"]:
        row["nranks"] = 2**31 - 1
    (chain, _) = [c for c in through(scene, tmp_path).chains if c.detector == "slow_host"]
    assert chain.values["culprit"] == "ranks 2–2147483646 of communicator 0000000000000009, not observed"


@pytest.mark.parametrize("value", [U64, 2**63])
def test_counters_at_the_end_of_their_type(tmp_path: Path, value: int) -> None:
    slow = begin(SLOW_STEP)
    scene = fabric_error.on_gpus(ranks(steps=SLOW_STEP + 1, slow=fabric_error.LONG))
    fabric_error.readings(scene, {slow + S: 0, slow + 6 * S: value, slow + 11 * S: 1})
    for row in scene.rows["nvml_links"]:
        row |= {"crc_flit_errors": row["recovery_errors"], "receive_errors": row["recovery_errors"]}
    assert "fabric_error" in detectors(through(scene, tmp_path))


def test_names_of_gpus_as_long_as_a_document_takes(tmp_path: Path) -> None:
    scene = fabric_error.with_event()
    for rows in scene.rows.values():
        for row in rows:
            if row.get("gpu_uuid") == "GPU-0":
                row["gpu_uuid"] = HUGE[:250]
    assert "fabric_error" in detectors(through(scene, tmp_path))


def test_calls_and_polls_that_last_for_ever(tmp_path: Path) -> None:
    scene = ranks()
    for row in scene.rows["nccl_calls"][::7]:
        row["duration_ns"] = LONGEST - row["start_ns"]
    scene.cuda(PIDS[0], "cudaStreamQuery", T0 + S, LONGEST - T0 - S, stream=1, return_code=600)
    scene.cuda(PIDS[0], "cudaStreamQuery", T0 + 2 * S, US, stream=1, return_code=0)
    through(scene, tmp_path)


def test_nothing_but_open_calls(tmp_path: Path) -> None:
    scene = Scene().clock().process(PIDS[0])
    for i in range(3):
        scene.add(
            "nccl_calls", start_ns=T0 + i, duration_ns=None, pid=PIDS[0], tid=PIDS[0], op="ncclAllReduce",
            comm_handle=U64, comm_id=U64, rank=0, nranks=1, stream=U64,
        )  # fmt: skip
    section = next(s for s in through(scene, tmp_path).sections if s.id == "stragglers")
    assert section.state == "not evaluated"
