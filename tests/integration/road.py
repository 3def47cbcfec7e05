"""The whole road through the ``audit`` command, for tests: a capture with BPF, and every question asked of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from gpuaudit.analyze.finding import number_from_json
from gpuaudit.bundle.errors import AuditError
from tests.commands import audit, audit_here
from tests.integration.sessions import DEADLINE_S, environment, rows

CALLS = " UNION ALL ".join(
    f"SELECT pid, op FROM {t} WHERE parent_ns IS NULL" for t in ("cuda_calls", "nccl_calls", "nccl_comms")
)


class Road:
    """One folder with its own keys. What fails says what the command said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = environment(folder / "keys")

    def run(
        self,
        *args: str | Path,
        status: int = 0,
        cwd: Path | None = None,
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """``audit`` with these arguments, in the folder; it must end with ``status``."""
        return self._checked(
            audit(*args, env={**self.env, **(env or {})}, cwd=cwd or self.folder, prefix=prefix), args, status
        )

    def read(self, *args: str | Path) -> str:
        """What a command says that only reads, in this process: a Python of its own takes a second to start."""
        return self._checked(audit_here(*args, env=self.env, cwd=self.folder), args, 0).stdout

    @staticmethod
    def _checked(
        done: subprocess.CompletedProcess[str], args: Sequence[str | Path], status: int
    ) -> subprocess.CompletedProcess[str]:
        assert done.returncode == status, f"{args}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def capture(
        self, name: str, *command: str | Path, status: int = 0, env: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Capture a command into ``name``.db; what ``--json`` tells. The command's own output comes before it."""
        done = self.run("capture", "--json", "--out", f"{name}.db", "--", *command, status=status, env=env)
        told: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{\n") :])
        return told

    def findings(self, name: str, *more: str | Path) -> dict[str, Any]:
        """``audit analyze`` of ``name``.db: the findings document it wrote."""
        self.run("analyze", f"{name}.db", *more)
        document: dict[str, Any] = json.loads((self.folder / f"{name}.findings.json").read_bytes())
        return document

    def query(self, name: str, sql: str) -> list[dict[str, Any]]:
        """Rows of ``audit query --json``."""
        rows: list[dict[str, Any]] = json.loads(self.read("query", f"{name}.db", sql, "--json"))
        return rows

    def wait_for_probes(self, name: str, least: int, among: set[int] | None = None) -> None:
        """Until a capture that runs has sealed that the CUDA runtime of so many processes (of these) is probed."""
        partial = self.folder / f"{name}.db.partial" / "bundle.db"
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                found = {row["pid"] for row in rows(partial, "libraries") if row["library"] == "cudart"}
            except AuditError:  # copied while a leaf was being written
                found = set()
            if len(found if among is None else found & among) >= least:
                return
            assert time.monotonic() < end, "the libraries of the workload were never recorded"
            time.sleep(0.2)

    def calls(self, name: str) -> dict[tuple[int, str], int]:
        """How many calls of each process and API are in the bundle; not what libraries call inside them."""
        counted = self.query(name, f"SELECT pid, op, count(*) AS n FROM ({CALLS}) GROUP BY pid, op")
        return {(r["pid"], r["op"]): r["n"] for r in counted}


@contextmanager
def road(doubles: Path | None = None) -> Iterator[Road]:
    """A road in a new folder that other users can reach: the recorder runs as one."""
    folder = Path(tempfile.mkdtemp(prefix="gpuaudit-road-"))
    try:
        folder.chmod(0o755)
        if doubles is not None:
            shutil.copytree(doubles, folder / "bin")
            (folder / "bin").chmod(0o755)
        yield Road(folder)
    finally:
        shutil.rmtree(folder)


def number(quantity: Any) -> int | Fraction:
    """The number in a quantity of a findings document, which must be there."""
    value = number_from_json(quantity["value"])
    assert value is not None, quantity
    return value


def outcome(document: dict[str, Any], name: str) -> dict[str, str]:
    """What became of one rule or detector."""
    (found,) = [o for o in document["outcomes"] if o["id"] == name]
    return dict(found)


def sha256(path: Path) -> str:
    """Digest of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listing(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest."""
    return {
        os.path.relpath(Path(at) / n, folder): sha256(Path(at) / n) for at, _, names in os.walk(folder) for n in names
    }
