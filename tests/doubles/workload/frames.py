"""Calls the CUDA runtime from every kind of Python frame, and writes down the frames that each call was made from.

    python frames.py CUDART TRUTH

Each call is a cudaMalloc whose size is its number, so that its row can be told from the others. Before it, on the same
line, the frames are written as the interpreter itself sees them: file, qualified name, line. Runs on 3.10 and later.
The program says "ready" and waits for a line on stdin, makes its calls, says "made" and waits for another one.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

released = ctypes.CDLL(sys.argv[1])
held = ctypes.PyDLL(sys.argv[1])  # calls with the GIL held
numbers = iter(range(1, 1000))
truth = Path(sys.argv[2]).open("a", buffering=1)  # noqa: SIM115


def note(number: int, label: str) -> int:
    frame: Any = sys._getframe(1)
    frames = []
    while frame is not None:
        code = frame.f_code
        frames.append([code.co_filename, getattr(code, "co_qualname", code.co_name), frame.f_lineno])
        frame = frame.f_back
    row = {"pid": os.getpid(), "tid": threading.get_native_id(), "number": number, "label": label, "frames": frames}
    truth.write(json.dumps(row) + "\n")
    return 0


def call(label: str, runtime: Any = released) -> Any:
    number, out = next(numbers), ctypes.c_void_p()
    return note(number, label) or runtime.cudaMalloc(ctypes.byref(out), ctypes.c_size_t(number))


class Model:
    def forward(self, label: str) -> Any:
        return self.layer(
            label,
        )

    def layer(self, label: str) -> Any:
        call(label)

    @property
    def loss(self) -> Any:
        measure: Any = lambda: call("property and lambda")  # noqa: E731
        return measure()


def batches() -> Iterator[None]:
    try:
        yield from rows()
    finally:
        call("generator, in finally")


def rows() -> Iterator[None]:
    for _ in range(2):
        call("generator")
        yield


async def fetch() -> None:
    await asyncio.sleep(0)
    call("awaited coroutine")


async def epoch() -> None:
    async for _ in stream():
        pass
    await asyncio.gather(fetch(), fetch())


async def stream() -> AsyncIterator[int]:
    call("asynchronous generator")
    yield 1


def deep(depth: int) -> Any:
    if depth:
        return deep(depth - 1)
    return call("deeper than is kept")


def in_thread() -> None:
    Model().forward("second thread")


def forked() -> tuple[int, int]:
    """A child of fork; it stays until the pipe is closed, so that its memory can be read."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(reading)
        return child, writing
    os.close(writing)
    call("forked child")
    os.read(reading, 1)
    os._exit(0)


def main() -> None:
    Model().forward("main thread")
    Model().loss  # noqa: B018
    call("GIL held", held)
    [[call("nested comprehension") for _ in range(2)] for _ in range(1)]
    {k: [call("comprehension in a dictionary") for _ in (1,)] for k in (1,)}
    list(batches())
    for _ in batches():
        break
    asyncio.run(epoch())
    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    deep(40)
    sorted([1, 2], key=lambda _: call("called back by C"))
    exec(MADE, {"call": call})  # noqa: S102
    with Context():
        call("with")


MADE = compile("def f():\n\n    call('made by exec')\nf()", "train é 训练 🚂.py", "exec")


class Context:
    def __enter__(self) -> None:
        call("__enter__")

    def __exit__(self, *_: object) -> None:
        call("__exit__")


print("ready", flush=True)
sys.stdin.readline()
child, writing = forked()
main()
print("made", flush=True)
sys.stdin.readline()
os.close(writing)
os.waitpid(child, 0)
