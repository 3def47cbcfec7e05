"""``audit capture`` beside a process that runs anyway: begun and ended as an operator would, and what it cost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.analyze.query import run_queries
from gpuaudit.bundle.errors import AuditError, HostUnfit

LIMIT_S = 60.0
"""A capture that has not begun or ended by then is given up."""

SETTLE_S = 1.0
"""From the receipt on: the process's library is found within a quarter of a second, and attached."""


@dataclass(frozen=True)
class Captured:
    """``written``: rows in the bundle by table; ``cost``: name → value of the artefact ``cost``; ``lost``: records."""

    size_bytes: int
    written: dict[str, int]
    counted: int
    lost: int
    cost: dict[str, int]

    @property
    def events(self) -> int:
        """Rows of calls, and calls that were counted instead."""
        return self.written.get("cuda_calls", 0) + self.counted


class Capture:
    """A capture of one process, from :meth:`begin` to :meth:`end`."""

    def __init__(
        self, pid: int, out: Path, environment: Mapping[str, str], options: Sequence[str] = (), limit_s: int = 600
    ) -> None:
        self._out = out
        self._command = [
            sys.executable, "-m", "gpuaudit.cli.main", "capture", "--pid", str(pid), "--out", str(out), "--duration",
            str(limit_s), *options,
        ]  # fmt: skip
        self._environment = dict(environment)

    def begin(self) -> None:
        """Start it and wait until its probes are there."""
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        receipt = Path(f"{self._out}.receipt")
        deadline = time.monotonic() + LIMIT_S
        while not receipt.exists():
            if self._process.poll() is not None:
                raise HostUnfit(f"the capture did not begin: {self._last_words()}")
            if time.monotonic() > deadline:
                self._process.kill()
                raise HostUnfit("the capture did not begin in time")
            time.sleep(0.02)
        time.sleep(SETTLE_S)

    @property
    def pid(self) -> int:
        """Process id of the attacher, whose child is the recorder."""
        return self._process.pid

    def end(self) -> Captured:
        """Interrupt it, wait for the seal, and read what it says of itself."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AuditError("the capture did not end in time") from None
        if not self._out.exists():
            raise AuditError(f"the capture left no bundle: {self._last_words()}")
        return read(self._out)

    def _last_words(self) -> str:
        pipe = self._process.stderr
        return (pipe.read() if pipe else "").strip().rpartition("\n")[2][-300:]


def read(bundle: Path) -> Captured:
    """What a bundle says it holds, and what making it cost."""
    totals, counted, cost = run_queries(bundle, [
        # the last word of each table and CPU; the counters are cumulative
        "SELECT table_name, SUM(written)::BIGINT, SUM(lost)::BIGINT FROM (SELECT table_name, cpu, MAX(written) AS "
        "written, MAX(lost) AS lost FROM losses GROUP BY ALL) GROUP BY 1",
        "SELECT COALESCE(SUM(count), 0)::BIGINT FROM call_totals",
        "SELECT row->>'name', (row->>'value')::BIGINT FROM (SELECT unnest(body::JSON[]) AS row FROM artefacts "
        "WHERE name = 'cost')",
    ])  # fmt: skip
    return Captured(
        bundle.stat().st_size, {str(t): int(str(n)) for t, n, _ in totals.rows}, int(str(counted.rows[0][0])),
        sum(int(str(n)) for *_, n in totals.rows), {str(n): int(str(v)) for n, v in cost.rows},
    )  # fmt: skip
