"""Verifying a bundle, next to the checksum of the same file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench import evidence, usage
from bench.result import Figure, Plan, ratio, value
from bench.spread import take_turns

NAME = "verify"
TITLE = "Verifying a bundle"
ROWS = 10_000_000
SEGMENT_ROWS = 500_000
METHOD = (
    "`audit verify bundle.db --key identity.pem` as a command, the start of Python included: every signature, header, "
    "payload and root, and every segment decoded; next to `sha256sum bundle.db`. The file is in the page cache."
)


def measure(plan: Plan) -> Figure:
    """Time and memory of ``audit verify`` and of ``sha256sum``."""
    rows = plan.size(ROWS, 10_000)
    bundle = plan.folder / "bundle.db"
    identity = evidence.write_bundle(bundle, rows, SEGMENT_ROWS)
    pem = plan.folder / "identity.pem"
    pem.write_text(identity.identity.to_pem(), "ascii")
    command = [sys.executable, "-m", "gpuaudit.cli.main", "verify", str(bundle), "--key", str(pem)]
    environment = audit_environment(plan.folder)

    def verify() -> usage.Usage:
        return usage.run(command, environment=environment)

    def checksum() -> usage.Usage:
        return usage.run(["sha256sum", str(bundle)])

    checksum()
    turns = take_turns({"verify": verify, "sha256sum": checksum}, plan.repeats, plan.budget_s)
    verified, summed = turns["verify"], turns["sha256sum"]
    elapsed, summed_elapsed = [t.seconds for t in verified], [t.seconds for t in summed]
    return Figure(NAME, TITLE, METHOD, (
        ratio("audit verify ÷ sha256sum, elapsed", elapsed, summed_elapsed, "lower"),
        ratio("audit verify ÷ sha256sum, CPU", [t.cpu_s for t in verified], [t.cpu_s for t in summed], "lower"),
        value("audit verify", "s", elapsed),
        value("audit verify: per million rows", "s", [t * 1e6 / rows for t in elapsed]),
        value("audit verify: peak memory", "MiB", [t.peak_bytes / 2**20 for t in verified]),
        value("sha256sum", "s", summed_elapsed),
    ), {"rows": f"{rows:,}", "bundle.db": f"{bundle.stat().st_size / 2**20:.1f} MiB"})  # fmt: skip


def audit_environment(folder: Path) -> dict[str, str]:
    """This process's environment, with the package found and with keys of its own."""
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": root, "GPU_AUDIT_KEYS": str(folder / "keys")}
