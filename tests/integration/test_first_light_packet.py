"""A capture that has something of everything, to a signed packet that verifies and whose every number leads to rows.

One workload with a late rank, beside a double of NVML with a GPU that is throttled and one that is held and idle: all
through the ``audit`` command, recorded for real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.build import build
from tests.integration.road import Road, listing, number, outcome, road, sha256
from tests.integration.told import told

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

HW_THERMAL_SLOWDOWN = 0x40
HELD_BYTES = 8 << 30
TOOLS = ("openssl", "ssh-keygen", "xxd", "pdfsig", "pdfdetach", "pdfinfo", "sha256sum", "pdftotext")

OTHER_HOST = {"PYTHONHASHSEED": "77", "TZ": "Asia/Kolkata", "LC_ALL": "C", "COLUMNS": "40"}
"""What must change no byte of any output."""


@pytest.fixture(scope="module")
def made(doubles: Path, bpf: None) -> Iterator[Road]:
    """``train.db``, its findings and its packet, as one person makes them. Nothing may change them afterwards."""
    with road(doubles) as r:
        (r.folder / "nvml").mkdir()
        build("nvml", r.folder / "nvml")
        script = r.folder / "nvml.script"
        lines = [
            "gpus 2", f"0 0 event_reasons {HW_THERMAL_SLOWDOWN}", "0 0 clock_sm 900", "0 0 utilization 80",
            "0 1 utilization 0", f"0 1 process {os.getpid()} {HELD_BYTES}",
        ]  # fmt: skip
        script.write_text("\n".join(lines) + "\n")
        ranks: list[str | Path] = [r.folder / "bin" / "ranks", "--out", r.folder / "truth", "--step-ms", "90"]
        late = ["--late-rank", "1", "--late-ms", "30"]
        nvml = {"LD_LIBRARY_PATH": str(r.folder / "nvml"), "DOUBLE_NVML_SCRIPT": str(script)}
        r.capture("train", *ranks, *late, env=nvml)
        r.findings("train", "--report", "packet", "--rate", "2.50")
        yield r


@pytest.fixture(scope="module")
def document(made: Road) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((made.folder / "train.findings.json").read_bytes())
    return loaded


def test_first_light_rules_fire_on_what_was_recorded(made: Road, document: dict[str, Any]) -> None:
    states = {o["id"]: o["state"] for o in document["outcomes"]}
    detectors = {c["detector"] for c in document["chains"]}
    assert {i for i, s in states.items() if s == "finding"} - detectors == {"idle_allocation", "throttling"}
    assert states["late_rank"] == "finding"
    assert states["api_silence"] == "clear"
    # some kernels leave out switches of threads: a gap each time, and never a grade A
    reasons = [str(r) for r in document["quality"]["reasons"]]
    assert [r for r in reasons if "the kernel did not tell when" not in r] == []
    assert document["quality"]["grade"] == ("B" if reasons else "A")
    truth = told(made.folder / "truth")
    (chain,) = [c for c in document["chains"] if c["detector"] == "late_rank"]
    assert (chain["subject"]["rank"], chain["subject"]["pid"]) == ("1", str(truth.pids[1]))
    found = {f["rule"]: f for f in document["findings"]}
    (first,) = [f for f in document["findings"] if f["rule"] == "throttling"]
    assert first["subject"]["gpu_index"] == "0"
    throttled, observed = number(first["values"]["throttled"]), number(first["values"]["observed"])
    (sampled,) = made.query("train", "SELECT sum(duration_ns) AS ns FROM nvml_samples WHERE gpu_index = 0")
    assert throttled == observed == int(sampled["ns"])
    idle = found["idle_allocation"]
    assert (idle["subject"]["gpu_index"], idle["subject"]["pid"]) == ("1", str(os.getpid()))
    assert number(idle["values"]["idle"]) == number(idle["values"]["observed"])
    held = made.query("train", "SELECT DISTINCT pid, memory_used_bytes AS bytes FROM nvml_processes")
    assert held == [{"pid": os.getpid(), "bytes": HELD_BYTES}]


def quantities(value: Any) -> Iterator[dict[str, Any]]:
    """Every quantity in a part of the document."""
    if isinstance(value, dict):
        if {"value", "unit", "provenance"} <= value.keys():
            yield value
        for v in value.values():
            yield from quantities(v)
    elif isinstance(value, list):
        for v in value:
            yield from quantities(v)


def test_first_light_every_figure_leads_to_as_many_rows_as_it_says(made: Road, document: dict[str, Any]) -> None:
    entries = {e["id"]: e for e in document["evidence"]}
    parts = [document[p] for p in ("findings", "chains", "operations", "waste", "cost")]
    recorded = [q for q in quantities(parts) if q["value"] is not None and q["provenance"] in ("measured", "derived")]
    assert len(recorded) > 100
    assert [q for q in recorded if not q.get("evidence")] == []
    assert {i for q in quantities(document) for i in q.get("evidence", [])} <= entries.keys()
    counted = " UNION ALL ".join(f"SELECT '{i}' AS id, count(*) AS n FROM ({e['query']})" for i, e in entries.items())
    got = {row["id"]: row["n"] for row in made.query("train", counted)}
    assert got == {i: e["rows"] for i, e in entries.items()}
    assert all(e["rows"] for i, e in entries.items() if any(i in c["evidence"] for c in document["chains"]))
    leaves = " UNION ALL ".join(
        f"SELECT '{i}' AS id, leaf FROM (SELECT DISTINCT leaf FROM ({e['query']}))" for i, e in entries.items()
    )
    read: dict[str, set[int]] = {i: set() for i in entries}
    for row in made.query("train", leaves):
        read[row["id"]].add(row["leaf"])
    assert read == {i: set(e["leaves"]) for i, e in entries.items()}


def test_first_light_packet_verifies(made: Road) -> None:
    done = made.run("verify", "packet", "--bundle", "train.db")
    assert done.stdout.startswith("VERIFIED  ")
    assert "NO " not in done.stdout
    assert "printed again, byte for byte" in done.stdout
    made.run("verify", "train.db", "--receipt", "train.db.receipt", "--require-receipt")


def said(folder: Path, *command: str, env: dict[str, str] | None = None) -> str:
    """What a tool says that must succeed."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(any(shutil.which(t) is None for t in TOOLS), reason=f"needs {', '.join(TOOLS)}")
