"""What a site's policy allows: each key, what follows from it, and what `audit check --policy` says and ends with."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import UsageError
from gpuaudit.capture import engine_command, identity
from gpuaudit.capture.capability_needs import at_start
from gpuaudit.capture.environment import limit_variables
from gpuaudit.capture.obey import (
    capabilities_at_start,
    denied_functions,
    denied_sources,
    obeying,
    why_not_recorded,
)
from gpuaudit.capture.options import CaptureOptions
from gpuaudit.capture.policy_file import PolicyFile
from gpuaudit.capture.probes import LIBRARIES, Probe
from gpuaudit.capture.site_policy import TABLES, VARIABLES, SitePolicy
from gpuaudit.capture.source import SELECTABLE_SOURCES, TABLES_OF_SOURCE
from tests.commands import audit as run_audit
from tests.commands import environment

DENIED = "denied by the site policy"


def audit(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_audit("check", "--policy", folder / "policy.toml", *arguments, env=environment(folder))


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    limit_variables(None)


def policy(text: str) -> SitePolicy:
    return SitePolicy.of(PolicyFile(text.encode(), "policy.toml"))


def obeyed(text: str, **options: object) -> CaptureOptions:
    return obeying(CaptureOptions(policy=policy(text), **options))  # type: ignore[arg-type]


def denied(text: str) -> dict[str, set[str]]:
    """What the comparison says no to: kind → names."""
    out: dict[str, set[str]] = {}
    for v in policy(text).verdicts():
        if not v.allowed:
            out.setdefault(v.kind, set()).add(v.name)
    return out


@pytest.mark.parametrize("text", ["", "[capture]", '[thresholds]\n"idle_allocation.idle_ns" = "1 s"'])
def test_what_is_not_named_is_allowed(text: str) -> None:
    assert denied(text) == {}
    assert obeyed(text).sources == SELECTABLE_SOURCES
    assert capabilities_at_start(obeyed(text)) == at_start()
    assert not policy(text).denied_ops()


def test_a_denied_source_is_not_captured_and_says_why() -> None:
    options = obeyed('[capture.sources]\ndeny = ["off_cpu", "nvml"]')
    assert set(SELECTABLE_SOURCES) - set(options.sources) == {"off_cpu", "nvml"}
    assert why_not_recorded(options, "off_cpu") == DENIED
    assert [(c.source, c.available, c.reason) for c in denied_sources(options)] == [("nvml", False, DENIED)]
    assert why_not_recorded(CaptureOptions(sources=("cuda",)), "off_cpu") == "not asked for"


def test_only_allowed_sources_are_left() -> None:
    assert obeyed('[capture]\nsources = ["cuda", "nccl"]').sources == ("cuda", "nccl")
    assert obeyed('[capture]\nsources = ["cuda", "nccl"]', sources=("off_cpu", "nccl")).sources == ("nccl",)
    with pytest.raises(UsageError, match=DENIED):
        obeyed('[capture]\nsources = ["cuda"]', sources=("nvml",))


@pytest.mark.parametrize("source", [s for s in SELECTABLE_SOURCES if s not in ("cuda", "nccl")])
def test_a_source_whose_tables_cannot_be_told_apart_is_whole_or_not_at_all(source: str) -> None:
    table = TABLES_OF_SOURCE[source][-1]
    assert policy(f'[capture.tables]\ndeny = ["{table}"]').why_not_source(source) == f"{DENIED}: table {table}"


def test_a_denied_table_of_calls_takes_its_functions_and_no_others() -> None:
    p = policy('[capture.tables]\ndeny = ["nccl_comms"]')
    assert p.why_not_source("nccl") == ""
    nccl = next(x for x in LIBRARIES if x.name == "nccl")
    assert {op for library, op in p.denied_ops() if library == "nccl"} == {
        q.op for q in nccl.probes if q.table == "nccl_comms"
    }
    assert not {op for library, op in p.denied_ops() if library == "cudart"}


def test_libraries_and_ops_by_name_and_pattern() -> None:
    p = policy(
        '[capture.libraries]\ndeny = ["driver"]\n[capture.ops]\nallow = ["cudaMem*", "nccl*"]\ndeny = ["ncclSend"]'
    )
    assert not p.why_not_probe("cudart", _probe("cudart", "cudaMemset"))
    assert p.why_not_probe("cudart", _probe("cudart", "cudaLaunchKernel")) == f"{DENIED}: op cudaLaunchKernel"
    assert p.why_not_probe("nccl", _probe("nccl", "ncclSend")) == f"{DENIED}: op ncclSend"
    assert not p.why_not_probe("nccl", _probe("nccl", "ncclRecv"))
    driver = next(x for x in LIBRARIES if x.name == "driver")
    assert {op for library, op in p.denied_ops() if library == "driver"} == {q.op for q in driver.probes}


def _probe(library: str, op: str) -> Probe:
    return next(p for x in LIBRARIES if x.name == library for p in x.probes if p.op == op)


def test_functions_that_are_not_probed_are_a_gap_of_their_table() -> None:
    options = obeyed('[capture.ops]\ndeny = ["cudaMalloc", "ncclSend"]', sources=("cuda", "nccl"))
    gaps = [row for table, row in denied_functions(options) if table == "gaps"]
    told = {(g["source"], g["table_name"], g["reason"]) for g in gaps}
    assert ("cuda", "cuda_calls", f"{DENIED}: cudart cudaMalloc") in told
    assert ("nccl", "nccl_calls", f"{DENIED}: nccl ncclSend") in told
    assert all(g["duration_ns"] is None for g in gaps)
    assert not [*denied_functions(CaptureOptions())]
    only = obeyed('[capture.ops]\ndeny = ["cudaMalloc", "ncclSend"]', sources=("nccl",))
    assert {row["source"] for _, row in denied_functions(only)} == {"nccl"}


def test_stacks_can_be_denied() -> None:
    assert "stacks" not in obeyed("[capture]\nstacks = false").sources
    assert denied("[capture]\nstacks = false") == {"source": {"stacks"}, "stacks": {"stacks"}}


def test_capabilities_that_are_not_allowed_are_not_taken() -> None:
    names = '["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_SETUID"]'
    options = obeyed(f"[capture]\ncapabilities = {names}")
    assert capabilities_at_start(options) == {"CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_SETUID"}
    assert "cuda" in options.sources


def test_a_capability_that_bpf_cannot_do_without_takes_its_sources() -> None:
    options = obeyed('[capture.capabilities]\ndeny = ["CAP_BPF"]')
    assert options.sources == ("nvml", "engines")
    assert why_not_recorded(options, "cuda") == f"{DENIED}: CAP_BPF"


def test_variables_of_other_processes(tmp_path: Path) -> None:
    environment = b"RANK=3\0LOCAL_RANK=1\0WORLD_SIZE=8\0"
    assert identity.ranks(environment).rank == 3
    obeyed('[capture.environment]\ndeny = ["RANK", "VLLM_*"]')
    assert identity.ranks(environment).rank is None
    assert "RANK" in VARIABLES
    assert {v for names in engine_command.VARIABLES.values() for v in names} < set(VARIABLES)
    assert denied("[capture]\nenvironment = []")["environment"] == {"of other processes"}
    assert denied('[capture.environment]\ndeny = ["RANK"]') == {"variable": {"RANK"}}


def test_the_longest_duration() -> None:
    text = '[capture]\nmax_duration = "10 min"'
    assert obeyed(text).duration_s == 600
    assert obeyed(text, command=("true",)).duration_s == 600
    assert obeyed(text, duration_s=60.0).duration_s == 60
    assert obeyed(text, synthetic="late-rank").duration_s is None
    with pytest.raises(UsageError, match=f"longer than 600 s: {DENIED}"):
        obeyed(text, duration_s=601.0)


def test_engines_elsewhere() -> None:
    text = "[capture]\nremote_engines = false"
    assert obeyed(text).allow_remote == ()
    with pytest.raises(UsageError, match=DENIED):
        obeyed(text, allow_remote=("http://192.0.2.1:8000",))
    assert obeyed("", allow_remote=("http://192.0.2.1:8000",)).allow_remote


def test_the_artefact_holds_the_file_and_every_denial() -> None:
    text = '[capture]\nstacks = false  # none here\n[capture.tables]\ndeny = ["tcp_retransmits"]\n'
    body = policy(text).artefact()
    assert body["text"] == text
    assert body["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert {(d["kind"], d["name"]) for d in body["denied"]} == {
        ("source", "stacks"), ("stacks", "stacks"), ("table", "tcp_retransmits"), ("source", "tcp"),
    }  # fmt: skip
    assert all(d["reason"].startswith(DENIED) for d in body["denied"])
    json.dumps(body)


def test_every_table_that_a_source_fills_can_be_denied() -> None:
    assert set(TABLES) == {t for s in SELECTABLE_SOURCES for t in TABLES_OF_SOURCE[s]}


def test_check_compares_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('[capture]\nmax_duration = "5 min"\n[capture.ops]\ndeny = ["cudaMalloc"]\n[thresholds]\n')
    done = audit(tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert f"NO  op cudaMalloc: {DENIED}: op cudaMalloc" in lines
    assert any(x.startswith("ok  capability CAP_BPF: ") for x in lines)
    assert "    a capture may last 300 s" in lines
    assert any("[thresholds] is for audit analyze" in x for x in lines)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in lines[-1]
    path.write_text("[capture]\n")
    done = audit(tmp_path, "--json")
    assert done.returncode == 0
    assert all(v["allowed"] for v in json.loads(done.stdout)["verdicts"])
    assert audit(tmp_path, "--self").returncode == 2
