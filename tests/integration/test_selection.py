"""Processes chosen by user, name and cgroup, and left out: decided where they begin and at their first call."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpuaudit.bundle.reader import Bundle
from gpuaudit.capture.cgroups import cgroup_mount
from gpuaudit.capture.rules import parse_rules
from gpuaudit.capture.selection import Selection
from tests.doubles.build import build
from tests.integration.recording import DEADLINE_S, recording, start, truth, wait_for_line
from tests.integration.sessions import Session, environment, rows

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

NOBODY = pwd.getpwnam("nobody")


@dataclass(frozen=True)
class Chosen:
    """What is asked for, and who should be recorded. Of ``{cgroup}`` there is one, with one below it."""

    users: tuple[str, ...] = ()
    comms: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    recorded: frozenset[str] = frozenset()


EVERYBODY = frozenset({"alpha", "beta", "late", "nobody", "inside", "below", "child"})
CASES = (
    Chosen(comms=("alpha",), recorded=frozenset({"alpha"})),
    Chosen(comms=("alpha", "renamed"), recorded=frozenset({"alpha", "late"})),
    Chosen(comms=("parent",), recorded=frozenset({"child"})),
    Chosen(users=("nobody",), recorded=frozenset({"nobody", "below"})),
    Chosen(users=(str(NOBODY.pw_uid),), cgroups=("{cgroup}",), recorded=frozenset({"below"})),
    Chosen(cgroups=("{cgroup}",), recorded=frozenset({"inside", "below"})),
    Chosen(cgroups=("{cgroup}/lower",), recorded=frozenset({"below"})),
    Chosen(cgroups=("{cgroup}",), excludes=("user=nobody",), recorded=frozenset({"inside"})),
    Chosen(excludes=("comm=alpha", "cgroup={cgroup}"), recorded=EVERYBODY - {"alpha", "inside", "below"}),
    Chosen(excludes=("comm=parent", "comm=renamed", "user=nobody"), recorded=frozenset({"alpha", "beta", "inside"})),
)


AS_NOBODY = ("setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups")
INTO = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"')


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A control group of version 2 with one below it."""
    folder = Path(cgroup_mount() or "/nowhere", f"gpuaudit-test-{os.getpid()}")
    try:
        (folder / "lower").mkdir(parents=True)
    except OSError as e:
        pytest.skip(f"no cgroup can be made here: {e.strerror}")
    yield folder
    (folder / "lower").rmdir()
    folder.rmdir()


@pytest.fixture
def public(doubles: Path) -> Iterator[Path]:
    """A folder that every user can read, and write to, with the library and the program under several names."""
    folder = Path(tempfile.mkdtemp(prefix="gpuaudit-test-"))
    folder.chmod(0o777)
    visitor = build("visitor", doubles)
    for name in ("visitor", "alpha", "beta"):
        shutil.copy(visitor, folder / name)
    shutil.copy(shutil.which("sh") or "/bin/sh", folder / "parent")
    shutil.copy(doubles / "libcudart.so.13", folder)
    yield folder
    shutil.rmtree(folder)


def begin(folder: Path, cgroup: Path, when: str, *more: str | Path) -> list[subprocess.Popen[str]]:
    """One process of each kind, up to the point where it waits for the file ``go``."""
    ways: dict[str, tuple[str | Path, ...]] = {
        "alpha": (folder / "alpha",),
        "beta": (folder / "beta",),
        "late": (folder / "visitor", "--name", "renamed"),
        "nobody": (*AS_NOBODY, folder / "visitor"),
        "inside": (*INTO, cgroup, folder / "visitor"),
        "below": (*INTO, cgroup / "lower", *AS_NOBODY, folder / "visitor"),
        "child": (folder / "parent", "-c", '"$@"; exit $?', "parent", folder / "visitor"),
    }
    assert ways.keys() == EVERYBODY
    options = ("--first", folder / "libcudart.so.13", "--calls", "2", "--start-file", folder / "go", *more, "--out")
    processes = [start(*way, *options, folder / f"{name}.{when}") for name, way in ways.items()]
    for process in processes:
        wait_for_line(process, "at start")
    return processes