def test_first_light_packet_is_accepted_by_tools_of_others(made: Road, document: dict[str, Any]) -> None:
    """The commands of VERIFY.txt, pdfsig and ``openssl cms`` among them, in a shell that knows nothing of us."""
    packet = made.folder / "packet"
    commands = [x.strip() for x in (packet / "VERIFY.txt").read_text().splitlines() if x.startswith("    ")]
    assert {"pdfsig", "openssl cms"} <= {tool for tool in ("pdfsig", "openssl cms") for c in commands if tool in c}
    env = {"PATH": "/usr/bin:/bin", "IDENTITY": str(made.folder / "keys" / "identity.pub.pem"), "LC_ALL": "C"}
    said(packet, "sh", "-euxc", "\n".join(commands), env=env)
    signed = said(packet, "pdfsig", "-nocert", "report.pdf")
    assert "Signature is Valid" in signed
    assert "Total document signed" in signed
    page1 = said(packet, "pdftotext", "-l", "1", "report.pdf", "-")
    assert f"Grade {document['quality']['grade']}" in page1
    assert "SYNTHETIC" not in page1


def test_first_light_reading_changes_nothing(made: Road) -> None:
    """analyze twice gives the same bytes; no question leaves a trace in or beside the evidence."""
    before = listing(made.folder)
    assert "train.db" in before
    elsewhere = made.folder / "elsewhere"
    elsewhere.mkdir()
    bundle = made.folder / "train.db"
    made.run("analyze", bundle, "--rate", "2.50", "--out", elsewhere / "again.json", cwd=elsewhere, env=OTHER_HOST)
    assert sha256(elsewhere / "again.json") == before["train.findings.json"]
    shown = made.run("show", "train.findings.json", "C1", "--bundle", "train.db").stdout
    assert "rows of nccl_calls" in shown
    made.run("explain", "train.db")
    made.run("query", "train.db", "SELECT count(*) FROM off_cpu")
    made.run("verify", "train.db")
    shutil.rmtree(elsewhere)
    assert listing(made.folder) == before


def test_first_light_two_renders_are_byte_equal(made: Road) -> None:
    """HTML and unsigned PDF of a recorded capture, printed under another hash seed, time zone, locale and folder."""
    again = made.folder / "another place"
    again.mkdir()
    made.run("report", "../train.findings.json", "--out", "p", cwd=again, env=OTHER_HOST)
    first, second = made.folder / "packet", again / "p"
    for name in ("report.html", "findings.json"):
        assert sha256(first / name) == sha256(second / name)
    manifests = [json.loads((p / "manifest.json").read_bytes()) for p in (first, second)]
    size = int(manifests[0]["pdf"]["unsigned_size"])
    assert manifests[0]["pdf"]["unsigned_sha256"] == manifests[1]["pdf"]["unsigned_sha256"]
    assert (first / "report.pdf").read_bytes()[:size] == (second / "report.pdf").read_bytes()[:size]
    shutil.rmtree(again)


def test_first_light_outcomes_say_what_they_rest_on(document: dict[str, Any]) -> None:
    """The silence rule had 5 s to look at, and every outcome says what it rests on."""
    start_ns, end_ns = (int(document["window"][k]) for k in ("start_ns", "end_ns"))
    assert end_ns - start_ns > 5 * 10**9
    assert all(outcome(document, o["id"])["reason"] for o in document["outcomes"])
