"""Every call of a workload whose truth is known is in the evidence, once, with its own arguments."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gpuaudit.capture.attach import MECHANISMS, Mechanism
from gpuaudit.capture.probes import NCCL_DATATYPE_BYTES, PROBE_TABLE
from gpuaudit.capture.selection import Selection
from tests.doubles.build import build
from tests.integration.recording import Recording, Row, recording, start, truth, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

CALL_TABLES = ("cuda_calls", "nccl_calls", "nccl_comms")
TABLE_OF = {p.op: p.table for p in PROBE_TABLE}
MASK = (1 << 64) - 1

CHOSEN = Selection(pids=frozenset())
"""The process that a test includes and no other: its calls need not share the rings with what else this host does."""


def waiting(r: Recording, program: Path, folder: Path, *options: str | Path) -> subprocess.Popen[str]:
    """The workload, chosen, and waiting for ``folder / "go"``."""
    process = start(program, "--out", folder / "truth", "--pause-file", folder / "go", *options)
    wait_for_line(process, "at start")
    r.capture.include(process.pid)
    return process


def told(r: Recording, wanted: list[tuple[str, Row]]) -> str:
    """Where a call is that is no outermost row of its own, as the evidence tells it."""
    made = Counter((row["tid"], row["op"]) for _, row in wanted)
    threads = {tid for tid, _ in made}
    rows = [row for table in CALL_TABLES for row in r.rows[table] if row["tid"] in threads]
    facts = {
        "no outermost row": dict(made - Counter((row["tid"], row["op"]) for row in rows if row["parent_ns"] is None)),
        "inside others": Counter((row["tid"], row["op"], row["parent_op"]) for row in rows if row["parent_ns"]),
        "added up": [(t["tid"], t["op"], t["count"]) for t in r.rows["call_totals"] if t["tid"] in threads],
        "lost": {at: c.lost for at, c in r.counters.read().items() if c.lost},
        "probes (unmatched, misses)": {
            (p["op"], p["path"]): (p["unmatched"], p["misses"])
            for p in r.rows["probes"]
            if p["unmatched"] or p["misses"]
        },
        "gaps": sorted({g["reason"] for g in r.rows["gaps"]}),
    }
    return "\n".join(f"{name}: {fact}" for name, fact in facts.items())


def fold(unique_id: bytes) -> int:
    """The identity of a communicator, as reference/ingero-database.md gives it."""
    h = 0x9E3779B97F4A7C15
    for i in range(0, 128, 8):
        x = h ^ int.from_bytes(unique_id[i : i + 8], "little")
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        h = x ^ (x >> 31)
    return h


def expected(calls: list[Row]) -> list[tuple[str, Row]]:
    """(table, row) of every call that was made; a communicator's identity follows it from init to its end."""
    out = []
    comms: dict[tuple[int, int], Row] = {}
    for call in calls:
        table = TABLE_OF[call["op"]]
        values = dict(call["values"])
        if "unique_id" in values:
            values["comm_id"] = fold(bytes.fromhex(values.pop("unique_id")))
            if "comm_handle" in values:
                comms[call["pid"], values["comm_handle"]] = {k: values[k] for k in ("comm_id", "rank", "nranks")}
        elif "comm_handle" in values:
            values |= comms.get((call["pid"], values["comm_handle"]), {})
        if table == "nccl_calls":
            values["size_bytes"] = values["count"] * NCCL_DATATYPE_BYTES[values["datatype"]]
        out.append((table, {**{k: call[k] for k in ("op", "pid", "tid", "return_code")}, **values, "call": call}))
    return out


def check_calls(r: Recording, path: Path) -> None:
    """Same calls, same order in each thread, every column either the known value or null.

    What the libraries call themselves inside them is no call of the program's, and hangs on the one that it was.
    """
    wanted = expected(truth(path))
    pids = {row["pid"] for _, row in wanted}  # the host may have other workloads
    for table in CALL_TABLES:
        outermost = [row for row in r.rows[table] if row["pid"] in pids and row["parent_ns"] is None]
        assert len(outermost) == sum(t == table for t, _ in wanted), told(r, wanted)
    assert r.lost() == 0, told(r, wanted)
    calls = [row for table in CALL_TABLES for row in r.rows[table] if row["pid"] in pids]
    known = {(row["tid"], row["start_ns"], row["op"]) for row in calls}
    inner = [row for row in calls if row["parent_ns"] is not None]
    assert {(row["tid"], row["parent_ns"], row["parent_op"]) for row in inner} <= known
    probes = {p["probe"]: p["op"] for p in r.rows["probes"]}
    for table in CALL_TABLES:
        for tid in {row["tid"] for t, row in wanted if t == table}:
            rows = r.of(table, tid=tid, parent_ns=None)
            mine = [row for t, row in wanted if t == table and row["tid"] == tid]
            assert [row["op"] for row in rows] == [row["op"] for row in mine]
            for got, want in zip(rows, mine, strict=True):
                call = want.pop("call")
                want["probe"] = got["probe"] if probes[got["probe"]] == got["op"] else None
                free = {"start_ns", "duration_ns", "cpu", "seq"}
                assert {k: v for k, v in got.items() if k not in free} == {k: want.get(k) for k in got if k not in free}
                assert call["before_ns"] <= got["start_ns"]
                assert got["start_ns"] + got["duration_ns"] <= call["after_ns"]


