"""SQL over the evidence, for a person or for a findings document of unknown origin.

Queries run in a process of their own, on an in-memory copy: no file can be named, no setting changed, no extension
loaded; memory, time and the size of the answer are bounded. The bundle is verified first and never written to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpuaudit
from gpuaudit.bundle import errors
from gpuaudit.bundle.errors import AuditError, UsageError

DEADLINE_S = 300
"""Wall-clock time for loading and all queries together; a day of 8 GPUs loads in less than a minute."""

MAX_ANSWER_BYTES = 256 << 20
"""The longest answer that is read; the child stops well before (:data:`query_child.MAX_RESULT_BYTES`)."""

Cell = int | float | str | bool | None


@dataclass(frozen=True)
class QueryResult:
    """Column names and rows; what JSON has no type for (decimals, blobs, lists) is text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def run_query(path: Path | str, sql: str) -> QueryResult:
    """One SELECT over the views of a bundle. UsageError, in one line, for what DuckDB does not take."""
    return run_queries(path, [sql])[0]


def run_queries(path: Path | str, queries: Sequence[str]) -> list[QueryResult]:
    """Several SELECTs over one copy of the evidence; the first that fails ends them all."""
    request = json.dumps({"path": str(Path(path).absolute()), "queries": list(queries)}).encode()
    answer = _ask(request)
    if "error" in answer:
        raise _error(answer)
    return [QueryResult(tuple(r["columns"]), tuple(tuple(row) for row in r["rows"])) for r in answer["results"]]


def _ask(request: bytes) -> dict[str, Any]:
    here = str(Path(gpuaudit.__file__).parent.parent)
    path = os.pathsep.join([here, *(p for p in sys.path if p)])
    env = {"PYTHONPATH": path, "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/"}  # no HOME: Python asks the user database
    env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {k: os.environ[k] for k in ("TMPDIR",) if k in os.environ}
    command = [sys.executable, "-P", "-s", "-m", "gpuaudit.analyze.query_child"]
    try:
        done = subprocess.run(command, env=env, input=request, capture_output=True, timeout=DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise UsageError(f"the query ran longer than {DEADLINE_S} s", hint="narrow it with WHERE or LIMIT") from None
    if done.returncode or len(done.stdout) > MAX_ANSWER_BYTES:
        raise UsageError(
            f"the query ended without an answer (status {done.returncode})", hint="it needed too much memory; narrow it"
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise UsageError("the query gave no answer that can be read", hint="narrow it") from None
    if not isinstance(answer, dict):
        raise UsageError("the query gave no answer that can be read", hint="narrow it")
    return answer


def _error(answer: dict[str, Any]) -> AuditError:
    """The error that the child met, of the same class and in the same words."""
    kind = getattr(errors, str(answer.get("kind")), UsageError)
    chosen = kind if isinstance(kind, type) and issubclass(kind, AuditError) else UsageError
    return chosen(" ".join(str(answer["error"]).split())[:1000], hint=str(answer.get("hint", ""))[:300])
