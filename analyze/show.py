"""From a number in a report back to the sealed rows behind it: ``audit show``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.analyze.finding import Document, Evidence, Quantity, Section
from gpuaudit.analyze.query import Cell, run_queries
from gpuaudit.bundle.errors import NegativeAnswer, UsageError
from gpuaudit.bundle.verify import verify


@dataclass(frozen=True)
class Shown:
    """The rows of one evidence entry, as the bundle gives them."""

    id: str
    table: str
    query: str
    leaves: tuple[int, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def evidence_rows(document: Document, id: str, bundle_path: Path | str) -> list[Shown]:
    """The rows behind a finding (F1), a chain (C1), a group (G1), an evidence entry (E3), a section (engines) or one of
    its tables (engines.windows), an operation, or a key of the waste ledger.

    The bundle must be the one that the document names, and every query must give as many rows as the document says:
    NegativeAnswer otherwise. The queries of a document are run like a stranger's.
    """
    entries = evidence_of(document, id)
    verification = verify(bundle_path, decode=False)
    for key, got in (("file_sha256", verification.file_sha256), ("root", verification.root_b64)):
        if document.bundle[key] != got:
            raise NegativeAnswer(
                f"{Path(bundle_path).name} is not the bundle that the findings were made from: {key} is {got}, "
                f"the findings say {str(document.bundle[key])[:80]}",
                hint="give the bundle with that digest",
            )
    results = run_queries(bundle_path, [e.query for e in entries])
    for e, r in zip(entries, results, strict=True):
        if len(r.rows) != e.rows:
            raise NegativeAnswer(
                f"evidence {e.id} is said to be {e.rows} rows, and its query gives {len(r.rows)}",
                hint="the findings do not belong to this bundle, or were edited; make them again with 'audit analyze'",
            )
    return [Shown(e.id, e.table, e.query, e.leaves, r.columns, r.rows) for e, r in zip(entries, results, strict=True)]


def evidence_of(document: Document, id: str) -> list[Evidence]:
    """The evidence entries behind ``id``; UsageError, with what there is, for an id that the document lacks."""
    known = {e.id: e for e in document.evidence}
    wanted = _ids(document, id)
    if wanted is None:
        named = (document.findings, document.chains, document.groups, document.sections)
        names = [x.id for kind in named for x in kind]
        raise UsageError(
            f"no finding, chain, group, section, evidence, operation or waste key is called {id[:80]!r}",
            hint=f"there is: {', '.join(names) or 'no finding'}, E1 to E{len(known)}, and the operations by name",
        )
    return [known[i] for i in dict.fromkeys(wanted)]


def _ids(document: Document, id: str) -> Iterable[str] | None:
    for f in document.findings:
        if f.id == id:
            return f.evidence
    for c in document.chains:
        if c.id == id:
            return [*c.evidence, *(i for link in c.links for i in link.evidence)]
    for g in document.groups:
        if g.id == id:
            ids = {g.primary, *(s for s, _ in g.supporting)}
            return [i for f in document.findings if f.id in ids for i in f.evidence]
    if any(e.id == id for e in document.evidence):
        return [id]
    for s in document.sections:
        if id.partition(".")[0] == s.id and (found := _of_section(s, id.partition(".")[2])) is not None:
            return found
    operations = [i for o in document.operations if o["op"] == id for i in o["count"].get("evidence", [])]
    waste = [i for r in document.waste["rows"] if r["key"] == id for i in r["gpu_time"].get("evidence", [])]
    return operations or waste or None


def _of_section(section: Section, table: str) -> list[str] | None:
    """Evidence of a whole section, or of one of its tables by id; None when it has no such table."""
    tables = [t for t in section.tables if table in ("", t.id)]
    if table and not tables:
        return None
    cells = [c for t in tables for row in t.rows for c in row]
    if not table:
        cells = [*(v for s in section.statements for v in s.values.values()), *cells]
    return [i for c in cells if isinstance(c, Quantity) for i in c.evidence]