def check_sequences(r: Recording) -> None:
    """On each CPU the attempts of a table are numbered without a hole."""
    for table in (*CALL_TABLES, "off_cpu"):
        for cpu in {row["cpu"] for row in r.rows[table]}:
            numbers = sorted(row["seq"] for row in r.rows[table] if row["cpu"] == cpu)
            assert numbers == list(range(len(numbers)))
        assert r.seen(table) == len(r.rows[table])


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("attach_first", [True, False], ids=["attached before the start", "attached while it runs"])
def test_every_call_with_its_arguments(doubles: Path, tmp_path: Path, mechanism: Mechanism, attach_first: bool) -> None:
    cudart, nccl = doubles / "libcudart.so.13", doubles / "libnccl.so.2"
    options: list[str | Path] = ["--cudart", cudart, "--nccl", nccl, "--rounds", "12", "--threads", "3"]
    with recording(CHOSEN, mechanism=mechanism) as r:
        if attach_first:
            assert r.capture.prepare([str(cudart), str(nccl)]) == []
        process = waiting(r, doubles / "calls", tmp_path, *options)
        if not attach_first:
            r.step()
        (tmp_path / "go").touch()
        r.run(process)
        r.finish()
        check_calls(r, tmp_path / "truth")
        check_sequences(r)
        probes = [p for p in r.of("probes") if p["hits"] is not None and p["path"] in (str(cudart), str(nccl))]
        assert {p["mechanism"] for p in probes} == {mechanism}
        pids = {c["pid"] for c in truth(tmp_path / "truth")}
        made = Counter(row["op"] for table in CALL_TABLES for row in r.rows[table] if row["pid"] in pids)
        assert {p["op"]: p["hits"] for p in probes if p["hits"]} == dict(made)
        assert sum(p["unmatched"] for p in probes) == 0


def test_endbr64_is_passed_over(doubles: Path, tmp_path: Path) -> None:
    """A function that begins with endbr64 is probed behind it, and its arguments are the same."""
    cudart = build("cudart", tmp_path, flags=["-fcf-protection=full"])
    with recording(CHOSEN) as r:
        r.capture.prepare([str(cudart)])
        assert {p["instruction"] for p in r.of("probes", path=str(cudart))} >= {"push after endbr64"}
        process = waiting(r, doubles / "calls", tmp_path, "--cudart", cudart)
        (tmp_path / "go").touch()
        r.run(process)
        r.finish()
        check_calls(r, tmp_path / "truth")


def test_single_stepped_functions_work_too(doubles: Path, tmp_path: Path) -> None:
    cudart = build("cudart", tmp_path, flags=["-fomit-frame-pointer", "-O1"])
    with recording(CHOSEN) as r:
        r.capture.prepare([str(cudart)])
        assert "single-stepped" in {p["instruction"] for p in r.of("probes", path=str(cudart))}
        process = waiting(r, doubles / "calls", tmp_path, "--cudart", cudart)
        (tmp_path / "go").touch()
        r.run(process)
        r.finish()
        check_calls(r, tmp_path / "truth")


@pytest.mark.parametrize(
    ("unique_id", "identity"),
    [
        (bytes(128), 0xA6701687D3CB53E0),
        (bytes(range(128)), 0x6BE39448E8F92CDA),
        (b"\xff" * 128, 0xF80BF6A99707EF72),
        (bytes(127) + b"\x01", 0x774CA144252B3328),
    ],
    ids=["zeros", "counting", "ones", "last byte"],
)
def test_identity_of_a_communicator(doubles: Path, tmp_path: Path, unique_id: bytes, identity: int) -> None:
    """The fold that runs in the kernel gives the published vectors for an id passed by value."""
    assert fold(unique_id) == identity
    code = (
        "import ctypes as C, sys; input()\n"
        "class Id(C.Structure): _fields_ = [('internal', C.c_char * 128)]\n"
        "C.CDLL(sys.argv[1], mode=C.RTLD_GLOBAL); nccl = C.CDLL(sys.argv[2])\n"
        "u = Id.from_buffer_copy(bytes.fromhex(sys.argv[3])); comm = C.c_void_p()\n"
        "nccl.ncclCommInitRank.argtypes = [C.c_void_p, C.c_int, Id, C.c_int]\n"
        "nccl.ncclCommInitRank(C.byref(comm), 1, u, -1)\n"
    )
    nccl = doubles / "libnccl.so.2"
    arguments: list[str | Path] = [doubles / "libcudart.so.13", nccl, unique_id.hex()]
    with recording(CHOSEN) as r:
        assert r.capture.prepare([str(nccl)]) == []
        process = start(sys.executable, "-c", code, *arguments, stdin=subprocess.PIPE)
        r.capture.include(process.pid)
        print(file=process.stdin, flush=True)
        r.run(process)
        r.finish()
    (row,) = r.of("nccl_comms", comm_id=identity)
    assert (row["comm_id"], row["rank"], row["nranks"], row["return_code"]) == (identity, -1, 1, 4)  # refused: rank −1
    assert row["comm_handle"] is None
