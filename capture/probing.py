"""The attacher's half of the evidence: BPF programs, processes and libraries, and what they cost.

Rows that it finds are kept until :meth:`Probing.take_rows`, and go to the recorder over the channel.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture.bpf_capture import BpfCapture
from gpuaudit.capture.calibration import probe_costs_ns
from gpuaudit.capture.channel import LINE_LIMIT_BYTES
from gpuaudit.capture.cost import CostRow, helper_rows, probe_rows
from gpuaudit.capture.launch import Command, InvokingUser, Workload
from gpuaudit.capture.linked import linked_files
from gpuaudit.capture.obey import denied_functions, denied_sources, why_not_recorded
from gpuaudit.capture.options import CaptureOptions
from gpuaudit.capture.privileges import foreign_namespace, missing_for_bpf
from gpuaudit.capture.processes import read_process, start_ns
from gpuaudit.capture.ring import RingDescription
from gpuaudit.capture.rules import parse_rules
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.settings import Settings
from gpuaudit.capture.source import BPF_SOURCES, Capability, boottime_ns
from gpuaudit.capture.system_calls import parse_device

SCAN_INTERVAL_S, TOLD_SCAN_INTERVAL_S = 0.25, 1.0
"""A library that a process loads is probed within this time: short against the seconds CUDA takes to start. Where the
kernel tells of mappings as they happen, passes over /proc only find what it could not tell of. ours"""

TICK_INTERVAL_S = 1.0
"""Length of the windows over which the kernel adds up what is too frequent for a row each."""

BATCH_BYTES = LINE_LIMIT_BYTES // 4
"""A batch of rows is sent once it is as long as this; a single row, whose texts other users choose, may be longer."""


class Probing:
    """What the attacher watches in one capture; ``bpf`` None when no source needs it."""

    def __init__(self, options: CaptureOptions, capabilities: list[Capability]) -> None:
        self.capabilities = capabilities
        self._pids = {pid: start_ns(pid) for pid in options.pids}
        self._bpf: BpfCapture | None = None
        self._rows: list[tuple[str, dict[str, Any]]] = []
        self._probe_totals: list[dict[str, Any]] = []
        self._costs_ns: dict[str, int] = {}
        self._next_scan_s = 0.0
        self._next_tick_s = time.monotonic() + TICK_INTERVAL_S
        self._workload_pid = 0
        self._workload_row: dict[str, Any] | None = None
        self._helpers: list[int] = []

    @classmethod
    def load(cls, options: CaptureOptions) -> Probing:
        """Load what the options ask for. HostUnfit when BPF is wanted and cannot be had."""
        wanted = [s for s in options.sources if s in BPF_SOURCES]
        unwanted = [s for s in BPF_SOURCES if s not in wanted]
        capabilities = [Capability(s, True) for s in wanted] + [
            Capability(s, False, why_not_recorded(options, s)) for s in unwanted
        ]
        capabilities += denied_sources(options)
        probing = cls(options, capabilities)
        if wanted:
            probing._load_bpf(options, wanted)
        probing._rows += denied_functions(options)
        probing._process_row(os.getpid(), "found", "attacher")
        for pid in options.pids if not wanted else ():  # with BPF, discovery tells of them
            probing._process_row(pid, "found", "traced")
        return probing

    def _load_bpf(self, options: CaptureOptions, wanted: list[str]) -> None:
        missing = missing_for_bpf()
        if missing:
            raise HostUnfit(
                f"capturing {', '.join(wanted)} needs {' and '.join(missing)}, which this process lacks",
                hint="sudo audit capture; without privileges only --source nvml can be captured",
            )
        if foreign := foreign_namespace():
            raise HostUnfit(foreign[0], hint=foreign[1])
        self._costs_ns = probe_costs_ns()
        pids = frozenset(options.pids) if options.pids or options.command else None
        role = "workload" if options.command else "traced"
        rules, left_out = parse_rules(options.users, options.comms, options.cgroups, options.excludes)
        selection = Selection(
            pids=pids,
            sources=frozenset(wanted),
            role=role,
            rules=rules,
            exclude_with_children=left_out,
            denied=options.policy.denied_ops() if options.policy else frozenset(),
        )
        settings = Settings(
            slow_ns=round(options.stack_threshold_ms * 1e6), sample_every=options.stack_sample,
            budget_per_s=options.budget_per_s, stacks="stacks" in wanted,
        )  # fmt: skip
        devices = tuple(parse_device(text) for text in options.ioctl_devices)
        self._bpf = BpfCapture(self._take, selection, costs_ns=self._costs_ns, settings=settings, ioctl_devices=devices)
        self._bpf.load()
        refused = self._bpf.refused
        for i, c in enumerate(self.capabilities):
            if (why := refused.get(c.source)) is not None:
                self.capabilities[i] = Capability(c.source, False, why.message, why.hint or "")
            elif note := self._bpf.notes.get(c.source):
                self.capabilities[i] = Capability(c.source, True, note)

    @property
    def rings(self) -> list[RingDescription]:
        """Rings for the recorder to inherit."""
        return list(self._bpf.rings) if self._bpf else []

    @property
    def counters_fd(self) -> int:
        """The loss counters' map; −1 without BPF."""
        return self._bpf.counters_fd if self._bpf else -1

    @property
    def wake_descriptors(self) -> list[int]:
        """Readable when there is something for :meth:`look_at_once`."""
        return self._bpf.wake_descriptors if self._bpf else []

    def look_at_once(self) -> None:
        """Probe what the kernel says was just mapped."""
        if self._bpf:
            self._bpf.look_at_once()

    def selected(self) -> set[int] | None:
        """The processes that are recorded now; None for all of the host."""
        return self._bpf.selected() if self._bpf else None

    def exclude(self, *pids: int) -> None:
        """The activity of the recorder, and of what helps us, is never evidence against the workload."""
        if self._bpf:
            for pid in pids:
                self._bpf.exclude(pid)

    def keep_probing(self) -> None:
        """See :meth:`BpfCapture.keep_probing`."""
        helper = self._bpf.keep_probing() if self._bpf else None
        if helper is not None:
            self.tell_helper(helper)

    def tell_helper(self, pid: int) -> None:
        """A process that does one thing for the attacher: part of it, and no evidence."""
        self.exclude(pid)
        self._helpers.append(pid)
        self._process_row(pid, "found", "attacher")

    def tell_recorder(self, pid: int) -> None:
        """The recorder as a process of this capture, once it runs under its own user."""
        self._process_row(pid, "found", "recorder")

    def prepare_workload(self, pid: int, command: Command, user: InvokingUser | None) -> None:
        """Probe what the held process will be linked with."""
        self._workload_pid = pid
        if self._bpf:
            self._bpf.include(pid)
            now = boottime_ns()
            for refused in self._bpf.prepare(linked_files(command, user)):
                reason = f"not probed before the workload began: {refused}"
                self._take(
                    "gaps", {"start_ns": now, "duration_ns": None, "source": "cuda", "pid": pid, "reason": reason}
                )

    def workload_released(self) -> None:
        """The held process executes the workload now; it is told of under its new name."""
        self._workload_row = self._process_row(self._workload_pid, "found", "workload")

    def scan_when_due(self) -> None:
        """One pass of discovery, and sums, when they are due."""
        if self._bpf and time.monotonic() >= self._next_scan_s:
            self._bpf.scan()
            is_told = self._bpf.is_told_of_mappings
            self._next_scan_s = time.monotonic() + (TOLD_SCAN_INTERVAL_S if is_told else SCAN_INTERVAL_S)
        if self._bpf and time.monotonic() >= self._next_tick_s:
            self._bpf.tick()
            self._next_tick_s = time.monotonic() + TICK_INTERVAL_S

    def all_ended(self) -> bool:
        """Whether every process named by ``--pid`` is gone (its number may have been given to another one)."""
        return bool(self._pids) and all(start_ns(pid) != born for pid, born in self._pids.items())

    def finish(self, workload: Workload | None, status: int | None) -> None:
        """Detach, and collect the last rows: probe totals, open calls, the workload's exit."""
        if self._bpf:
            self._bpf.finish()
        if workload is not None and status is not None:
            self._workload_exited(status)

    def cost_rows(self) -> list[CostRow]:
        """What the probes cost the workload, and what runs for the attacher cost the host."""
        return [*(probe_rows(self._probe_totals, self._costs_ns) if self._bpf else []), *helper_rows(self._helpers)]

    def take_rows(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Rows since the last call, in batches of one table that fit a message."""
        rows, self._rows = self._rows, []
        batches: dict[str, list[dict[str, Any]]] = {}
        lengths: Counter[str] = Counter()
        for table, row in rows:
            length = len(json.dumps(row)) + 2
            if lengths[table] + length > BATCH_BYTES and table in batches:
                yield table, batches.pop(table)
                lengths[table] = 0
            batches.setdefault(table, []).append(row)
            lengths[table] += length
        yield from batches.items()

    def close(self) -> None:
        """Detach whatever is still attached."""
        if self._bpf:
            self._bpf.close()

    def _take(self, table: str, row: dict[str, Any]) -> None:
        if table == "probes" and row.get("hits") is not None:
            self._probe_totals.append(row)
        if table == "processes" and row.get("pid") == self._workload_pid and self._workload_pid:
            return  # the workload itself is told of here, with its exit status
        self._rows.append((table, row))

    def _process_row(self, pid: int, op: str, role: str) -> dict[str, Any] | None:
        info = read_process(pid)
        if info is None:
            return None
        row: dict[str, Any] = info.row(op, role, boottime_ns())
        self._rows.append(("processes", row))
        return row

    def _workload_exited(self, status: int) -> None:
        now = boottime_ns()
        row = self._workload_row or {"start_ns": now, "pid": self._workload_pid, "role": "workload", "comm": ""}
        life = {
            "op": "exited",
            "seen_ns": now,
            "duration_ns": max(0, now - int(row["start_ns"])),
            "exit_status": status,
        }
        self._rows.append(("processes", {**row, **life}))
