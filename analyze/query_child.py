"""The process in which queries run: ``python -m gpuaudit.analyze.query_child``, a request on stdin, JSON on stdout.

It verifies and loads first, then gives up what a query could misuse (files, processes, memory), then runs them.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import duckdb

from gpuaudit.analyze.query import Cell, QueryResult
from gpuaudit.analyze.store import Store
from gpuaudit.bundle.errors import AuditError, HostUnfit, UsageError
from gpuaudit.bundle.harden import limit_decoder
from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.verify import verify

MEMORY_BYTES = 1 << 30
"""What a query may use beside the evidence itself."""

ADDRESS_SPACE_BYTES = 16 << 30
"""Address space, most of it never touched: DuckDB and Arrow reserve more than they use."""

CPU_S = 240
"""Processor time for loading and all queries."""

MAX_RESULT_BYTES = 64 << 20
"""Size of all answers together; more than anybody reads on a screen, and a spreadsheet's limit of a million rows."""

_ROWS_AT_ONCE = 1_000
_ALLOWED = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


def run(path: Path, queries: list[str]) -> list[QueryResult]:
    """Verify, load, lock, run."""
    verification = verify(path, decode=False)
    with Bundle.open(path) as bundle:
        bundle.check_root(verification.root_b64)
        store = Store.from_bundle(bundle)
    return answer(store, queries)


def answer(store: Store, queries: list[str]) -> list[QueryResult]:
    """Run queries over a store, which takes nothing else from then on."""
    used = int(store.sql("SELECT coalesce(sum(memory_usage_bytes), 0) FROM duckdb_memory()")[0][0])
    con = store.lock(used + MEMORY_BYTES)
    limit_decoder(ADDRESS_SPACE_BYTES, CPU_S)
    room = MAX_RESULT_BYTES
    out = []
    for sql in queries:
        result, size = _run_one(con, sql, room)
        room -= size
        out.append(result)
    return out


def _run_one(con: duckdb.DuckDBPyConnection, sql: str, room: int) -> tuple[QueryResult, int]:
    try:
        statements = con.extract_statements(sql)
        if len(statements) != 1 or statements[0].type not in _ALLOWED:
            raise UsageError("one SELECT is expected", hint="see docs/reference/tables.md for the views")
        done = con.execute(statements[0])
        columns = tuple(str(d[0]) for d in done.description or ())
        rows: list[tuple[Cell, ...]] = []
        size = 0
        while part := done.fetchmany(_ROWS_AT_ONCE):
            rows += (tuple(_cell(v) for v in row) for row in part)
            size += sum(len(str(v)) + 4 for row in rows[-len(part) :] for v in row)
            if size > room:
                raise UsageError(f"the answer has more than {MAX_RESULT_BYTES} bytes", hint="add LIMIT, or aggregate")
    except (duckdb.OutOfMemoryException, MemoryError):
        raise UsageError(f"the query needs more than {MEMORY_BYTES} bytes", hint="narrow it, or aggregate") from None
    except duckdb.Error as e:
        lines = [line for line in str(e).splitlines() if line.strip()] or ["no message"]
        helpful = [line for line in lines[1:] if line.startswith("Candidate bindings")]
        hint = "docs/reference/tables.md has the views and their columns"
        if isinstance(e, duckdb.CatalogException) and "Table with name" in lines[0]:
            hint = f"there are: {', '.join(sorted(TABLES))}"
        raise UsageError(f"SQL: {'. '.join((lines[0], *helpful))}", hint=hint) from None
    return QueryResult(columns, tuple(rows)), size


def _cell(value: Any) -> Cell:
    """Integers, texts and nulls as they are; what JSON has no type for, as text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value.hex() if isinstance(value, bytes) else str(value)


def main() -> None:
    """One request, one answer; an error of ours is an answer too."""
    request = json.loads(sys.stdin.buffer.read())
    reply: dict[str, Any]
    try:
        found = run(Path(request["path"]), request["queries"])
        reply = {"results": [{"columns": r.columns, "rows": r.rows} for r in found]}
    except AuditError as e:
        reply = {"error": e.message, "hint": e.hint, "kind": type(e).__name__}
    except MemoryError:
        reply = {
            "error": "the evidence does not fit into memory",
            "hint": "use a larger machine",
            "kind": HostUnfit.__name__,
        }
    sys.stdout.buffer.write(json.dumps(reply).encode())


if __name__ == "__main__":
    main()