def selection(case: Chosen, cgroup: Path) -> Selection:
    """As ``audit capture`` makes it of its options."""
    given = [tuple(text.format(cgroup=cgroup) for text in texts) for texts in
             (case.users, case.comms, case.cgroups, case.excludes)]  # fmt: skip
    rules, pids = parse_rules(*given)
    return Selection(rules=rules, exclude_with_children=pids, sources=frozenset({"cuda"}))


def test_who_is_recorded(public: Path, cgroup: Path) -> None:
    """Ten captures at once watch the same processes, half of which run already when the captures begin."""
    processes = begin(public, cgroup, "before")
    with contextlib.ExitStack() as stack:
        captures = [stack.enter_context(recording(selection(case, cgroup))) for case in CASES]
        for r in captures:
            assert r.capture.prepare([str(public / "libcudart.so.13")]) == []
        processes += begin(public, cgroup, "after")
        (public / "go").touch()
        for process in processes:
            _, err = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, err
        for r in captures:
            r.finish()
        names = {
            next(t["pid"] for t in truth(file)): tuple(file.name.split("."))
            for file in public.glob("*.*")
            if file.suffix in (".before", ".after")
        }
        assert len(names) == 2 * len(EVERYBODY)
        for case, r in zip(CASES, captures, strict=True):
            recorded = [names[row["pid"]] for row in r.of("cuda_calls") if row["pid"] in names]
            wanted = [(name, when) for name in case.recorded for when in ("before", "after")]
            assert sorted(recorded) == sorted(wanted * 2), case
            told = {names[row["pid"]] for row in r.of("processes") if row["pid"] in names}
            assert told == set(wanted), case


def test_a_process_left_out_by_its_number_takes_its_children_along(public: Path, cgroup: Path) -> None:
    processes = begin(public, cgroup, "before")
    parent = processes[-1]
    rules, pids = parse_rules((), (), (), (f"pid={parent.pid}",))
    with recording(Selection(rules=rules, exclude_with_children=pids, sources=frozenset({"cuda"}))) as r:
        r.capture.prepare([str(public / "libcudart.so.13")])
        (public / "go").touch()
        for process in processes:
            process.communicate(timeout=DEADLINE_S)
        r.finish()
    pids_of = {file.stem: next(t["pid"] for t in truth(file)) for file in public.glob("*.before")}
    recorded = {row["pid"] for row in r.of("cuda_calls")} & set(pids_of.values())
    assert recorded == set(pids_of.values()) - {pids_of["child"]}


def test_the_command_seals_what_was_chosen(public: Path, cgroup: Path, bpf: None) -> None:
    """What was asked for is in the first leaf; a capture of one user's processes holds no other's calls."""
    out = public / "a.db"
    asked = ["--user", "nobody", "--cgroup", str(cgroup), "--exclude", "comm=alpha", "--source", "cuda"]
    processes = begin(public, cgroup, "before", "--go-file", public / "again")
    (public / "go").touch()
    for process in processes:
        wait_for_line(process, "at loaded")
    session = Session(["--out", out, "--duration", "1h", *asked], environment(public / "keys"))
    session.wait_for(public / "a.db.receipt")
    (public / "again").touch()
    for process in processes:
        process.communicate(timeout=DEADLINE_S)
    code, said = session.end(signal.SIGTERM)
    assert code == 0, said
    (pid,) = {t["pid"] for t in truth(public / "below.before") if t["event"] == "load"}
    assert {row["pid"] for row in rows(out, "cuda_calls")} == {pid}
    with Bundle.open(out) as bundle:
        options = bundle.open_body["options"]
    assert (options["users"], options["cgroups"], options["exclude"]) == (["nobody"], [str(cgroup)], ["comm=alpha"])
    (row,) = [r for r in rows(out, "processes") if r["pid"] == pid and r["op"] == "exited"]
    assert (row["uid"], row["exit_status"], row["cgroup"]) == (NOBODY.pw_uid, 0, f"/{cgroup.name}/lower")
    assert row["cgroup_id"] == (cgroup / "lower").stat().st_ino
    assert {p["mechanism"] for p in rows(out, "probes") if p["op"] == "executable mappings"} == {"perf event"}
