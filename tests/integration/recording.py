"""A capture in one process, for tests: everything it hands out, kept as lists of plain rows."""

from __future__ import annotations

import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuaudit.capture.bpf_capture import BpfCapture
from gpuaudit.capture.ring import LossCounters, RingReader, to_rows
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.settings import Settings

Row = dict[str, Any]

DEADLINE_S = 60.0
"""After which something that never comes is a failure. Nothing is measured with it."""


class Recording:
    """Drains and keeps. ``rows[table]`` holds rows as mappings, columns that are null as None.

    Calls are added up in a test that asks for a budget, and never in another: what one test makes by the thousand would
    leave another one that runs beside it sums for rows.
    """

    def __init__(self, selection: Selection | None = None, **options: Any) -> None:
        self.rows: dict[str, list[Row]] = defaultdict(list)
        options.setdefault("settings", Settings(budget_per_s=0))
        self.capture = BpfCapture(lambda table, row: self.rows[table].append(row), selection or Selection(), **options)
        self.capture.load()
        self.readers = [RingReader(r.fd, r.size_bytes, r.table) for r in self.capture.rings]
        self.counters = LossCounters(self.capture.counters_fd)

    def drain(self) -> None:
        """Take what is in the rings."""
        for reader in self.readers:
            records = reader.drain()
            columns = {name: c.to_list() for name, c in to_rows(reader.table, records).items()}
            self.rows[reader.table] += [
                dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
            ]

    def step(self) -> None:
        """One round of discovery and draining."""
        self.capture.scan()
        self.drain()

    def run(self, process: subprocess.Popen[str]) -> str:
        """Record until ``process`` ends; its standard output. It must succeed."""
        end = time.monotonic() + DEADLINE_S
        while process.poll() is None:
            assert time.monotonic() < end, "the workload does not end"
            self.step()
            time.sleep(0.02)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return out

    def finish(self) -> None:
        """End the capture; every row is there afterwards."""
        self.drain()
        self.capture.finish(self.drain)
        self.drain()

    def of(self, table: str, **wanted: object) -> list[Row]:
        """Rows of a table in which these columns have these values, by start."""
        chosen = [r for r in self.rows[table] if all(r[k] == v for k, v in wanted.items())]
        return sorted(chosen, key=lambda r: (r["start_ns"], r.get("seq", 0)))

    def map_fd(self, name: str) -> int:
        """A map of the object ``calls``."""
        return self.capture._programs.map_fd(name)

    def lost(self) -> int:
        """Records lost in all tables."""
        return sum(c.lost for c in self.counters.read().values())

    def seen(self, table: str) -> int:
        """Records the probes tried to write."""
        return sum(c.seen for (name, _), c in self.counters.read().items() if name == table)


@contextmanager
def recording(selection: Selection | None = None, **options: Any) -> Iterator[Recording]:
    """A :class:`Recording` that is taken down whatever happens."""
    r = Recording(selection, **options)
    try:
        yield r
    finally:
        r.capture.close()


def start(*command: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start a workload program."""
    arguments = [str(c) for c in command]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Wait until the program has said ``text``."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == text:
            return
    raise AssertionError(f"the program ended before it said {text!r}: {process.communicate()[1]}")


def truth(path: Path) -> list[Row]:
    """What a workload program wrote down."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def frames_by_stack(r: Recording) -> dict[int, list[Row]]:
    """Identity of a stack → its frames, innermost first."""
    out: dict[int, list[Row]] = defaultdict(list)
    for row in sorted(r.rows["stack_frames"], key=lambda f: f["depth"]):
        out[row["stack"]].append(row)
    return dict(out)
