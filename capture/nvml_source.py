"""What NVML tells: samples, health, links, accounting, events and GPM of every GPU.

Each kind of reading of each GPU has a thread of its own (``nvml_worker.py``), so that a call that hangs delays neither
other GPUs, nor other tables, nor the recorder. Each field is asked for by itself: one that NVML refuses is null, and
``unavailable`` names it with NVML's return code.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import pynvml  # type: ignore[import-untyped]

from gpuaudit.capture.nvml_devices import Gpu, list_gpus
from gpuaudit.capture.nvml_events import EventReader
from gpuaudit.capture.nvml_facts import Fact, read_system, unanswered
from gpuaudit.capture.nvml_gpm import GPM_INTERVAL_NS, GpmReader
from gpuaudit.capture.nvml_health import HEALTH_INTERVAL_NS, HealthReader
from gpuaudit.capture.nvml_samples import POLL_INTERVAL_NS, SampleReader
from gpuaudit.capture.nvml_worker import Task, Worker
from gpuaudit.capture.source import Capability, RingSink, Sink, boottime_ns

INIT_DEADLINE_S = 15.0
"""nvmlInit wakes GPUs without persistence mode one after the other, about a second each."""

END_DEADLINE_S = 2.0
"""All threads together have this long to end; those that hang are left behind."""

EVENT_INTERVAL_NS = 10_000_000
"""Between two waits for events: a storm of them must not take the recorder's CPU."""

HAND_OVER_NS = 250_000_000
"""Rows of all GPUs are handed over together: turning one row into columns costs as much as turning a hundred."""

ARTEFACT = "gpus"

_T = TypeVar("_T")


class NvmlSource:
    """All GPUs that NVML lists."""

    name = "nvml"

    def __init__(self) -> None:
        self.gpus: list[Gpu] = []
        self._refused: dict[int, int] = {}
        self._system: dict[str, Fact] = {}
        self._workers: list[Worker] = []
        self._health: list[HealthReader] = []
        self._facts_told = False
        self._buffer: _Buffer

    def probe(self) -> Capability:
        """Initialise NVML and list the GPUs, in a thread that may hang without harm."""
        capability = within(INIT_DEADLINE_S, self._open)
        return capability or Capability("nvml", False, f"nvmlInit did not return within {INIT_DEADLINE_S:.0f} s")

    def _open(self) -> Capability:
        try:
            pynvml.nvmlInit()
            gpus, self._refused = list_gpus()
            self._system = read_system()
        except pynvml.NVMLError as e:
            return _not_usable(e)
        except Exception as e:  # the binding of another version may lack a function
            return Capability("nvml", False, f"NVML could not be used: {type(e).__name__}: {e}")
        if not gpus:
            codes = ", ".join(f"GPU {index}: NVML code {code}" for index, code in self._refused.items())
            return Capability("nvml", False, f"NVML gives access to no GPU ({codes})" if codes else "NVML lists no GPU")
        self.gpus = gpus
        return Capability("nvml", True)

    def start(self, sink: RingSink) -> None:
        """Start the threads; call after :meth:`probe` said available."""
        for index, code in self._refused.items():
            sink.gap("nvml", f"GPU {index} cannot be asked: NVML code {code}", boottime_ns(), None)
        self._buffer = _Buffer(sink)
        self._health = [HealthReader(gpu, self.gpus) for gpu in self.gpus]
        self._workers = [Worker(task) for task in self._tasks()]
        for worker in self._workers:
            worker.start()

    def _tasks(self) -> Iterable[Task]:
        events = EventReader(self.gpus)
        yield Task("events", ("nvml_events",), events, EVENT_INTERVAL_NS, critical=True, notes=events.notes)
        for gpu, health in zip(self.gpus, self._health, strict=True):
            who = f"GPU {gpu.index}"
            samples = SampleReader(gpu)
            yield Task(who, ("nvml_samples", "nvml_processes"), samples, POLL_INTERVAL_NS, notes=samples.notes)
            tables = ("nvml_health", "nvml_links", "nvml_accounting")
            yield Task(who, tables, health, HEALTH_INTERVAL_NS, deadline_ns=HEALTH_INTERVAL_NS, at_end=True)
            yield Task(who, ("gpm_samples",), GpmReader(gpu), GPM_INTERVAL_NS)

    def poll(self, sink: RingSink) -> int:
        """Hand over finished rounds, events, and gaps for what answered late."""
        count = sum(worker.collect(self._buffer) for worker in self._workers)
        if self._workers:
            self._buffer.hand_over(HAND_OVER_NS)
        if not self._facts_told and all(health.facts is not None for health in self._health):
            self._tell_facts(sink)
        return count

    def stop(self, sink: RingSink) -> None:
        """End the threads that can be ended; one that hangs is left behind, with a gap."""
        for worker in self._workers:
            worker.ended.set()
        until = time.monotonic() + END_DEADLINE_S
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))
        for worker in self._workers:
            worker.finish(self._buffer)
        if self._workers:
            self._buffer.hand_over()
        if not self._facts_told and self._workers:
            self._tell_facts(sink)

    def _tell_facts(self, sink: RingSink) -> None:
        self._facts_told = True
        told = [h.facts or unanswered(gpu) for gpu, h in zip(self.gpus, self._health, strict=True)]
        sink.artefact(ARTEFACT, {"system": self._system, "gpus": told})


class _Buffer:
    """Rows by table until they are handed over; what is critical, and gaps, go through at once."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._rows: dict[str, list[Mapping[str, object]]] = {}
        self._handed_over_ns = 0

    def hand_over(self, age_ns: int = 0) -> None:
        """Give the rows to the sink, if ``age_ns`` has passed since the last time."""
        now = boottime_ns()
        if now - self._handed_over_ns < age_ns:
            return
        self._handed_over_ns = now
        rows, self._rows = self._rows, {}
        for table, records in rows.items():
            self._sink.add_records(table, records)

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        """Keep rows of one table."""
        if records:
            self._rows.setdefault(table, []).extend(records)

    def add_critical(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        """Pass on."""
        self._sink.add_critical(table, records)

    def gap(
        self, source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None,
        pid: int | None = None,
    ) -> None:  # fmt: skip
        """Pass on."""
        self._sink.gap(source, reason, start_ns, end_ns, table=table, pid=pid)


def within(seconds: float, call: Callable[[], _T]) -> _T | None:
    """What ``call`` returns, in a thread that may hang without harm; None when it has not returned in time."""
    result: list[_T] = []
    thread = threading.Thread(target=lambda: result.append(call()), name="nvml-call", daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else None


def _not_usable(error: pynvml.NVMLError) -> Capability:
    """Why NVML cannot be used, and what to do about it."""
    code = int(error.value)
    if code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        reason = "libnvidia-ml.so.1 was not found, or could not be loaded: no usable NVIDIA driver on this host"
        return Capability("nvml", False, reason)
    if code == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        reason = f"the NVIDIA kernel driver and libnvidia-ml.so.1 are of different versions (NVML code {code})"
        return Capability("nvml", False, reason, "reload the driver's kernel modules or reboot: it was updated")
    return Capability("nvml", False, f"NVML refused with code {code}: {error}")
