"""train.py LIBRARY: a small PyTorch training loop on the CPU that makes a launch for each operator, as CUDA does.

For each line "STEPS" on stdin makes so many steps and answers with the nanoseconds that they took. Needs nothing of
this project.
"""

from __future__ import annotations

import ctypes
import sys
import time

import torch


class Dim3(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


LAUNCHES_PER_STEP = 40
"""About the kernels of a step of such a model on a GPU: forward, backward, optimiser."""


def main(library: str) -> None:
    torch.manual_seed(1)
    torch.set_num_threads(1)
    launch = ctypes.CDLL(library).cudaLaunchKernel
    launch.argtypes = (ctypes.c_void_p, Dim3, Dim3, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    grid, block = Dim3(64, 1, 1), Dim3(256, 1, 1)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, wanted = torch.randn(64, 256), torch.randint(0, 10, (64,))

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), wanted).backward()
        optimiser.step()
        for _ in range(LAUNCHES_PER_STEP):
            launch(None, grid, block, None, 0, None)

    for _ in range(50):
        step()
    print(LAUNCHES_PER_STEP, flush=True)
    for line in sys.stdin:
        start = time.perf_counter_ns()
        for _ in range(int(line)):
            step()
        print(time.perf_counter_ns() - start, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
