"""Whole captures with BPF: a command as the invoking user, its exit status, processes before and after the start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.receipt import Receipt
from gpuaudit.bundle.verify import verify
from tests.integration.recording import start, truth, wait_for_line
from tests.integration.sessions import Session, capture, environment, rows, trust

NOBODY = 65534
RANKS = 4


@pytest.fixture
def folder(bpf: None) -> Iterator[Path]:
    """Like tmp_path, but other users can reach it: the recorder and the workload run as one."""
    path = Path(tempfile.mkdtemp(prefix="gpuaudit-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def lib(folder: Path, doubles: Path) -> Path:
    """The doubles where everybody can read them."""
    path = folder / "lib"
    shutil.copytree(doubles, path)
    path.chmod(0o755)
    return path


def status_of(path: Path, folder: Path) -> str:
    receipt = Receipt.from_text(path.with_name(path.name + ".receipt").read_text())
    return verify(path, trust=trust(folder / "keys"), receipt=receipt).status


def counts(path: Path, table: str) -> Counter[str]:
    return Counter(r["op"] for r in rows(path, table))


def truth_of(out: Path) -> Counter[str]:
    """How many calls of each kind the ranks say they made."""
    return Counter(r["op"] for rank in range(RANKS) for r in truth(Path(f"{out}.{rank}")) if "before_ns" in r)


def test_a_command_is_recorded_from_its_first_call(folder: Path, lib: Path) -> None:
    out = folder / "a.db"
    done = capture(
        ["--out", out, "--", lib / "ranks", "--out", folder / "truth", "--steps", "20", "--late-rank", "2"],
        environment(folder / "keys"),
    )
    assert done.returncode == 0, done.stderr
    assert status_of(out, folder) == "SEALED"
    recorded = counts(out, "cuda_calls") + counts(out, "nccl_calls") + counts(out, "nccl_comms")
    untold = Counter({"cudaLaunchHostFunc": 20 * RANKS, "ncclGetUniqueId": 1})  # by the double, and before the fork
    assert recorded == truth_of(folder / "truth") + untold
    assert recorded["ncclAllReduce"] == 20 * RANKS
    assert all(r["comm_id"] is not None for r in rows(out, "nccl_calls"))
    assert {r["lost"] for r in rows(out, "losses")} == {0}
    processes = rows(out, "processes")
    exited = [r for r in processes if r["role"] == "workload" and r["exit_status"] is not None]
    assert [(r["op"], r["exit_status"], r["comm"]) for r in exited] == [("exited", 0, "ranks")] * (1 + RANKS)
    assert len({r["pid"] for r in exited}) == 1 + RANKS
    assert {r["role"] for r in processes} - {"observer"} == {"attacher", "recorder", "workload"}
    missed = "the kernel did not tell when"  # of a switch, as some do: neither ours, nor a reason to fail
    gaps = {g["source"] for g in rows(out, "gaps") if missed not in g["reason"]}
    assert gaps <= {"nvml", "ioctl"}, "this host may have no GPU"
    with Bundle.open(out) as bundle:
        cost = {r["name"]: r for _, name, data in bundle.artefacts() if name == "cost" for r in json.loads(data)}
        seal = bundle.seal_body
    assert seal is not None
    for table in ("cuda_calls", "nccl_calls", "nccl_comms", "off_cpu"):
        total = seal["totals"]["tables"][table]
        assert int(total["seen"]) == int(total["written"]) + int(total["lost"]) == len(rows(out, table))
    assert int(cost["probe_hits"]["value"]) == sum(recorded.values())
    assert int(cost["probe_time"]["value"]) > 0


@pytest.mark.parametrize(("script", "code", "recorded"), [("exit 7", 7, 7), ("kill -9 $$", 137, -9)])
def test_exit_status_is_recorded_and_returned(folder: Path, script: str, code: int, recorded: int) -> None:
    out = folder / "a.db"
    done = capture(["--out", out, "--", "sh", "-c", script], environment(folder / "keys"))
    assert done.returncode == code, done.stderr
    ended = [r for r in rows(out, "processes") if r["role"] == "workload" and r["op"] == "exited"]
    assert [r["exit_status"] for r in ended] == [recorded]


def test_under_sudo_the_command_runs_as_the_invoking_user(folder: Path) -> None:
    """What sudo leaves: root, and the user in SUDO_UID. The user's directory is closed to everybody else."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)
    env = environment(folder / "keys", SUDO_UID=str(NOBODY), SUDO_GID=str(NOBODY), SUDO_USER="nobody")
    script = "id -u; id -G; grep -E 'CapEff|NoNewPrivs' /proc/self/status; env | grep -c SUDO; touch mine; exit 3"
    done = capture(["--out", home / "a.db", "--", "sh", "-c", script], env, cwd=home)
    assert done.returncode == 3, done.stderr
    uid, groups, *rest = done.stdout.splitlines()
    assert uid == str(NOBODY)
    assert groups.split() == [str(NOBODY)]
    assert rest[0].split() == ["CapEff:", "0" * 16]
    assert rest[1].split() == ["NoNewPrivs:", "0"]
    assert rest[2] == "0"
    assert (home / "mine").stat().st_uid == NOBODY
    for name in ("a.db", "a.db.seal", "a.db.receipt"):
        assert (home / name).stat().st_uid == NOBODY, name
        assert (home / name).stat().st_mode & 0o777 == 0o644
    assert status_of(home / "a.db", folder) == "SEALED"
    recorder = next(r for r in rows(home / "a.db", "processes") if r["role"] == "recorder")
    assert recorder["uid"] not in (0, os.getuid())


