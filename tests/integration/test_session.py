"""Whole captures: the command a user types, its files, its exit code, and what becomes of a capture that is hurt."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.receipt import Receipt
from gpuaudit.bundle.verify import verify
from gpuaudit.capture.source import BPF_SOURCES, TABLES_OF_SOURCE
from tests.doubles.build import build, compiler
from tests.integration.sessions import Session, capture, command_line, environment, rows, trust
from tests.nvml_double import named

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Like tmp_path, but other users can reach it: the recorder and the workload run as one."""
    path = Path(tempfile.mkdtemp(prefix="gpuaudit-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def nvml(folder: Path) -> dict[str, str]:
    """Environment in which NVML is the double: one GPU, one process."""
    if compiler() is None:
        pytest.skip("gcc is not installed")
    (folder / "lib").mkdir()
    build("nvml", folder / "lib")
    script = folder / "lib" / "script.txt"
    script.write_text("gpus 1\n0 0 utilization 90\n0 0 process 4242 1000000\n")
    return {"LD_LIBRARY_PATH": str(folder / "lib"), "DOUBLE_NVML_SCRIPT": str(script)}


@pytest.fixture
def env(folder: Path, nvml: dict[str, str]) -> dict[str, str]:
    return environment(folder / "keys", **nvml)


def check_sealed(path: Path, folder: Path) -> None:
    receipt = Receipt.from_text(path.with_name(path.name + ".receipt").read_text())
    result = verify(path, trust=trust(folder / "keys"), receipt=receipt)
    assert (result.status, result.exit_code) == ("SEALED", 0), result
    assert not path.with_name(path.name + ".partial").exists()


def test_ordinary_user_captures_what_needs_no_privilege(folder: Path, env: dict[str, str]) -> None:
    out = folder / "a.db"
    done = capture(["--out", out, "--duration", "1", "--source", "nvml", "--challenge", "quarter 4"], env)
    assert done.returncode == 0, done.stderr
    assert "made a new identity" in done.stderr
    assert "leaf0_hash" in done.stderr
    check_sealed(out, folder)
    assert {r["gpu_utilization_percent"] for r in rows(out, "nvml_samples")} == {90}
    assert {r["pid"] for r in rows(out, "nvml_processes")} == {4242}
    assert len(rows(out, "clock")) >= 2
    with Bundle.open(out) as bundle:
        body = bundle.open_body
        artefacts = {name: json.loads(data) for _, name, data in bundle.artefacts()}
        seal = bundle.seal_body
    assert body["challenge"] == "quarter 4"
    assert body["synthetic"] is False
    assert [g["index"] for g in body["gpus"]] == [0]
    states = {s["source"]: s["state"] for s in artefacts["sources"]}
    assert states == {**dict.fromkeys(BPF_SOURCES, "not recorded"), "nvml": "recorded", "clock": "recorded"}
    assert {"recorder_cpu", "attacher_cpu", "bytes_written"} <= {r["name"] for r in artefacts["cost"]}
    assert seal is not None
    count = len(rows(out, "nvml_samples"))
    total = seal["totals"]["tables"]["nvml_samples"]
    assert (total["seen"], total["written"], total["lost"]) == (str(count), str(count), "0")
    again = capture(["--out", out, "--duration", "1", "--source", "nvml"], env)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert "made a new identity" not in again.stderr


def test_an_xid_is_sealed_at_once_as_a_leaf_of_its_own(folder: Path, env: dict[str, str]) -> None:
    out = folder / "a.db"
    Path(env["DOUBLE_NVML_SCRIPT"]).write_text("gpus 1\n0 0 utilization 90\n500 0 event 8 79\n900 0 event 8 31\n")
    done = capture(["--out", out, "--duration", "2", "--source", "nvml"], env)
    assert done.returncode == 0, done.stderr
    check_sealed(out, folder)
    assert [(r["op"], r["event_data"]) for r in rows(out, "nvml_events")] == [("xid", 79), ("xid", 31)]
    with Bundle.open(out) as bundle:
        events = [h for h in bundle.headers if h.table == "nvml_events"]
        first_sample = min(h.idx for h in bundle.headers if h.table == "nvml_samples")
        artefacts = {name: json.loads(data) for _, name, data in bundle.artefacts()}
    assert {h.kind for h in events} == {"event"}
    assert max(h.idx for h in events) < first_sample, "sealed before any segment was closed by age or at the end"
    assert artefacts["gpus"]["gpus"][0]["facts"]["architecture"] == {"value": "Hopper"}
    assert len(rows(out, "nvml_health")) == 2
    assert rows(out, "gpm_samples")


def test_a_gpu_that_hangs_for_ever_holds_up_neither_the_other_nor_the_seal(folder: Path, env: dict[str, str]) -> None:
    out = folder / "a.db"
    Path(env["DOUBLE_NVML_SCRIPT"]).write_text(named("hang_for_ever").read_text())
    done = capture(["--out", out, "--duration", "2", "--source", "nvml"], env)
    assert done.returncode == 0, done.stderr
    check_sealed(out, folder)
    assert {r["gpu_index"] for r in rows(out, "nvml_samples")} == {0}
    told = {(g["table_name"], g["reason"]) for g in rows(out, "gaps") if g["source"] == "nvml"}
    never = "NVML did not answer for GPU 1 until the end"
    assert {(t, f"{never} ({t})") for t in ("nvml_samples", "nvml_health", "gpm_samples")} <= told
    with Bundle.open(out) as bundle:
        artefacts = {name: json.loads(data) for _, name, data in bundle.artefacts()}
    states = {s["source"]: s["state"] for s in artefacts["sources"]}
    assert states["nvml"] == "partly recorded"
    assert [g["answered"] for g in artefacts["gpus"]["gpus"]] == [True, False]


def test_synthetic_needs_neither_gpu_nor_privilege(folder: Path) -> None:
    out = folder / "s.db"
    done = capture(["--out", out, "--synthetic", "late-rank"], environment(folder / "keys"))
    assert done.returncode == 0, done.stderr
    check_sealed(out, folder)
    with Bundle.open(out) as bundle:
        assert bundle.open_body["synthetic"] is True
        assert bundle.open_body["host"]["hostname"] == "synthetic-host"
    losses = rows(out, "losses")
    assert losses
    assert all(r["seen"] == r["written"] and not r["lost"] for r in losses)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(folder: Path, env: dict[str, str], number: signal.Signals) -> None:
    out = folder / "a.db"
    session = Session(["--out", out, "--duration", "1h", "--source", "nvml"], env)
    session.wait_for(folder / "a.db.receipt")
    code, said = session.end(number)
    assert code == 0, said
    check_sealed(out, folder)


def test_nvml_absent_is_a_gap(folder: Path) -> None:
    out = folder / "a.db"
    env = {k: v for k, v in environment(folder / "keys").items() if k != "LD_LIBRARY_PATH"}
    done = capture(["--out", out, "--duration", "1", "--source", "nvml"], env)
    assert done.returncode == 0, done.stderr
    if rows(out, "nvml_samples"):
        pytest.skip("this host has an NVIDIA driver")
    gaps = [g for g in rows(out, "gaps") if g["source"] == "nvml"]
    assert {g["table_name"] for g in gaps} == set(TABLES_OF_SOURCE["nvml"])
    assert all("libnvidia-ml.so.1" in g["reason"] for g in gaps)
    strict = capture(["--out", folder / "b.db", "--duration", "1", "--source", "nvml", "--strict"], env)
    assert strict.returncode == 5
    check_sealed(folder / "b.db", folder)


def test_strict_does_not_demand_what_was_not_asked_for(folder: Path, env: dict[str, str]) -> None:
    done = capture(["--out", folder / "a.db", "--duration", "1", "--source", "nvml", "--strict"], env)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="needs an ordinary user")
def test_no_privilege_names_the_capability(folder: Path, env: dict[str, str]) -> None:
    done = capture(["--out", folder / "a.db"], env)
    assert done.returncode == 4
    assert "CAP_BPF" in done.stderr
    assert "sudo audit capture" in done.stderr
    assert not list(folder.glob("a.db*"))


@as_root
def test_no_privilege_names_the_capability_seen_as_root(folder: Path, env: dict[str, str]) -> None:
    """The same with the capabilities taken away, so that it is tested where tests run as root."""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    command = [*drop, *command_line(["--out", folder / "a.db"])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "CAP_BPF and CAP_PERFMON" in done.stderr
    assert "sudo audit capture" in done.stderr
    assert not list(folder.glob("a.db*"))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--", "no-such-program-anywhere"], 2, "not found in PATH"),
        (["--pid", "2147483647"], 2, "no such process"),
        (["--source", "magnets"], 2, "magnets"),
        (["--duration", "0"], 2, "duration"),
        (["--synthetic", "early-rank"], 2, "late-rank"),
        (["--site", "a/b"], 2, "--site"),
        (["--challenge", "two\nlines"], 2, "--challenge"),
        (["--pid", "1", "--", "true"], 2, "both"),
        (["--comm", "x", "--", "true"], 2, "--comm and a command cannot both be given"),
        (["--user", "no-such-user"], 2, "there is no such user"),
        (["--exclude", "comm"], 2, "give pid=N"),
        (["--cgroup", "/", "--source", "nvml"], 2, "no source of processes was selected"),
    ],
)
def test_a_request_that_cannot_be_met_makes_nothing(
    folder: Path, env: dict[str, str], arguments: list[str], code: int, words: str
) -> None:
    done = capture(["--out", folder / "a.db", *arguments], env)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.glob("a.db*"))


