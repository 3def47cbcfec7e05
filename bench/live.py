"""``audit capture`` beside a process that runs anyway: begun and ended as an operator would, and what it cost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.bundle.errors import AuditError, HostUnfit
from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.verify import verify

LIMIT_S = 120.0
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


def read(path: Path) -> Captured:
    """What a bundle holds and says, and what making it cost, once its seal is verified.

    Not by SQL: half an hour of calls is more rows than a query may take.
    """
    verification = verify(path, decode=False)
    rows: Counter[str] = Counter()
    lost: dict[tuple[str, int], int] = {}
    with Bundle.open(path) as bundle:
        bundle.check_root(verification.root_b64)
        for header in bundle.headers:
            rows[header.table or ""] += header.rows or 0
        for _, losses in bundle.segments("losses"):  # the counters are cumulative: the last word of each table and CPU
            names = losses["table_name"]
            dictionary = names.dictionary or ()
            for table, cpu, n in zip(names.values, losses["cpu"].values, losses["lost"].values, strict=True):
                at = (dictionary[int(table)], int(cpu))
                lost[at] = max(lost.get(at, 0), int(n))
        counted = sum(int(totals["count"].values.sum()) for _, totals in bundle.segments("call_totals"))
        cost = [json.loads(body) for _, name, body in bundle.artefacts() if name == "cost"][-1]
    return Captured(
        path.stat().st_size, dict(rows), counted, sum(lost.values()),
        {str(row["name"]): int(row["value"]) for row in cost},
    )  # fmt: skip