def test_the_recorder_runs_without_privileges(folder: Path) -> None:
    session = Session(["--out", folder / "a.db", "--duration", "1h"], environment(folder / "keys"))
    session.wait_for(folder / "a.db.receipt")
    text = Path(f"/proc/{session.recorder_pid()}/status").read_text()
    fields = dict(line.partition(":")[::2] for line in text.splitlines())
    assert "0" not in fields["Uid"].split()
    assert {int(fields[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert fields["NoNewPrivs"].strip() == "1"
    sockets = Path(f"/proc/{session.recorder_pid()}/net/tcp").read_text().splitlines()
    assert len(sockets) == 1  # the heading: a network namespace of its own
    code, said = session.end(signal.SIGTERM)
    assert code == 0, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_workload_and_its_end_is_recorded(folder: Path, lib: Path, number: signal.Signals) -> None:
    out = folder / "a.db"
    command: list[str | Path] = ["--out", out, "--", lib / "ranks", "--out", folder / "truth", "--steps", "100000"]
    session = Session(command, environment(folder / "keys"))
    session.wait_for(folder / "truth.0")
    code, said = session.end_group(number)
    assert code == 128 + number, said
    assert status_of(out, folder) == "SEALED"
    ended = [r for r in rows(out, "processes") if r["role"] == "workload" and r["op"] == "exited"]
    assert {r["exit_status"] for r in ended} == {-number}


def test_a_signal_to_the_attacher_alone_is_passed_on(folder: Path) -> None:
    out, mark = folder / "a.db", folder / "ready"
    script = f"trap 'exit 9' TERM; touch {mark}; while :; do sleep 0.01; done"
    session = Session(["--out", out, "--", "sh", "-c", script], environment(folder / "keys"))
    session.wait_for(mark)
    code, said = session.end(signal.SIGTERM)
    assert code == 9, said
    ended = [r for r in rows(out, "processes") if r["role"] == "workload" and r["op"] == "exited"]
    assert [r["exit_status"] for r in ended] == [9]


@pytest.mark.alone
def test_host_wide_sees_processes_from_before_and_after_the_start(folder: Path, lib: Path) -> None:
    out, go = folder / "a.db", folder / "go"
    before = start(lib / "ranks", "--out", folder / "before", "--steps", "5", "--pause-at", "init", "--pause-file", go)
    wait_for_line(before, "at init")
    session = Session(["--out", out, "--duration", "1h"], environment(folder / "keys"))
    session.wait_for(folder / "a.db.receipt")
    go.touch()
    assert before.wait() == 0, before.communicate()
    after = start(lib / "ranks", "--out", folder / "after", "--steps", "5")
    assert after.wait() == 0, after.communicate()
    code, said = session.end(signal.SIGINT)
    assert code == 0, said
    assert status_of(out, folder) == "SEALED"
    assert counts(out, "nccl_calls")["ncclAllReduce"] == 2 * 5 * RANKS
    unknown = [r for r in rows(out, "nccl_calls") if r["comm_id"] is None]
    assert len(unknown) == 5 * RANKS  # the communicator of the first was made before the capture
    assert {r["role"] for r in rows(out, "processes")} - {"observer"} == {"attacher", "recorder", "traced"}


def test_pid_follows_that_process_until_it_ends(folder: Path, lib: Path) -> None:
    out, go = folder / "a.db", folder / "go"
    chosen = start(lib / "ranks", "--out", folder / "one", "--steps", "5", "--pause-at", "start", "--pause-file", go)
    wait_for_line(chosen, "at start")
    session = Session(["--out", out, "--pid", str(chosen.pid)], environment(folder / "keys"))
    session.wait_for(folder / "a.db.receipt")
    other = start(lib / "ranks", "--out", folder / "two", "--steps", "5")
    assert other.wait() == 0
    go.touch()
    assert chosen.wait() == 0, chosen.communicate()
    code, said = session.result()
    assert code == 0, said
    assert counts(out, "nccl_calls")["ncclAllReduce"] == 5 * RANKS
    assert other.pid not in {r["pid"] for r in rows(out, "processes")}


def test_no_socket_of_the_internet_family_is_opened(folder: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = folder / "trace"
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=socket,connect", "--"]
    ours = ["--pid", str(os.getpid())]  # an engine of this host would be scraped
    session = Session(
        ["--out", folder / "a.db", "--duration", "1", *ours], environment(folder / "keys"), prefix=command
    )
    code, said = session.result()
    assert code == 0, said
    calls = [line for line in trace.read_text().splitlines() if "socket(" in line or "connect(" in line]
    assert not [line for line in calls if "AF_INET" in line]


def test_a_container_with_process_ids_of_its_own_is_refused(folder: Path) -> None:
    """BPF programs see the host's ids: nothing would match, and the capture would look complete."""
    prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--"]
    session = Session(["--out", folder / "a.db", "--duration", "1"], environment(folder / "keys"), prefix=prefix)
    code, said = session.result()
    assert code == 4, said
    assert "process ids here are a container's own" in said
    assert "--pid=host" in said
    assert not list(folder.glob("a.db*"))