def test_the_recorder_dies_and_the_attacher_says_so(folder: Path, env: dict[str, str]) -> None:
    out = folder / "a.db"
    session = Session(["--out", out, "--duration", "1h", "--source", "nvml"], env)
    session.wait_for(folder / "a.db.receipt")
    os.kill(session.recorder_pid(), signal.SIGKILL)
    code, said = session.result()
    assert code == 4
    assert "the recorder ended before it sealed (signal 9)" in said
    result = verify(folder / "a.db.partial" / "bundle.db", trust=trust(folder / "keys"))
    assert result.status == "UNSEALED"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_while_it_starts_ends_it_cleanly(
    folder: Path, env: dict[str, str], number: signal.Signals
) -> None:
    """As Ctrl-C at a terminal, or a service manager: the recorder hears it before it could decide to ignore it."""
    out = folder / "a.db"
    session = Session(["--out", out, "--source", "nvml", "--", "touch", folder / "ran"], env)
    session.wait_for(folder / "a.db.partial")
    for pid in session.children():
        os.kill(pid, number)
    code, said = session.end_group(number)
    assert code == 128 + number, said
    assert "before the command was started" in said
    assert "Traceback" not in said
    assert not (folder / "ran").exists()
    check_sealed(out, folder)


def test_signals_while_it_seals_change_nothing(folder: Path, env: dict[str, str]) -> None:
    out = folder / "a.db"
    session = Session(["--out", out, "--duration", "1h", "--source", "nvml"], env)
    session.wait_for(folder / "a.db.receipt")
    recorder = session.recorder_pid()
    os.kill(recorder, signal.SIGSTOP)  # so that it cannot have sealed already
    session.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        session.process.send_signal(number)
        os.kill(recorder, number)
    os.kill(recorder, signal.SIGCONT)
    code, said = session.result()
    assert code == 0, said
    check_sealed(out, folder)


