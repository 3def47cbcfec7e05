"""A capture with exactly the capabilities that docs/reference/privileges.md names, watched while it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from gpuaudit.bundle.errors import AuditError
from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.verify import verify
from gpuaudit.capture.attach import MECHANISMS, Mechanism, Programs
from gpuaudit.capture.capabilities import NONE, CapabilitySets, in_order
from gpuaudit.capture.capability_needs import NEEDS, at_start, kept
from gpuaudit.capture.obstacles import sysctl
from gpuaudit.capture.probes import PROBE_TABLE
from tests.integration.sessions import DEADLINE_S, Session, environment, rows, trust

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

CALLER = 23456
"""A user id that nobody has here."""

HERE = CapabilitySets.of().bounding
REQUIRED = frozenset(need.capability for need in NEEDS if need.required)


WITHOUT_MULTI = "import gpuaudit.capture.attach as a\na._has_uprobe_multi = lambda: False\n"
"""Run at Python's start: a kernel that knows no uprobe_multi, which functions are then not probed through."""


@pytest.fixture(params=MECHANISMS)
def mechanism(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Mechanism:
    """How functions are probed; on a kernel without uprobe_multi in one way only."""
    (folder / "start").mkdir(mode=0o755)
    if request.param == "uprobe_multi":
        programs = Programs()
        programs.load()
        name = programs.mechanism
        programs.close()
        if name != request.param:
            pytest.skip("this kernel has no uprobe_multi")
    else:
        (folder / "start/sitecustomize.py").write_text(WITHOUT_MULTI)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "start"), os.environ.get("PYTHONPATH", "")]))
    chosen: Mechanism = request.param
    return chosen


@pytest.fixture
def folder(bpf: None, doubles: Path) -> Iterator[Path]:
    """A folder of the caller's own, and the doubles where everybody can read them."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    path = Path(tempfile.mkdtemp(prefix="gpuaudit-test-"))
    path.chmod(0o755)
    shutil.copytree(doubles, path / "lib")
    (path / "own").mkdir()
    for inner in (path / "own", path / "lib"):
        inner.chmod(0o755)
    os.chown(path / "own", CALLER, CALLER)
    (path / "own").chmod(0o777)  # root without its capabilities is anybody
    yield path
    shutil.rmtree(path)


def limited(names: frozenset[str], *, user: int = 0) -> list[str]:
    """A command line's beginning that leaves a process these capabilities: root's, or a user's as a service has them.

    Those among them that this machine itself lacks cannot be given.
    """
    held = ",".join(["-all", *(f"+{n.removeprefix('CAP_').lower()}" for n in in_order(names & HERE))])
    if not user:
        return ["setpriv", f"--bounding-set={held}", "--inh-caps=-all"]
    who = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return ["setpriv", *who, f"--inh-caps={held}", f"--ambient-caps={held}"]


def workload(folder: Path) -> list[str | Path]:
    """Loads both libraries while it runs, and waits before its first call."""
    lib = folder / "lib"
    return [lib / "calls", "--out", folder / "own/truth", "--cudart", lib / "libcudart.so.13", "--nccl",
            lib / "libnccl.so.2", "--pause-file", folder / "own/go"]  # fmt: skip


def wait_until_attached(session: Session, folder: Path, mechanism: Mechanism) -> None:
    """Until the attacher holds an entry and a return, of each library or, by perf events, of each of its functions."""
    pid, links = session.process.pid, 4 if mechanism == "uprobe_multi" else 2 * functions(folder / "lib")
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        kinds = [_text(p) for p in Path(f"/proc/{pid}/fdinfo").iterdir()]
        if sum("link_type:" in k and "tracing" not in k and "raw_tracepoint" not in k for k in kinds) >= links:
            return
        time.sleep(0.05)
    raise AssertionError("the libraries were never probed")


def wait_until_found(partial: Path) -> None:
    """Until the evidence has both libraries, whether they could be probed or not."""
    end, found = time.monotonic() + DEADLINE_S, set[str]()
    while found < {"cudart", "nccl"}:
        assert time.monotonic() < end, "the libraries were never found"
        time.sleep(0.2)
        with suppress(AuditError):  # copied while a leaf was being written
            found = {row["library"] for row in rows(partial, "libraries")}


def functions(lib: Path) -> int:
    """How many functions of the probe table the two libraries have."""
    count = 0
    for name in ("libcudart.so.13", "libnccl.so.2"):
        with (lib / name).open("rb") as f:
            table = ELFFile(f).get_section_by_name(".dynsym")
            assert isinstance(table, SymbolTableSection)
            exported = {s.name for s in table.iter_symbols() if s.entry.st_value}
        count += sum(probe.is_of(name) and not exported.isdisjoint(probe.names) for probe in PROBE_TABLE)
    return count


def _text(path: Path) -> str:
    """What a file says; nothing where it is gone by now."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def child(session: Session, what: bytes) -> int:
    return next(p for p in session.children() if what in Path(f"/proc/{p}/cmdline").read_bytes())


