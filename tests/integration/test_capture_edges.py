"""What a capture says when it could not see everything: gaps, open calls, losses, who is evidence and who is not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture import processes
from gpuaudit.capture.probes import LIBRARIES
from gpuaudit.capture.ring import HEADER_BYTES
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.settings import Settings
from tests.integration.recording import recording, start, truth, wait_for_line

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]


def test_communicator_made_before_attach_has_no_identity(doubles: Path, tmp_path: Path) -> None:
    """Its collectives are recorded; whose they are is null, and a gap says from when to when nothing was seen."""
    go = tmp_path / "go"
    process = start(
        doubles / "ranks", "--out", tmp_path / "truth", "--ranks", "2", "--steps", "4", "--pause-at", "init",
        "--pause-file", go,
    )  # fmt: skip
    wait_for_line(process, "at init")
    wait_for_line(process, "at init")
    with recording() as r:
        r.step()
        go.touch()
        r.run(process)
        r.finish()
        pids = [truth(tmp_path / f"truth.{rank}")[0]["pid"] for rank in range(2)]
        collectives = [c for pid in pids for c in r.of("nccl_calls", pid=pid)]
        assert len(collectives) == 8
        assert {(c["comm_id"], c["rank"], c["nranks"]) for c in collectives} == {(None, None, None)}
        assert {(c["size_bytes"], c["datatype"]) for c in collectives} == {(4000, 7)}
        ended = [c for pid in pids for c in r.of("nccl_comms", pid=pid)]
        assert [(c["op"], c["comm_id"]) for c in ended] == [("ncclCommDestroy", None)] * 2
        for pid in pids:
            gaps = {g["table_name"]: g for g in r.of("gaps", pid=pid)}
            assert set(gaps) == {"cuda_calls", "nccl_calls", "nccl_comms"}
            (began,) = {row["start_ns"] for row in r.of("processes", pid=pid, op="found")}
            attached = {p["library"]: p["start_ns"] for p in r.of("probes") if p["path"].startswith(str(doubles))}
            for table, gap in gaps.items():
                library = "cudart" if table == "cuda_calls" else "nccl"
                assert gap["start_ns"] == began
                assert gap["start_ns"] + gap["duration_ns"] == attached[library]


@pytest.mark.parametrize("blocking", ["0", "1"], ids=["asynchronous", "blocking"])
@pytest.mark.parametrize("init", ["plain", "config"])
def test_ranks_share_an_identity(doubles: Path, tmp_path: Path, blocking: str, init: str) -> None:
    """Four processes, one communicator; counts equal the program's own; nothing is lost and there is no gap."""
    cudart, nccl = doubles / "libcudart.so.13", doubles / "libnccl.so.2"
    environment = {**os.environ, "NCCL_DOUBLE_BLOCKING": blocking}
    with recording() as r:
        r.capture.prepare([str(cudart), str(nccl)])
        r.run(start(doubles / "ranks", "--out", tmp_path / "t", "--steps", "20", "--init", init, env=environment))
        r.finish()
        identities = set()
        for rank in range(4):
            told = truth(tmp_path / f"t.{rank}")
            mine = {"pid": told[0]["pid"]}
            made = [*r.of("cuda_calls", **mine), *r.of("nccl_calls", **mine), *r.of("nccl_comms", **mine)]
            counts = {op: sum(c["op"] == op for c in made) for op in told[-1]["counts"]}
            assert counts == told[-1]["counts"]
            assert {(c["rank"], c["nranks"]) for c in r.of("nccl_calls", **mine)} == {(rank, 4)}
            identities |= {c["comm_id"] for c in (*r.of("nccl_calls", **mine), *r.of("nccl_comms", **mine))}
            assert r.of("gaps", **mine) == []
            assert {p["op"] for p in r.of("processes", **mine)} == {"found", "exited"}
        assert len(identities) == 1
        assert None not in identities
        assert r.lost() == 0


def test_calls_open_at_the_end_are_rows_without_a_duration(doubles: Path, tmp_path: Path) -> None:
    """Rank 1 never comes: rank 0 hangs in its collective, and the evidence says so; also where a kill cut it short."""
    environment = {**os.environ, "NCCL_DOUBLE_BLOCKING": "1"}
    libraries = [str(doubles / "libcudart.so.13"), str(doubles / "libnccl.so.2")]
    command: list[str | Path] = [
        doubles / "ranks",
        "--out",
        tmp_path / "t",
        "--ranks",
        "2",
        "--late-rank",
        "1",
        "--late-ms",
        "600000",
    ]
    with recording() as r:
        r.capture.prepare(libraries)
        processes = [start(*command, env=environment, start_new_session=True) for _ in range(2)]
        try:
            hung: list[int] = []
            while len(hung) < 2:
                r.step()
                parents = {row["pid"]: row["parent_pid"] for row in r.of("processes")}
                launched = {row["pid"] for row in r.of("cuda_calls", op="cudaLaunchKernel")}
                hung = [pid for pid in launched if parents.get(pid) in {p.pid for p in processes}]
            killed = hung[0]
            while not is_waiting(killed):
                pass
            os.kill(killed, signal.SIGKILL)
            while not r.of("processes", pid=killed, op="exited"):
                r.step()
            r.finish()
        finally:
            for p in processes:
                os.killpg(p.pid, signal.SIGKILL)
                p.communicate()
        calls = [c for pid in hung for c in r.of("nccl_calls", pid=pid)]
        assert [c["pid"] for c in calls] == hung
        assert {(c["duration_ns"], c["return_code"]) for c in calls} == {(None, None)}
        assert {c["rank"] for c in calls} == {0}
        assert r.seen("nccl_calls") == len(r.rows["nccl_calls"])


