"""The producer: writes records into the ring at a given pace, from a process of its own.

``python -m bench.producer PROGRAM_FD CPU`` reads lines "records rate_per_s" and answers each with a line of seconds.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from gpuaudit.bundle.errors import AuditError
from gpuaudit.capture import libbpf

RECORDS_PER_RUN = 64
"""As in bench/bpf/generate.bpf.c."""

TICK_RUNS = 64
"""Most runs of the program between two looks at the clock: 4,096 records, 3 % of the ring."""

_BPF_PROG_TEST_RUN = 10
_MACHINE = os.uname().machine
_FRAME = ctypes.create_string_buffer(64)
"""The kernel runs a tc program on a packet of at least 14 bytes."""


_LIBC = ctypes.CDLL(None, use_errno=True)


def write(program_fd: int, runs: int) -> None:
    """Run the program ``runs`` times, inside one system call. OSError when the kernel refuses."""
    # program, result, length of packet in and out; packet in and out; repeat, duration; context, flags, CPU, batch
    packet = ctypes.addressof(_FRAME)
    attributes = struct.pack("<IIIIQQII40x", program_fd, 0, len(_FRAME), 0, packet, 0, runs, 0)
    if _LIBC.syscall(libbpf.NR_BPF[_MACHINE], _BPF_PROG_TEST_RUN, attributes, len(attributes)) < 0:
        raise OSError(ctypes.get_errno(), f"BPF_PROG_TEST_RUN: {os.strerror(ctypes.get_errno())}")


def pace(program_fd: int, records: int, rate_per_s: float) -> float:
    """Write ``records`` (rounded up to whole runs), never ahead of the rate; the seconds it took."""
    runs = -(-records // RECORDS_PER_RUN)
    start_s, done = time.monotonic(), 0
    while done < runs:
        due = int((time.monotonic() - start_s) * rate_per_s / RECORDS_PER_RUN) + 1
        if due <= done:
            time.sleep(0.0001)
            continue
        step = min(TICK_RUNS, due - done, runs - done)
        write(program_fd, step)
        done += step
    return time.monotonic() - start_s


class Producer:
    """The producer process, seen from the bench. Use as a context manager."""

    def __init__(self, program_fd: int, cpu: int) -> None:
        root = str(Path(__file__).resolve().parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.producer", str(program_fd), str(cpu)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, pass_fds=(program_fd,), env={**os.environ, "PYTHONPATH": root},
            cwd=root,
        )  # fmt: skip
        self._read()

    def start(self, records: int, rate_per_s: float) -> None:
        """Begin to write; :meth:`finished` says when it is over."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{records} {rate_per_s}\n")
        self._process.stdin.flush()
        os.set_blocking(self._stdout, False)

    def finished(self) -> float | None:
        """Seconds that the writing took; None while it goes on."""
        try:
            line = os.read(self._stdout, 64)
        except BlockingIOError:
            return None
        if not line:
            raise AuditError("the producer of records ended early")
        return float(line)

    @property
    def _stdout(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def _read(self) -> None:
        if os.read(self._stdout, 64) != b"ready\n":
            raise AuditError("the producer of records did not start")

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)


def main(program_fd: int, cpu: int) -> None:
    """Serve until stdin ends."""
    os.sched_setaffinity(0, {cpu})
    os.write(1, b"ready\n")
    for line in sys.stdin:
        records, rate = line.split()
        os.write(1, f"{pace(program_fd, int(records), float(rate)):.6f}\n".encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
