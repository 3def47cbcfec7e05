"""Every command on one synthetic capture, as a person without root and GPU would run them; none connects anywhere.

There is no engine to ask. The road is gone once, for setting a report takes half a minute: under strace, and in a
network namespace without even a loopback, where those can be had.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.capture.exposition import parse as parse_exposition
from tests.commands import audit, audit_here, environment

SQL = "SELECT op, count(*) AS n, max(stream) AS s FROM cuda_calls GROUP BY op ORDER BY op"

ROAD: dict[str, tuple[str, ...]] = {
    "capture": ("capture", "--synthetic", "late-rank", "--out", "a.db", "--challenge", "quarter 4", "--json"),
    "verify": ("verify", "a.db", "--receipt", "a.db.receipt", "--challenge", "quarter 4", "--json"),
    "analyze": ("analyze", "a.db", "--rate", "2.10", "--currency", "EUR", "--json"),
    "export": ("export", "a.findings.json", "--out", "a.prom"),
    "explain": ("explain", "a.db"),
    "query": ("query", "a.db", SQL, "--json"),
    "report": ("report", "a.findings.json", "--out", "packet", "--json"),
    "packet": ("verify", "packet", "--bundle", "a.db", "--json"),
}
"""Each in a process of its own."""

CALLS = ("socket", "connect", "sendto", "sendmsg", "bind")
SOCKET = re.compile(rf"\b({'|'.join(CALLS)})\(")
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", f"trace={','.join(CALLS)}", "-o")
"""The log's path follows."""

