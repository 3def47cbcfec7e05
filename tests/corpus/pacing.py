"""Steps of many launches and one wait, of whose kernels no record is kept: who set their pace, the host or the GPU?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.corpus.model import Host, Planted, Range
from tests.scenes import MS, T0, US

QUICK: Range = (2 * US, 6 * US)
"""Durations of kernels that are over before the next can be launched."""

LONG: Range = (25 * US, 60 * US)
"""And of those with which the host runs ahead of the GPU."""


@dataclass(frozen=True)
class Pacing:
    """``kernel``: how long the GPU works for each launch. At the end of a step the host waits in a synchronisation; or
    in a copy back to pageable memory before one that has nothing left to wait for; or it asks until the answer is yes.
    ``pause``: other work of the host after every tenth launch. ``helper``: another thread of the process uses the GPU
    in every step. ``cause`` is the truth."""

    cause: str | None = None
    kernel: Range = QUICK
    gap: Range = (6 * US, 25 * US)
    waits: Literal["synchronises", "copies", "asks"] = "synchronises"
    pause: Range = (0, 0)
    helper: bool = False
    steps: Range = (140, 220)
    launches: Range = (60, 110)
    pid: int = 3_850

    def happen(self, host: Host) -> None:
        host.scene.process(self.pid)
        at = T0 + 50 * MS
        launches = host.of(self.launches)
        for _ in range(host.of(self.steps)):
            at = self._step(host, at, launches) + host.of((20 * US, 60 * US))
        host.scene.samples(T0, at, 3, [self.pid])
        host.reaches(at)
        if self.cause is not None:
            host.planted.append(Planted(self.cause, self.pid))

    def _step(self, host: Host, at: int, launches: int) -> int:
        """One step; when it is over."""
        done = at
        for i in range(launches):
            ns = host.around(6 * US)
            host.scene.cuda(self.pid, "cudaLaunchKernel", at, ns, stream=7, function=0x5555_0000 + 64 * i)
            done = max(done, at + ns + 2 * US) + host.of(self.kernel)
            at += ns + host.of(self.gap) + (host.of(self.pause) if i % 10 == 9 else 0)
        if self.helper:
            for op, after, ns in (("cudaLaunchKernel", 90 * US, 6 * US), ("cudaStreamSynchronize", 70 * US, 50 * US)):
                host.scene.cuda(self.pid, op, at - after, ns, stream=8, tid=self.pid + 1)
        if self.waits == "copies":
            ns = max(done - at, 0) + host.around(9 * US)
            host.scene.cuda(self.pid, "cudaMemcpyAsync", at, ns, stream=7, direction=2, size_bytes=8)
            at += ns + 3 * US
        while self.waits == "asks" and at < done:
            host.scene.cuda(self.pid, "cudaStreamQuery", at, 2 * US, stream=7, return_code=600)
            at += 40 * US
        ns = max(done - at, 0) + host.around(5 * US)
        host.scene.cuda(self.pid, "cudaStreamSynchronize", at, ns, stream=7)
        return at + ns