def sets_of(pid: int) -> set[CapabilitySets]:
    """Of every thread."""
    return {CapabilitySets.of(f"{pid}/task/{t.name}") for t in Path(f"/proc/{pid}/task").iterdir()}


def no_new_privileges(pid: int) -> bool:
    return "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("as_service", [False, True], ids=["under sudo", "as a service's user"])
def test_what_a_live_capture_holds(folder: Path, mechanism: Mechanism, as_service: bool) -> None:
    """After the start only what late attachment needs; the seal is signed and the files are the caller's."""
    out, keys = folder / "own/a.db", folder / "own/keys"
    sudo = {} if as_service else {"SUDO_UID": str(CALLER), "SUDO_GID": str(CALLER)}
    session = Session(
        ["--out", out, "--source", "cuda", "--source", "nccl", "--source", "engines", "--", *workload(folder)],
        {**environment(keys), **sudo}, prefix=limited(at_start(), user=CALLER if as_service else 0),
    )  # fmt: skip
    try:
        session.wait_for(folder / "own/truth")
        wait_until_attached(session, folder, mechanism)
        expected = kept(["bpf", "engines", "output", "other user"])
        attacher = CapabilitySets(expected, expected, NONE, NONE, expected)
        assert sets_of(session.process.pid) == {attacher}
        assert no_new_privileges(session.process.pid)
        only = frozenset({"CAP_SYS_ADMIN"})
        keepers = [b"namespace_main", *([b"uprobe_main"] if mechanism == "perf uprobe" else [])]
        helpers = {child(session, keeper) for keeper in keepers}
        for helper in helpers:
            assert sets_of(helper) == {CapabilitySets(only, only, NONE, NONE, only)}
        assert sets_of(child(session, b"recorder_main")) == {CapabilitySets(*[NONE] * 5)}
        command = child(session, b"--pause-file")
        (held,) = sets_of(command)
        assert replace(held, bounding=NONE) == CapabilitySets(*[NONE] * 5)
        assert held.bounding == (HERE if as_service else at_start() & HERE)  # as without audit
        assert not no_new_privileges(command)
        assert Path(f"/proc/{command}").stat().st_uid == CALLER
    except BaseException:
        if session.process.poll() is None:
            session.end_group(signal.SIGKILL)
        raise
    (folder / "own/go").touch()
    code, said = session.result()
    assert code == 0, said
    assert verify(out, trust=trust(keys)).status == "SEALED"
    assert {p.stat().st_uid for p in folder.glob("own/a.db*")} == {CALLER}
    assert {r["op"] for r in rows(out, "libraries")} <= {"attached", "shared"}
    ours = {r["pid"] for r in rows(out, "processes") if r["role"] == "attacher"}
    assert ours == {session.process.pid, *helpers}
    with Bundle.open(out) as bundle:
        cost = next(json.loads(data) for _, name, data in bundle.artefacts() if name == "cost")
    (spent,) = [r for r in cost if r["name"] == "helpers_cpu"]
    assert int(spent["value"]) > 0, "Python's start takes more than a tick"
    assert "had ended" not in spent["definition"]
    assert len(rows(out, "cuda_calls")) > 0
    assert len(rows(out, "nccl_calls")) > 0