with_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic bundle, its findings, its packet, what each command printed, and its calls of sockets."""
    path = tmp_path_factory.mktemp("synthetic")
    env = environment(path / "keys")
    alone = ("unshare", "--user", "--map-root-user", "--net")
    offline = alone if audit("--version", env=env, prefix=alone).returncode == 0 else ()
    for name, args in ROAD.items():
        watched = (*STRACE, str(path / f"{name}.strace")) if shutil.which("strace") else ()
        done = audit(*args, env=env, cwd=path, prefix=(*offline, *watched))
        assert done.returncode == 0, done.stderr
        (path / f"{name}.out").write_text(done.stdout)
    return path


def run(folder: Path, *args: str, status: int = 0) -> str:
    """What a command says that only reads."""
    done = audit_here(*args, env=environment(folder / "keys"), cwd=folder)
    assert done.returncode == status, done.stderr
    return done.stdout


def told(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.out").read_text())


@with_strace
def test_no_command_opens_a_socket_to_anywhere(folder: Path) -> None:
    for name in ROAD:
        log = (folder / f"{name}.strace").read_text(errors="replace")
        calls = [line for line in log.splitlines() if SOCKET.search(line)]
        if name == "capture":  # attacher and recorder talk over a pair of their own, which no socket() makes
            calls = [c for c in calls if " sendmsg(" not in c and " sendto(" not in c]
        assert calls == [], name


@with_strace
def test_strace_would_see_a_socket(tmp_path: Path) -> None:
    """The first test can fail: a connection made the same way is seen."""
    script = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    subprocess.run([*STRACE, str(tmp_path / "log"), sys.executable, "-c", script], check=True)
    assert len([line for line in (tmp_path / "log").read_text().splitlines() if SOCKET.search(line)]) == 2


def test_capture_tells_what_it_sealed_and_verify_agrees(folder: Path) -> None:
    captured, verified = told(folder, "capture"), told(folder, "verify")
    assert (verified["status"], verified["exit_code"]) == ("SEALED", 0)
    for here, there in (
        ("origin", "origin"),
        ("root_b64", "root_b64"),
        ("size", "size"),
        ("file_sha256", "file_sha256"),
    ):
        assert captured[here] == verified[there]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--challenge", "quarter 5"], "CHALLENGE-MISMATCH"),
        (["--require-receipt"], "RECEIPT-ABSENT"),
        (["--cosigner", "keys/identity.pub.pem"], "COSIGNER-ABSENT"),
    ],
)
def test_verify_says_no_to_what_is_not_proven(folder: Path, options: list[str], word: str) -> None:
    assert run(folder, "verify", "a.db", *options, status=1).startswith(word)


def test_verify_with_the_receipt_of_another_capture(folder: Path, tmp_path: Path) -> None:
    text = (folder / "a.db.receipt").read_text()
    (tmp_path / "other").write_text(text.replace("leaf0_hash: ", "leaf0_hash: 0")[:-2] + "\n")
    assert run(folder, "verify", "a.db", "--receipt", str(tmp_path / "other"), status=1).startswith("RECEIPT-MISMATCH")


def test_analyze_prints_as_json_what_it_writes(folder: Path) -> None:
    assert (folder / "analyze.out").read_bytes() == (folder / "a.findings.json").read_bytes() + b"\n"
    assert told(folder, "analyze")["options"]["currency"] == "EUR"


def test_analyze_strict_on_evidence_that_is_not_complete(folder: Path, tmp_path: Path) -> None:
    """Nobody trusts the signer there, so that the grade is C at best."""
    out = tmp_path / "f.json"
    done = audit_here("analyze", "a.db", "--out", out, "--strict", env=environment(tmp_path / "none"), cwd=folder)
    assert done.returncode == 5
    assert "grade C" in done.stderr
    assert out.exists()


def test_analyze_prints_synthetic_first_and_every_statement(folder: Path, tmp_path: Path) -> None:
    lines = run(folder, "analyze", "a.db", "--out", str(tmp_path / "f.json")).splitlines()
    document = json.loads((tmp_path / "f.json").read_text())
    assert lines[0].startswith("SYNTHETIC")
    for statement in (*document["findings"], *document["chains"]):
        assert sum(f" {statement['id']}: " in line for line in lines) == 1
    assert "{" not in "".join(lines)


def test_show_gives_the_rows_of_the_evidence_table(folder: Path) -> None:
    document = told(folder, "analyze")
    rows = {e["id"]: e["rows"] for e in document["evidence"]}
    for statement in (*document["findings"], *document["chains"]):
        shown = json.loads(run(folder, "show", "a.findings.json", statement["id"], "--bundle", "a.db", "--json"))
        assert shown
        for entry in shown:
            assert len(entry["rows"]) == rows[entry["evidence"]]


def test_query_gives_the_same_rows_in_every_form(folder: Path) -> None:
    objects = told(folder, "query")
    table = [line.split() for line in run(folder, "query", "a.db", SQL).splitlines()]
    sheet = list(csv.reader(io.StringIO(run(folder, "query", "a.db", SQL, "--csv"))))
    assert table[0] == sheet[0] == list(objects[0]) == ["op", "n", "s"]
    assert [row[:2] for row in table[1:]] == [row[:2] for row in sheet[1:]] == [[o["op"], str(o["n"])] for o in objects]
    assert sum(o["n"] for o in objects) == told(folder, "capture")["totals"]["cuda_calls"]["written"]


def test_explain_and_its_json(folder: Path) -> None:
    assert (folder / "explain.out").read_text().startswith("SYNTHETIC")
    assert json.loads(run(folder, "explain", "a.db", "--json"))["bundle"]["synthetic"] is True


def test_export_gives_every_rank_its_ratio_and_every_gpu_its_memory(folder: Path) -> None:
    samples = parse_exposition((folder / "a.prom").read_text(encoding="utf-8")).samples
    ratios = [s for s in samples if s.metric == "arca_gpu_compute_efficiency_ratio" and s.labels["pid"]]
    assert {s.labels["shard"].partition(" (")[0] for s in ratios} == {f"rank {r} of 4" for r in range(4)}
    assert all(0 <= s.value <= 1 for s in ratios)
    memory = [s for s in samples if s.metric == "arca_vram_topology_bytes"]
    assert len({s.labels["gpu"] for s in memory}) == 4
    assert {"unattributed", "driver_reserved"} <= {s.labels["category"] for s in memory}


def test_packet_and_its_bundle(folder: Path) -> None:
    assert set(told(folder, "report")["sizes"]) == {p.name for p in (folder / "packet").iterdir()}
    verified = told(folder, "packet")
    assert (verified["status"], verified["exit_code"]) == ("VERIFIED", 0)


def test_probes_tell_every_function_and_its_table(folder: Path) -> None:
    """Per library a title, the column names and a line for each function; a blank line between."""
    rows = json.loads(run(folder, "probes", "--json"))
    assert {r["op"] for r in rows} >= {"cudaMalloc", "cudaLaunchKernel", "ncclAllReduce", "ncclCommInitRank"}
    libraries = list(dict.fromkeys(r["library"] for r in rows))
    assert libraries == ["cudart", "driver", "hip", "nccl", "rccl"]
    assert len(run(folder, "probes").splitlines()) == len(rows) + 2 * len(libraries) + len(libraries) - 1
    hip = run(folder, "probes", "--library", "hip")
    assert "not on the real library" in hip.splitlines()[0]
    assert len(hip.splitlines()) == sum(r["library"] == "hip" for r in rows) + 2
    assert {r["note"] for r in rows if r["library"] in ("cudart", "driver", "nccl")} == {""}
