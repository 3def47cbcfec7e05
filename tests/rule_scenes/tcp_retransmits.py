"""Two ranks whose all-reduces take 2 ms; the one of step 20 takes 410 ms, and after 205 ms of it a packet from the
first to the second is sent again."""

from tests.scenes import MS, T0, S, Scene

PIDS = (100, 101)
ADDRESSES = ("10.9.0.1", "10.9.0.2")
PORTS = (4_000, 5_000)
SLOW_STEP = 20
EVERY = 500 * MS


def begin(step: int) -> int:
    """When an all-reduce begins, on both ranks."""
    return T0 + S + step * EVERY


def ranks(*, steps: int = 60, slow: int = 410 * MS, comm_id: int | None = 9) -> Scene:
    """The two ranks and the sockets between them, without a packet that was sent again."""
    scene = Scene().clock()
    for rank, pid in enumerate(PIDS):
        scene.process(pid)
        socket(scene, pid, rank)
        for step in range(steps):
            scene.add(
                "nccl_calls", start_ns=begin(step), duration_ns=slow if step == SLOW_STEP else 2 * MS, pid=pid, tid=pid,
                op="ncclAllReduce", return_code=0, comm_handle=7, comm_id=comm_id,
                rank=None if comm_id is None else rank,
                nranks=None if comm_id is None else 2, count=8, size_bytes=32, stream=1,
            )  # fmt: skip
    return scene


def socket(scene: Scene, pid: int, side: int, at: int = T0, **more: object) -> Scene:
    """A millisecond of traffic of one end of the connection."""
    return scene.add("socket_io", **{
        "start_ns": at, "duration_ns": MS, "pid": pid, "op": "send", "receive": 0, "inode": 800 + pid, "family": 2,
        "local_address": ADDRESSES[side], "local_port": PORTS[side], "remote_address": ADDRESSES[1 - side],
        "remote_port": PORTS[1 - side], "count": 3, "errors": 0, "size_bytes": 96, "sum_ns": MS, "max_ns": MS, **more,
    })  # fmt: skip


def resent(scene: Scene, at: int, **more: object) -> Scene:
    """The first rank sends a packet to the second again."""
    return scene.add("tcp_retransmits", **{
        "start_ns": at, "pid": PIDS[0], "comm": "python3", "inode": 900, "family": 2, "state": 1, "segments": 1,
        "error": 0, "local_address": ADDRESSES[0], "local_port": PORTS[0], "remote_address": ADDRESSES[1],
        "remote_port": PORTS[1], **more,
    })  # fmt: skip


def scenes() -> list[Scene]:
    return [resent(ranks(), begin(SLOW_STEP) + 205 * MS)]
