"""Deeds that are not one slow call: a start, bursts of allocations, graphs, hunger for input, tiny launches."""

from __future__ import annotations

from dataclasses import dataclass

from tests.corpus.model import Host, Planted, Range
from tests.corpus.training import Trainer
from tests.scenes import MS, T0, US, S

PID = 3_100
"""The trainer's, unless told otherwise."""


@dataclass(frozen=True)
class ColdStart:
    """A process that begins within the capture; the first call of each kind takes long, and then it trains."""

    pid: int = 3_500
    first: Range = (60 * MS, 900 * MS)
    steps: Range = (120, 200)

    def happen(self, host: Host) -> None:
        at = T0 + host.of((1_200 * MS, 3 * S))
        host.scene.process(self.pid, "python3", start_ns=at - 300 * MS, seen_ns=at - 250 * MS)
        host.scene.add(
            "lifecycle", start_ns=at - 300 * MS, pid=self.pid, tid=self.pid, op="exec", event=1, comm="python3"
        )
        for op, more in (
            ("cudaMalloc", {"size_bytes": 1 << 20, "device_pointer": 1 << 33}),
            ("cudaLaunchKernel", {"stream": 7, "function": 0x5555_0000 + 64, "grid_x": 8, "block_x": 64}),
        ):
            ns = host.of(self.first)
            host.scene.cuda(self.pid, op, at, ns, **more)
            host.planted.append(Planted("cold_start", self.pid, op, ns))
            host.lengthened[self.pid, op] = host.lengthened.get((self.pid, op), 0) + ns
            at += ns + 200 * US
        begun = len(host.scene.rows["processes"])
        Trainer(pid=self.pid, steps=self.steps, start=at).happen(host)
        del host.scene.rows["processes"][begun]  # it has a row already, with the time of its start


@dataclass(frozen=True)
class Burst:
    """``times`` bursts in which an allocation fails, everything that is cached is given back, and it is tried again."""

    cause: str = "allocation_burst"
    times: Range = (1, 1)
    frees: Range = (25, 60)
    each: Range = (300 * US, 1_900 * US)
    pid: int = PID
    usual: Range = (15, 40)

    def happen(self, host: Host) -> None:
        at = host.end + 20 * MS
        pointer = 0x7E00_0000_0000
        for _ in range(host.of(self.usual)):  # what one such call usually takes
            host.scene.cuda(self.pid, "cudaFree", at, host.around(30 * US), device_pointer=pointer)
            pointer, at = pointer + (1 << 22), at + host.of((2 * MS, 9 * MS))
        for _ in range(host.of(self.times)):
            at += host.of((20 * MS, 200 * MS))
            at = self._burst(host, at)
        host.planted.append(Planted(self.cause, self.pid))
        host.also |= {("allocation_burst", self.pid), ("allocator_thrash", self.pid)}
        host.reaches(at)

    def _burst(self, host: Host, at: int) -> int:
        host.scene.cuda(self.pid, "cudaMalloc", at, 300 * US, return_code=2, size_bytes=1 << 30)
        at += 320 * US
        pointers = []
        for i in range(host.of(self.frees)):
            ns = host.of(self.each)
            pointers.append(0x7D00_0000_0000 + i * (1 << 25))
            host.scene.cuda(self.pid, "cudaFree", at, ns, device_pointer=pointers[-1])
            at += ns + host.of((2 * US, 9 * US))
        for pointer in pointers:
            ns = host.of(self.each)
            host.scene.cuda(self.pid, "cudaMalloc", at, ns, size_bytes=1 << 25, device_pointer=pointer)
            at += ns + host.of((2 * US, 9 * US))
        return at


