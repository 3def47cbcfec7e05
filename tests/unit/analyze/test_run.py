"""From a sealed file to findings: refused when tampered with, never changed by reading, the same bytes anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gpuaudit
from gpuaudit.analyze.finding import Document
from gpuaudit.analyze.load import parse_document
from gpuaudit.analyze.query import run_query
from gpuaudit.analyze.run import AnalyzeOptions, analyze, document_bytes
from gpuaudit.analyze.show import evidence_of, evidence_rows
from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.errors import BundleInvalid, NegativeAnswer, UsageError
from gpuaudit.bundle.keys import Identity
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.writer import BundleWriter
from tests.bundles import MemorySigner, StepClock, copy_bundle, open_writer
from tests.unit.analyze.test_conformance import everything

SIGNER = MemorySigner()
TRUST = AnalyzeOptions(trust=[SIGNER.identity])


def fill(path: Path) -> BundleWriter:
    """The scene of all findings through the real writer, some tables in several leaves."""
    writer = open_writer(path, SIGNER, clock=StepClock())
    for name, rows in everything().rows.items():
        table = TABLES[name]
        written = 0
        for cut in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            written += len(cut)
            writer.append_segment(table, from_records(table, cut), seen=written, written=written, lost=0)
    cost = [
        {"name": "recorder_cpu", "value": "12345678", "unit": "ns", "provenance": "measured", "definition": "CPU time"}
    ]
    writer.append_artefact("cost", json.dumps(cost).encode())
    return writer


def write(path: Path) -> Path:
    """The same, sealed."""
    writer = fill(path)
    counts = {t: str(len(rows)) for t, rows in everything().rows.items()}
    writer.seal({"tables": {t: {"seen": n, "written": n, "lost": "0"} for t, n in counts.items()}})
    writer.close()
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bundle") / "bundle.db")


@pytest.fixture(scope="module")
def analysed(bundle: Path) -> Document:
    """What is found in it."""
    return analyze(bundle, TRUST)


def digests(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        p.name: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in sorted(folder.iterdir())
    }


def test_twice_the_same_bytes_and_the_bundle_as_it_was(bundle: Path, analysed: Document) -> None:
    before = digests(bundle.parent)
    first = document_bytes(analysed)
    assert document_bytes(analyze(bundle, TRUST)) == first
    run_query(bundle, "SELECT count(*) FROM cuda_calls")
    assert digests(bundle.parent) == before
    document = parse_document(first)
    assert document.bundle["status"] == "SEALED"
    assert document.quality["grade"] == "A"
    found = {o.id for o in document.outcomes if o.state == "finding"}
    assert {"api_silence", "idle_allocation", "throttling", "late_rank"} <= found


PLACES = (("1", "Asia/Kathmandu", "C"), ("4242", "America/St_Johns", "C.UTF-8"))


def test_the_same_bytes_in_other_processes(bundle: Path, tmp_path: Path) -> None:
    """Other hash seed, time zone, locale and directory; side by side, so that both read the same installed tool."""
    code = (
        "import sys; from gpuaudit.analyze.run import *; from gpuaudit.bundle.keys import Identity\n"
        "o = AnalyzeOptions(trust=[Identity(bytes.fromhex(sys.argv[2]))])\n"
        "sys.stdout.buffer.write(document_bytes(analyze(sys.argv[1], o)))"
    )
    root = str(Path(gpuaudit.__file__).parent.parent)
    running = []
    for seed, zone, locale in PLACES:
        place = tmp_path / seed
        place.mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": locale, "PYTHONPATH": root}
        command = [sys.executable, "-c", code, str(bundle), SIGNER.public_key.hex()]
        running.append(subprocess.Popen(command, env=env, cwd=place, stdout=subprocess.PIPE))
    first, second = (p.communicate()[0] for p in running)
    assert [p.returncode for p in running] == [0, 0]
    assert len(first) > 10_000
    assert first == second


def test_the_path_is_not_in_the_findings(bundle: Path, analysed: Document, tmp_path: Path) -> None:
    elsewhere = copy_bundle(bundle, tmp_path / "elsewhere")
    data = document_bytes(analyze(elsewhere, TRUST))
    assert data == document_bytes(analysed)
    assert str(tmp_path).encode() not in data


def test_a_tampered_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = copy_bundle(bundle, tmp_path)
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(BundleInvalid) as e:
        analyze(copy, TRUST)
    assert e.value.exit_code == 3
    with pytest.raises(BundleInvalid):
        run_query(copy, "SELECT 1")


def test_an_unknown_signer_is_analysed_said_and_graded_c(bundle: Path) -> None:
    document = analyze(bundle)
    assert document.bundle["status"] == "UNKNOWN-SIGNER"
    assert document.quality["grade"] == "C"
    assert {x.grade for x in document.findings} | {x.grade for x in document.chains} == {"C"}
    assert document.bundle["notices"]


def test_an_unsealed_bundle_is_analysed_said_and_graded_c(tmp_path: Path) -> None:
    writer, path = fill(tmp_path / "bundle.db"), tmp_path / "crashed" / "bundle.db"
    path.parent.mkdir()
    for suffix in ("", "-wal"):  # as kill -9 leaves it: the writer has not closed the file
        shutil.copyfile(tmp_path / f"bundle.db{suffix}", path.with_name(path.name + suffix))
    writer.close()
    before = digests(path.parent)
    document = analyze(path, TRUST)
    assert document.bundle["status"] == "UNSEALED"
    assert document.quality["grade"] == "C"
    assert [c.detector for c in document.chains] == ["late_rank"]
    assert digests(path.parent) == before


def test_the_cost_of_the_recording_is_told(analysed: Document) -> None:
    (row,) = analysed.cost["rows"]
    assert row["quantity"]["value"] == "12345678"
    assert row["quantity"]["evidence"]


def test_every_query_of_the_document_through_the_locked_process(bundle: Path, analysed: Document) -> None:
    for id in (
        *(f.id for f in analysed.findings),
        *(c.id for c in analysed.chains),
        "cudaStreamSynchronize",
        "host_blocked",
    ):
        shown = evidence_rows(analysed, id, bundle)
        assert [(s.id, len(s.rows)) for s in shown] == [(e.id, e.rows) for e in evidence_of(analysed, id)]
        assert all(s.rows and "leaf" in s.columns for s in shown)


def test_show_refuses_another_bundle(analysed: Document, tmp_path: Path) -> None:
    other = write(tmp_path / "bundle.db")
    with pytest.raises(NegativeAnswer, match="is not the bundle"):
        evidence_rows(analysed, "C1", other)


def test_show_says_when_a_query_gives_other_rows(bundle: Path, analysed: Document) -> None:
    body = json.loads(document_bytes(analysed))
    entry = next(e for e in body["evidence"] if e["id"] == body["chains"][0]["evidence"][0])
    entry["query"] += " LIMIT 1"
    document = parse_document(json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    with pytest.raises(NegativeAnswer, match="its query gives 1"):
        evidence_rows(document, "C1", bundle)


def test_show_names_what_there_is(bundle: Path, analysed: Document) -> None:
    with pytest.raises(UsageError, match="there is: F1"):
        evidence_rows(analysed, "F99", bundle)


def test_a_query_answers_with_types(bundle: Path) -> None:
    result = run_query(
        bundle, "SELECT op, count(*) AS n, NULL AS nothing, 1.5::DECIMAL(3,1) AS d FROM nccl_calls GROUP BY op"
    )
    assert result.columns == ("op", "n", "nothing", "d")
    assert result.rows == (("ncclAllReduce", 200, None, "1.5"),)


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT * FROM read_text('/etc/passwd')", "disabled"),
        ("SELECT * FROM '/etc/passwd'", "does not exist"),
        ("SELECT * FROM glob('/*')", "disabled"),
        ("COPY cuda_calls TO 'x.csv'", "one SELECT"),
        ("SET threads=4", "one SELECT"),
        ("INSTALL httpfs", "one SELECT"),
        ("LOAD httpfs", "one SELECT"),
        ("ATTACH 'x.db'", "one SELECT"),
        ("DROP VIEW cuda_calls", "one SELECT"),
        ("CREATE TABLE t AS SELECT 1", "one SELECT"),
        ("PRAGMA database_list", "one SELECT"),
        ("SELECT 1; SELECT 2", "one SELECT"),
        ("", "one SELECT"),
        ("SELEC 1", "syntax error"),
        ("SELECT start FROM cuda_calls", 'Candidate bindings: "start_ns"'),
        ("SELECT 1 FROM calls", "there are: block_io, "),
        ("SELECT getenv('HOME')", "does not exist"),
        ("SELECT repeat('x', 100000000)", "bytes"),
        ("SELECT error('a' || chr(10) || 'b')", "SQL"),
    ],
)
def test_what_a_query_may_not_do_is_one_line(bundle: Path, sql: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as e:
        run_query(bundle, sql)
    assert words in str(e.value)
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_identities_are_options_of_the_document(bundle: Path) -> None:
    other = Identity(MemorySigner().public_key)
    document = analyze(bundle, AnalyzeOptions(trust=[other, SIGNER.identity]))
    assert document.options["trusted_identities"] == sorted([other.fingerprint, SIGNER.identity.fingerprint])