def test_a_terminal_that_goes_away_costs_no_evidence(folder: Path, env: dict[str, str]) -> None:
    """Its stderr, where the receipt and the live line go, has no reader any more."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command_line(["--out", folder / "a.db", "--duration", "1", "--source", "nvml"]), env=env, stderr=writer,
        stdout=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 0
    check_sealed(folder / "a.db", folder)


def test_nohup_is_respected(folder: Path, env: dict[str, str]) -> None:
    out = folder / "a.db"
    session = Session(["--out", out, "--duration", "2", "--source", "nvml"], env, prefix=["nohup"])
    session.wait_for(folder / "a.db.receipt")
    code, said = session.end(signal.SIGHUP)
    assert code == 0, said
    assert "(duration)" in said
    check_sealed(out, folder)


def test_the_recorder_has_no_terminal(folder: Path, env: dict[str, str]) -> None:
    """Taken over, it can neither type into the shell of the administrator nor write to the screen."""
    session = Session(["--out", folder / "a.db", "--duration", "1h", "--source", "nvml"], env)
    session.wait_for(folder / "a.db.receipt")
    recorder = session.recorder_pid()
    assert os.getsid(recorder) == recorder != os.getsid(session.process.pid)
    mine = {str(Path(f"/proc/{session.process.pid}/fd/{n}").readlink()) for n in (0, 1, 2)} - {os.devnull}
    theirs = {str(f.readlink()) for f in Path(f"/proc/{recorder}/fd").iterdir()}
    assert not mine & theirs
    code, said = session.end(signal.SIGINT)
    assert code == 0, said


def test_the_workload_outlives_a_capture_that_fails(folder: Path, env: dict[str, str]) -> None:
    """It is not killed, and whoever started audit still waits for it."""
    mark, go, began = folder / "done", folder / "go", folder / "began"
    script = f"touch {began}; until [ -e {go} ]; do sleep 0.05; done; ls -l /proc/self/fd > {mark}"
    session = Session(["--out", folder / "a.db", "--source", "nvml", "--", "sh", "-c", script], env)
    session.wait_for(began)
    os.kill(session.recorder_pid(), signal.SIGKILL)
    assert session.process.stderr is not None
    while "waiting for the workload" not in (line := session.process.stderr.readline()):
        assert line, "it did not wait"
    go.touch()
    code, said = session.result()
    assert code == 4
    assert "the recorder ended before it sealed (signal 9)" in said
    names = [line.split()[8] for line in mark.read_text().splitlines()[1:]]
    assert set(names) == {"0", "1", "2", "3"}  # 3 is the directory that ls itself opened


def test_a_signal_after_the_duration_reaches_the_workload(folder: Path, env: dict[str, str]) -> None:
    out = folder / "a.db"
    session = Session(["--out", out, "--duration", "0.2", "--source", "nvml", "--", "sleep", "600"], env)
    session.wait_for(out)
    session.wait_for(folder / "a.db.seal")
    code, said = session.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, said
    check_sealed(out, folder)


def test_the_attacher_dies_and_the_prefix_survives(folder: Path, env: dict[str, str]) -> None:
    out = folder / "a.db"
    session = Session(["--out", out, "--duration", "1h", "--source", "nvml"], env)
    session.wait_for(folder / "a.db.receipt")
    recorder = session.recorder_pid()
    session.process.kill()
    session.process.communicate()
    while Path(f"/proc/{recorder}").exists():
        time.sleep(0.01)
    partial = folder / "a.db.partial" / "bundle.db"
    assert verify(partial, trust=trust(folder / "keys")).status == "UNSEALED"
    assert any("attacher ended" in g["reason"] for g in rows(partial, "gaps"))


def kill_at_random_moments(folder: Path, env: dict[str, str], sources: list[str], moments: int, seed: int) -> int:
    """Kill captures with everything they started; how many had given a receipt."""
    draw, receipts = random.Random(seed), 0
    for moment in range(moments):
        out = folder / f"k{moment}.db"
        session = Session(["--out", out, "--duration", "1h", *sources], env)
        if moment % 4:  # most of them while it records
            session.wait_for(folder / f"{out.name}.receipt")
        time.sleep(draw.uniform(0, 0.8))
        session.kill_group()
        receipt = folder / f"{out.name}.receipt"
        if not receipt.exists():
            continue
        receipts += 1
        result = verify(
            folder / f"{out.name}.partial" / "bundle.db", trust=trust(folder / "keys"),
            receipt=Receipt.from_text(receipt.read_text()),
        )  # fmt: skip
        assert (result.status, result.exit_code) == ("UNSEALED", 1)
        assert any(c.name == "identity" and c.ok for c in result.checks)
    return receipts


def test_kill_9_at_random_moments(folder: Path, env: dict[str, str]) -> None:
    """Six; ``scripts/torture crashes`` does hundreds."""
    assert kill_at_random_moments(folder, env, ["--source", "nvml"], moments=6, seed=20) >= 4


@as_root
def test_kill_9_with_bpf(folder: Path, env: dict[str, str], bpf: None) -> None:
    assert kill_at_random_moments(folder, env, [], moments=4, seed=4) >= 3


@as_root
def test_a_full_disk_seals_what_there_is(folder: Path, env: dict[str, str]) -> None:
    small = folder / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0755", "tmpfs", str(small)], check=False
    ).returncode:
        pytest.skip("no tmpfs can be mounted")
    try:
        out = small / "a.db"
        session = Session(["--out", out, "--duration", "1h", "--source", "nvml"], env)
        session.wait_for(small / "a.db.receipt")
        time.sleep(1)
        free = os.statvfs(small)
        (small / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - (1 << 20)))
        code, said = session.result()
        assert code == 4, said
        assert "the disk became full" in said
        assert " s are safe" in said
        check_sealed(out, folder)
        assert rows(out, "nvml_samples")
        assert any("disk is full" in g["reason"] for g in rows(out, "gaps"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


@as_root
def test_no_room_at_all_is_said_before_anything_is_recorded(folder: Path, env: dict[str, str]) -> None:
    small = folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0755", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("no tmpfs can be mounted")
    try:
        done = capture(["--out", small / "a.db", "--duration", "1", "--source", "nvml"], env)
        assert done.returncode == 4
        assert "no room" in done.stderr
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)