@dataclass(frozen=True)
class Recapture:
    """A loop that captures and instantiates a graph again every few steps, and launches each a few times or never."""

    pid: int = 3_600
    graphs: Range = (12, 30)
    make: Range = (8 * MS, 60 * MS)
    launches: Range = (2, 5)
    captured_once: bool = False
    cause: str = "graph_recapture"

    def happen(self, host: Host) -> None:
        host.scene.process(self.pid)
        at, stream = T0 + 100 * MS, 9
        launches = self.launches if not self.captured_once else (300, 500)
        for number in range(1 if self.captured_once else host.of(self.graphs)):
            host.scene.cuda(self.pid, "cudaStreamBeginCapture", at, 9 * US, stream=stream)
            at += 20 * US
            for i in range(12):
                host.scene.cuda(self.pid, "cudaLaunchKernel", at, 4 * US, stream=stream, function=0x6666_0000 + 64 * i)
                at += 9 * US
            graph, made = 0x100_000 + number, 0x200_000 + number
            host.scene.cuda(self.pid, "cudaStreamEndCapture", at, 80 * US, stream=stream, handle=graph)
            at += 100 * US
            ns = host.of(self.make)
            host.scene.cuda(self.pid, "cudaGraphInstantiate", at, ns, handle=graph, other_handle=made)
            at += ns + 30 * US
            for _ in range(host.of(launches)):
                host.scene.cuda(self.pid, "cudaGraphLaunch", at, host.around(9 * US), stream=stream, handle=made)
                at += 15 * US
                ns = host.around(3 * MS)
                host.scene.cuda(self.pid, "cudaStreamSynchronize", at, ns, stream=stream)
                at += ns + host.of((10 * US, 60 * US))
            host.scene.cuda(self.pid, "cudaGraphExecDestroy", at, 50 * US, handle=made)
            at += 90 * US
        host.scene.samples(T0, at, 1, [self.pid])
        host.reaches(at)
        if not self.captured_once:
            host.planted.append(Planted(self.cause, self.pid))
            host.also |= {("graph_recapture", self.pid), ("launch_bound", self.pid)}