def test_three_capabilities_are_enough_for_a_capture(folder: Path, mechanism: Mechanism) -> None:
    """Without those that the table calls optional, a command of one's own is captured, and nothing is made up.

    Where functions are probed through perf events its calls are not, and the evidence says why.
    """
    out, keys = folder / "a.db", folder / "keys"
    session = Session(
        ["--out", out, "--source", "cuda", "--source", "nccl", "--", *workload(folder)], environment(keys),
        prefix=limited(REQUIRED),
    )  # fmt: skip
    try:
        session.wait_for(folder / "own/truth")
        if mechanism == "uprobe_multi":
            wait_until_attached(session, folder, mechanism)
        else:
            wait_until_found(folder / "a.db.partial/bundle.db")
        assert sets_of(session.process.pid) == {CapabilitySets(REQUIRED, REQUIRED, NONE, NONE, REQUIRED)}
        assert sets_of(child(session, b"recorder_main")) == {CapabilitySets(NONE, NONE, NONE, NONE, REQUIRED)}
    except BaseException:
        if session.process.poll() is None:
            session.end_group(signal.SIGKILL)
        raise
    (folder / "own/go").touch()
    code, said = session.result()
    assert code == 0, said
    assert verify(out, trust=trust(keys)).status == "SEALED"
    if mechanism == "uprobe_multi":
        assert len(rows(out, "cuda_calls")) > 0
    else:
        assert not rows(out, "cuda_calls")
        told = [(row["library"], row["op"], str(row["reason"])) for row in rows(out, "libraries")]
        assert {(library, op) for library, op, _ in told} == {(x, "not observable") for x in ("cudart", "nccl")}
        assert all("CAP_SYS_ADMIN is lacking, to probe functions by perf events" in why for _, _, why in told), told


def test_what_perf_events_lack_is_named(folder: Path) -> None:
    """Also where uprobe_multi makes them needless."""
    command = [*limited(REQUIRED), sys.executable, "-m", "gpuaudit.cli.main", "check", "--json"]
    done = subprocess.run(command, env=environment(folder / "keys"), capture_output=True, text=True, check=False)
    (line,) = [r for r in json.loads(done.stdout) if r["name"] == "function probes by perf uprobe"]
    assert "Permission denied; CAP_SYS_ADMIN is lacking, to probe functions by perf events" in line["detail"]


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_a_required_one_is_asked_for_by_name(folder: Path, missing: str) -> None:
    done = capture_with(folder, at_start() - {missing, "CAP_SYS_ADMIN"})
    assert done[0] == 4
    assert f"needs {missing}, which this process lacks" in done[1]


@pytest.mark.parametrize(
    ("missing", "setting"),
    [("CAP_BPF", "kernel.unprivileged_bpf_disabled"), ("CAP_PERFMON", "kernel.perf_event_paranoid")],
)
def test_the_kernels_own_refusal_names_capability_and_sysctl(folder: Path, missing: str, setting: str) -> None:
    """As this kernel is set: where the sysctl lets everybody, it is not named."""
    command = [*limited(at_start() - {missing, "CAP_SYS_ADMIN"}), sys.executable, "-m", "gpuaudit.cli.main", "check"]
    done = subprocess.run(
        [*command, "--json"], env=environment(folder / "keys"), capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 4
    (line,) = [r for r in json.loads(done.stdout) if r["name"] == "BPF programs"]
    assert not line["ok"]
    assert f"{missing} is lacking, to load BPF programs" in line["detail"]
    value = sysctl(setting)
    restricts = value is not None and int(value) > 0
    assert (f"{setting} is {value}" in line["detail"]) == restricts
    assert missing in line["hint"]


@pytest.mark.parametrize("missing", ["CAP_SETUID", "CAP_SETGID"])
def test_a_command_is_not_started_as_somebody_else(folder: Path, missing: str) -> None:
    code, said = capture_with(folder, at_start() - {missing})
    assert code == 4
    assert f"lacks {missing}" in said
    assert not (folder / "own/truth").exists()


def capture_with(folder: Path, names: frozenset[str]) -> tuple[int, str]:
    env = {**environment(folder / "keys"), "SUDO_UID": str(CALLER), "SUDO_GID": str(CALLER)}
    session = Session(["--out", folder / "own/a.db", "--", *workload(folder)], env, prefix=limited(names))
    return session.result()
