"""A launcher in Python: in some of its steps another thread keeps the interpreter's lock, or it computes itself.

    interpreter_lock.py CUDART OUT GO CPU lock|compute

Each step gives three kernels to the double, lets the interpreter go for a moment after each, and waits for them. From
when GO exists eight steps follow that are slow: with ``lock`` a sibling thread computes from the first kernel on, and
has the lock whenever the launcher wants it back; with ``compute`` the launcher itself computes, and nobody wants it.
OUT gets a line for the process, one for each slow step, when it began and ended (CLOCK_BOOTTIME), one for the rest.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from pathlib import Path

STEPS, SLOW, KERNELS, PAUSE_S, COMPUTE_NS = 799, 8, 3, 0.0001, 20_000_000


class Dim3(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


cudart, out, go = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
cpu, plan = int(sys.argv[4]), sys.argv[5]
launch, synchronize = cudart.cudaLaunchKernel, cudart.cudaDeviceSynchronize
launch.argtypes = (ctypes.c_void_p, Dim3, Dim3, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
kernel = ctypes.cast(cudart.cudaFree, ctypes.c_void_p)
one = Dim3(1, 1, 1)
wanted = threading.Event()


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def beside() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    while True:
        wanted.wait()
        while wanted.is_set():
            pass


def step(*, slow: bool) -> tuple[int, int]:
    before = now()
    if slow and plan == "lock":
        wanted.set()
    for _ in range(KERNELS):
        launch(kernel, one, one, None, 0, None)
        time.sleep(PAUSE_S)
    if slow and plan == "compute":
        while now() < before + COMPUTE_NS:
            pass
    wanted.clear()
    synchronize()
    return before, now()


threading.Thread(target=beside, daemon=True).start()
for task in Path("/proc/self/task").iterdir():
    os.sched_setaffinity(int(task.name), {cpu})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))  # who has the lock does not keep the CPU as well
usual = [step(slow=False) for _ in range(STEPS - SLOW)]
print("at ready", flush=True)
while not go.exists():
    time.sleep(0.01)
slow = []
for _ in range(SLOW):
    slow.append(step(slow=True))
    time.sleep(0.01)
lengths = sorted(b - a for a, b in usual)
with out.open("w", encoding="utf-8") as f:
    print(json.dumps({"pid": os.getpid(), "tid": threading.get_native_id()}), file=f)
    for a, b in slow:
        # All that these steps are longer than usual, at their end: when in them is not known.
        spans = [["more", a + lengths[len(lengths) // 2], b]]
        print(json.dumps({"before_ns": a, "after_ns": b, "throttled_ns": 0, "spans": spans}), file=f)
    print(json.dumps({"stolen_ns": 0, "other_ns": lengths[-1]}), file=f)