@dataclass(frozen=True)
class Hungry:
    """Steps that wait for input: the main thread sleeps until a worker wakes it, and the workers use all their CPU.
    With ``waits`` False (a twin) it pauses as long of its own will, and the workers sleep; with ``busy`` False (a twin)
    workers wake it that slept themselves and waited for orders."""

    pid: int = 3_700
    workers: int = 3
    steps: Range = (10, 20)
    pause: Range = (400 * MS, 1_600 * MS)
    waits: bool = True
    busy: bool = True

    def happen(self, host: Host) -> None:
        host.scene.process(self.pid, "python3", start_ns=T0 - 60 * S)
        workers = [self.pid + 1 + i for i in range(self.workers)]
        for w in workers:
            host.scene.process(w, "pt_data_worker", parent_pid=self.pid, start_ns=T0 - 50 * S)
        at = T0 + 50 * MS
        for step in range(host.of(self.steps)):
            pause = host.of(self.pause)
            waker = workers[step % len(workers)]
            woken = {"waker_pid": waker, "waker_tid": waker, "waker_comm": "pt_data_worker", "syscall": 7}
            host.off_cpu(self.pid, self.pid, at, pause, **(woken if self.waits else {}))
            if not self._working:
                for w in workers:
                    host.off_cpu(w, w, at, pause, comm="pt_data_worker", syscall=202)
            at += pause + 40 * US
            for _ in range(30):
                ns = host.around(6 * US)
                host.scene.cuda(self.pid, "cudaLaunchKernel", at, ns, stream=7, function=0x5555_0040)
                at += ns + 5 * US
            ns = host.around(8 * MS)
            host.scene.cuda(self.pid, "cudaStreamSynchronize", at, ns, stream=7)
            at += ns + 10 * US
        self._counters(host, at, workers)
        host.scene.samples(T0, at, 2, [self.pid], gpu_utilization_percent=4)
        host.reaches(at)
        if self._working:
            host.planted.append(Planted("input_starvation", self.pid))

    @property
    def _working(self) -> bool:
        return self.waits and self.busy

    def _counters(self, host: Host, end: int, workers: list[int]) -> None:
        """CPU time and switches of everybody, once a second; the CPU pressure that three busy workers make."""
        host.scene.open_body["host"] = {"cpus": 4}
        for at in (*range(T0, end, S), end):
            for pid in (self.pid, *workers):
                busy = self._working and pid != self.pid
                used = (at - T0) * (97 if busy else 2) // 100
                host.scene.add(
                    "process_samples", start_ns=at, pid=pid, user_ns=used * 9 // 10, system_ns=used // 10,
                    major_faults=0, minor_faults=5_000, resident_bytes=1 << 30, threads=4,
                    voluntary_switches=(at - T0) // (40 * MS), involuntary_switches=(at - T0) // (15 * MS) * busy,
                )  # fmt: skip
            host.scene.add("pressure", start_ns=at, resource="cpu", some_ns=(at - T0) // 2 * self._working, full_ns=0)


@dataclass(frozen=True)
class TinyLaunches:
    """Launches of kernels so small that the host cannot give them fast enough; or (twin) of kernels so large that it
    waits for each batch. ``timed``: the GPU's own record of its work was taken; without it the waits at the end of each
    batch, which find the GPU done, are what tells."""

    pid: int = 3_800
    launches: Range = (6_000, 9_000)
    gap: Range = (8 * US, 30 * US)
    tiny: bool = True
    timed: bool = True

    def happen(self, host: Host) -> None:
        host.scene.process(self.pid)
        at = T0 + 50 * MS
        done = at
        for i in range(host.of(self.launches) if self.tiny else 1_200):
            ns = host.around(6 * US)
            host.scene.cuda(
                self.pid, "cudaLaunchKernel", at, ns, stream=7, function=0x5555_0000 + 64 * (i % 40), grid_x=4,
                grid_y=1, grid_z=1, block_x=128, block_y=1, block_z=1, shared_bytes=0, correlation=i + 1,
            )  # fmt: skip
            done = self._kernel(host, i + 1, max(done, at + ns + host.of((US, 3 * US))))
            at += ns + host.of(self.gap)
            if i % 60 == 59:
                ns = max(done + 9 * US - at, 4 * US)
                host.scene.cuda(self.pid, "cudaStreamSynchronize", at, ns, stream=7)
                at += ns + 10 * US
        host.scene.samples(T0, at, 3, [self.pid], gpu_utilization_percent=22 if self.tiny else 98)
        host.reaches(at)
        if self.tiny:
            host.planted.append(Planted("launch_bound" if self.timed else "launch_paced", self.pid))

    def _kernel(self, host: Host, number: int, begin: int) -> int:
        """One kernel on the GPU; when it is over."""
        ns = host.around(3 * US if self.tiny else 400 * US)
        if self.timed:
            host.scene.add(
                "gpu_activities", start_ns=begin, duration_ns=ns, pid=self.pid, op="kernel",
                name=f"kernel_{number % 40}", device=3, stream=7, correlation=number,
            )  # fmt: skip
        return begin + ns


@dataclass(frozen=True)
class BlockingCopies:
    """A step that copies its results back with calls that return when the bytes are there: a good part of its time."""

    pid: int = 3_900
    steps: Range = (150, 250)
    copies: Range = (2, 5)
    each: Range = (700 * US, 3 * MS)
    size: Range = (4_096, 60_000)
    blocking: bool = True

    def happen(self, host: Host) -> None:
        host.scene.process(self.pid)
        at = T0 + 50 * MS
        for _ in range(host.of(self.steps)):
            for i in range(8):
                ns = host.around(6 * US)
                host.scene.cuda(self.pid, "cudaLaunchKernel", at, ns, stream=7, function=0x5555_0000 + 64 * i)
                at += ns + 5 * US
            for i in range(host.of(self.copies)):
                ns = host.of(self.each) if self.blocking else host.around(8 * US)
                host.scene.cuda(
                    self.pid, "cudaMemcpy" if self.blocking else "cudaMemcpyAsync", at, ns, direction=2,
                    size_bytes=host.of(self.size), device_pointer=0x5500_0000_0000 + i * 65_536,
                    source_pointer=0x7F00_0000_0000 + i * 65_536, **({} if self.blocking else {"stream": 7}),
                )  # fmt: skip
                at += ns + 10 * US
            if not self.blocking:
                ns = host.around(4 * MS)
                host.scene.cuda(self.pid, "cudaStreamSynchronize", at, ns, stream=7)
                at += ns
            at += host.of((50 * US, 400 * US))
        host.scene.samples(T0, at, 4, [self.pid], gpu_utilization_percent=55)
        host.reaches(at)
        if self.blocking:
            host.planted.append(Planted("synchronous_copy", self.pid))
