"""A process whose first calls are slow: of an operation, of a kernel, of a communicator, and one that loads code."""

from tests.scenes import COMM, MS, T0, US, S, Scene

BEGIN = T0 + 2 * S


def launches(
    first: int = 26 * MS, count: int = 20, pid: int = 7, began: int = T0 + S, function: int | None = 1
) -> Scene:
    """``count`` launches of one kernel, 50 ms apart, of 70 µs; the first of them takes ``first``."""
    scene = Scene().clock().process(pid, start_ns=began)
    for i in range(count):
        took = first if i == 0 else 70 * US
        scene.cuda(pid, "cudaLaunchKernel", BEGIN + i * 50 * MS, took, function=function)
    return scene


def second_kernel() -> Scene:
    """The tenth launch is the first one of another kernel."""
    scene = launches(first=70 * US)
    row = scene.rows["cuda_calls"][10]
    row["duration_ns"], row["function"] = 15 * MS, 2
    return scene


def loading() -> Scene:
    """The tenth launch of a process that was found running loads a module."""
    scene = launches(first=70 * US, began=T0 - 100 * S)
    slow = scene.rows["cuda_calls"][10]
    slow["duration_ns"] = 15 * MS
    return scene.cuda(
        7, "cuModuleLoadData", slow["start_ns"] + MS, 13 * MS, parent_ns=slow["start_ns"], parent_op="cudaLaunchKernel"
    )


def connecting() -> Scene:
    """The first all-reduce of a communicator takes 200 ms, the others 300 µs."""
    scene = Scene().clock().process(7, start_ns=T0 + S)
    for i in range(20):
        scene.add(
            "nccl_calls", start_ns=BEGIN + i * 300 * MS, duration_ns=200 * MS if i == 0 else 300 * US, pid=7, tid=7,
            op="ncclAllReduce", return_code=0, comm_handle=9, comm_id=COMM, rank=0, nranks=2, datatype=7, count=1_000,
            size_bytes=4_000, stream=1,
        )  # fmt: skip
    return scene


def scenes() -> list[Scene]:
    return [launches(), launches(function=None), second_kernel(), loading(), connecting()]