def is_waiting(pid: int) -> bool:
    """Whether the main thread sleeps in a futex: it is in the barrier then."""
    return "futex" in Path(f"/proc/{pid}/wchan").read_text("ascii")


def test_losses_are_exact(doubles: Path, tmp_path: Path) -> None:
    """A ring of one page overflows; what was lost and what came through add up to what the program made."""
    cudart = doubles / "libcudart.so.13"
    page = os.sysconf("SC_PAGE_SIZE")
    command: list[str | Path] = [
        doubles / "calls",
        "--cudart",
        cudart,
        "--out",
        tmp_path / "t",
        "--rounds",
        "40",
        "--threads",
        "4",
    ]
    process = start(*command, "--pause-file", tmp_path / "go")
    wait_for_line(process, "at start")
    with recording(
        Selection(pids=frozenset({process.pid})),
        ring_sizes_bytes={"cuda_calls": page},
        settings=Settings(budget_per_s=0),
    ) as r:
        r.capture.prepare([str(cudart)])
        (tmp_path / "go").touch()
        process.communicate()
        r.finish()
        made = len(truth(tmp_path / "t"))
        counters = [c for (table, _), c in r.counters.read().items() if table == "cuda_calls"]
        rows = r.rows["cuda_calls"]
        assert sum(c.seen for c in counters) == made
        assert sum(c.lost for c in counters) == made - len(rows) > 0
        record = TABLES["cuda_calls"].record_dtype().itemsize + HEADER_BYTES
        assert len(rows) == (page - 1) // record  # a full ring is never filled to the brim
        numbers = {(row["cpu"], row["seq"]) for row in rows}
        assert len(numbers) == len(rows)


def test_selected_processes_and_their_children_only(doubles: Path, tmp_path: Path) -> None:
    cudart, nccl = str(doubles / "libcudart.so.13"), str(doubles / "libnccl.so.2")
    go = tmp_path / "go"
    chosen = start(
        doubles / "ranks", "--out", tmp_path / "chosen", "--ranks", "2", "--steps", "5", "--pause-at", "start",
        "--pause-file", go,
    )  # fmt: skip
    wait_for_line(chosen, "at start")
    with recording(Selection(pids=frozenset({chosen.pid}), role="workload")) as r:
        r.capture.prepare([cudart, nccl])
        other = start(doubles / "calls", "--cudart", cudart, "--out", tmp_path / "other")
        r.run(other)
        go.touch()
        r.run(chosen)
        r.finish()
        ranks = {truth(tmp_path / f"chosen.{rank}")[0]["pid"] for rank in range(2)}
        assert {c["pid"] for c in r.of("cuda_calls")} == ranks
        assert other.pid not in {row["pid"] for row in r.of("off_cpu")}
        assert {p["pid"] for p in r.of("processes", role="workload")} == ranks | {chosen.pid}


def test_excluded_processes_are_no_evidence(doubles: Path, tmp_path: Path) -> None:
    cudart, go = doubles / "libcudart.so.13", tmp_path / "go"
    process = start(doubles / "calls", "--cudart", cudart, "--out", tmp_path / "t", "--pause-file", go)
    wait_for_line(process, "at start")
    with recording(Selection(exclude=frozenset({process.pid}))) as r:
        r.capture.prepare([str(cudart)])
        go.touch()
        r.run(process)
        r.finish()
        for table in ("cuda_calls", "off_cpu", "processes", "libraries"):
            assert r.of(table, pid=process.pid) == []


def test_a_library_without_symbols_is_not_observable(doubles: Path, tmp_path: Path) -> None:
    """It is in the evidence, with the reason, and a gap without an end covers its process."""
    blob = bytearray((doubles / "libcudart.so.13").read_bytes())
    blob[40:48] = bytes(8)  # e_shoff, where the section headers are: the loader does not need them
    blob[60:64] = bytes(4)  # e_shnum, e_shstrndx
    broken = tmp_path / "broken" / "libcudart.so.12"
    broken.parent.mkdir()
    broken.write_bytes(blob)
    process = start(doubles / "calls", "--cudart", broken, "--out", tmp_path / "t", "--pause-file", tmp_path / "go")
    wait_for_line(process, "at start")
    with recording() as r:
        r.step()
        (tmp_path / "go").touch()
        r.run(process)
        r.finish()
        (library,) = r.of("libraries", pid=process.pid)
        assert (library["op"], library["probes"], library["duration_ns"]) == ("not observable", 0, None)
        assert "no symbol table" in library["reason"]
        (gap,) = r.of("gaps", pid=process.pid)
        assert (gap["duration_ns"], gap["source"]) == (None, "cuda")
        assert r.of("cuda_calls", pid=process.pid) == []


