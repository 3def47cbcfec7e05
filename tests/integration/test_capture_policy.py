"""A capture under a site's policy: what it denies is not attached, and the sealed evidence says so."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.verify import verify
from tests.integration.recording import truth
from tests.integration.sessions import capture, environment, rows, trust

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

POLICY = """
[capture]
sources = ["cuda", "nccl"]
max_duration = "10 min"
[capture.ops]
deny = ["cudaLaunchKernel", "ncclAllReduce"]
[capture.tables]
deny = ["nccl_comms"]
"""
DENIED = "denied by the site policy"


def test_what_is_denied_is_not_attached_and_the_bundle_says_so(doubles: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "policy.toml", tmp_path / "a.db"
    path.write_text(POLICY)
    workload: list[str | Path] = [doubles / "ranks", "--out", tmp_path / "truth", "--steps", "5"]
    done = capture(["--policy", path, "--out", out, "--", *workload], environment(tmp_path / "keys"))
    assert done.returncode == 0, done.stderr
    assert verify(out, trust=trust(tmp_path / "keys")).status == "SEALED"

    made = Counter(r["op"] for file in tmp_path.glob("truth.*") for r in truth(file) if "before_ns" in r)
    recorded = Counter(r["op"] for table in ("cuda_calls", "nccl_calls", "nccl_comms") for r in rows(out, table))
    denied = {op for op in made if op in ("cudaLaunchKernel", "ncclAllReduce") or op.startswith("ncclComm")}
    assert {"ncclAllReduce", "ncclCommInitRank"} <= denied
    told = {op: n for op, n in recorded.items() if op in made}  # NCCL calls functions that the workload does not
    assert told == {op: n for op, n in made.items() if op not in denied}
    assert not denied & set(recorded)
    probes = rows(out, "probes")
    assert {p["op"] for p in probes if p["library"] != "kernel"} >= {op for op in made if op not in denied}
    assert not {p["op"] for p in probes} & {*denied, "sched_switch"}

    gaps = [g for g in rows(out, "gaps") if g["reason"].startswith(DENIED)]
    by_table = {(g["source"], g["table_name"]): g["reason"] for g in gaps}
    assert "cudart cudaLaunchKernel" in by_table["cuda", "cuda_calls"]
    assert "ncclAllReduce" in by_table["nccl", "nccl_calls"]
    assert "ncclCommInitRank" in by_table["nccl", "nccl_comms"]
    assert by_table["off_cpu", "off_cpu"] == by_table["nvml", "nvml_samples"] == DENIED
    with Bundle.open(out) as bundle:
        artefacts = {
            name: json.loads(data) for _, name, data in bundle.artefacts() if name in ("site_policy", "sources")
        }
        options = bundle.open_body["options"]
    sealed = artefacts["site_policy"]
    assert sealed["text"] == POLICY
    assert sealed["sha256"] == options["policy_sha256"] == hashlib.sha256(POLICY.encode()).hexdigest()
    assert ("op", "cudaLaunchKernel") in {(d["kind"], d["name"]) for d in sealed["denied"]}
    states = {s["source"]: (s["state"], s["reason"]) for s in artefacts["sources"]}
    assert states["off_cpu"] == states["nvml"] == states["engines"] == ("not recorded", DENIED)
    assert states["nccl"][0] == "partly recorded"
    assert DENIED in states["nccl"][1]


def test_a_longer_duration_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    done = capture(
        ["--policy", tmp_path / "policy.toml", "--duration", "11m", "--out", tmp_path / "a.db"],
        environment(tmp_path / "keys"),
    )
    assert done.returncode == 2
    assert DENIED in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["policy.toml"]
