"""Ranks 0 and 1 of a communicator of four; the others are not observed. Each all-reduce takes 2 ms, one 300 ms."""

from tests.rule_scenes.tcp_retransmits import PIDS, ranks
from tests.scenes import MS, T0, Scene

SLOW = 300 * MS


def scene(slow: int = SLOW) -> Scene:
    made = ranks(slow=slow)
    for row in made.rows["nccl_calls"]:
        row["nranks"] = 4
    for pid in PIDS:
        made.add(
            "socket_io", start_ns=T0, duration_ns=MS, pid=pid, op="send", receive=0, inode=pid, family=2,
            local_address="10.9.0.1", local_port=pid, remote_address="10.9.0.80", remote_port=9, count=1, errors=0,
            size_bytes=9, sum_ns=9, max_ns=9,
        )  # fmt: skip
    return made


def scenes() -> list[Scene]:
    return [scene()]