def test_a_deleted_library_is_probed_through_the_mapping(doubles: Path, tmp_path: Path) -> None:
    """Another file at the same path is not what the process has mapped."""
    cudart = tmp_path / "libcudart.so.13"
    shutil.copy(doubles / "libcudart.so.13", cudart)
    process = start(doubles / "calls", "--cudart", cudart, "--out", tmp_path / "t", "--pause-file", tmp_path / "go")
    wait_for_line(process, "at start")
    cudart.unlink()
    cudart.write_bytes(b"another file")
    with recording() as r:
        r.step()
        (tmp_path / "go").touch()
        r.run(process)
        r.finish()
        (library,) = r.of("libraries", pid=process.pid)
        assert library["op"] == "attached"
        assert library["path"] == f"{cudart} (deleted)"
        assert len(r.of("cuda_calls", pid=process.pid)) == len(truth(tmp_path / "t"))


def test_statically_linked_runtime_is_not_observable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that maps the driver's library and no CUDA runtime: said, never "no calls"."""
    driver = tmp_path / "libcuda.so.1"
    source = tmp_path / "driver.c"
    source.write_text("int cuInit(unsigned flags) { return (int)flags; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(driver), str(source)], check=True)
    code = f"import ctypes; ctypes.CDLL({str(driver)!r}); print('at start', flush=True); input()"
    process = start(sys.executable, "-c", code, stdin=subprocess.PIPE)
    wait_for_line(process, "at start")
    with recording() as r:
        r.step()
        r.finish()
        process.communicate("\n")
        (library,) = r.of("libraries", pid=process.pid, library="cudart")
        assert (library["op"], library["path"]) == ("not observable", str(driver))
        assert "linked statically" in library["reason"]
        (own,) = r.of("libraries", pid=process.pid, library="driver")
        assert (own["op"], own["probes"], own["not_observed"]) == ("attached", 1, "")


def test_exported_but_not_in_the_table_is_listed(doubles: Path, tmp_path: Path) -> None:
    cudart, nccl = doubles / "libcudart.so.13", doubles / "libnccl.so.2"
    with recording() as r:
        process = start(
            doubles / "calls", "--cudart", cudart, "--nccl", nccl, "--out", tmp_path / "t", "--tail-ms", "1000"
        )  # fmt: skip
        r.run(process)
        r.finish()
        libraries = {row["library"]: row for row in r.of("libraries", pid=process.pid)}
    for name, path in (("cudart", cudart), ("nccl", nccl)):
        row, (library,) = libraries[name], [known for known in LIBRARIES if known.name == name]
        command = ["nm", "--dynamic", "--defined-only", "--format=just-symbols", str(path)]
        exported = {line.partition("@")[0] for line in subprocess.check_output(command, text=True).split()}
        interface = {n for n in exported if re.fullmatch(library.exports, n)}
        others = interface - {n for probe in library.probes for n in probe.names}
        assert others, "the double has functions that nobody probes"
        assert row["not_observed"].split(",") == sorted(others)
        assert row["not_observed_count"] == len(others)
        assert row["probes"] >= len(interface) - len(others)


def test_a_process_that_ended_before_it_was_looked_at(
    doubles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found and gone before its file is opened: said so, with a gap that ends with it; a probed file is still known."""
    real = processes.open_mapping
    doomed: list[subprocess.Popen[str]] = []

    def end_first(pid: int, mapping: processes.Mapping) -> int:
        for process in [p for p in doomed if p.pid == pid]:
            process.kill()
            process.wait()
        return real(pid, mapping)

    monkeypatch.setattr(processes, "open_mapping", end_first)
    cudart = doubles / "libcudart.so.13"
    command: list[str | Path] = [doubles / "calls", "--cudart", cudart, "--out", tmp_path / "t"]
    with recording() as r:
        for _ in range(2):  # the first before anybody has probed the file, the second afterwards
            doomed.append(start(*command, "--pause-file", tmp_path / "never"))
            wait_for_line(doomed[-1], "at start")
            r.step()
            other = start(*command, "--pause-file", tmp_path / "never")
            wait_for_line(other, "at start")
            r.step()
            other.kill()
            other.communicate()
        r.finish()
        (early,), (late,) = (r.of("libraries", pid=p.pid) for p in doomed)
        assert (early["op"], early["reason"]) == ("not observable", "the process ended before it could be looked at")
        (gap,) = r.of("gaps", pid=doomed[0].pid)
        assert gap["duration_ns"] is not None
        assert "the process ended before it could be looked at" in gap["reason"]
        assert (late["op"], late["reason"], late["duration_ns"]) == ("shared", None, 0)
        assert late["probes"] > 0
        assert r.of("gaps", pid=doomed[1].pid) == []
