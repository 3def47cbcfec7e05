"""Every way a capture ends, and every way it does not begin, as the person at the terminal sees it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import check_refused
from tests.integration.road import Road, listing, outcome, road
from tests.integration.sessions import Session

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]


@pytest.fixture(scope="module")
def shared(doubles: Path, bpf: None) -> Iterator[Road]:
    with road(doubles) as r:
        yield r


def sealed(r: Road, name: str) -> str:
    """How the verified, sealed bundle says that it ended; nothing of the capture is left lying about."""
    assert r.read("verify", f"{name}.db", "--receipt", f"{name}.db.receipt").startswith("SEALED ")
    assert not (r.folder / f"{name}.db.partial").exists()
    (row,) = r.query(name, "SELECT max(exit_status) AS status FROM processes WHERE op = 'exited' AND role = 'workload'")
    return str(row["status"])


def test_first_light_ends_after_the_duration(shared: Road) -> None:
    done = shared.run("capture", "--duration", "1s", "--out", "duration.db", "--json")
    assert json.loads(done.stdout)["ended_by"] == "duration"
    assert sealed(shared, "duration") == "None"
    document = shared.findings("duration")
    assert outcome(document, "api_silence")["state"] == "not evaluated", "a second is too short to clear anybody"


def test_first_light_ends_with_sigterm_that_the_workload_hears(shared: Road) -> None:
    ready = shared.folder / "ready"
    script = f"trap 'exit 9' TERM; : > {ready}; while :; do sleep 0.05; done"
    session = Session(["--out", shared.folder / "term.db", "--", "sh", "-c", script], shared.env)
    session.wait_for(ready)
    code, said = session.end(signal.SIGTERM)
    assert code == 9, said
    assert "(terminate)" in said
    assert sealed(shared, "term") == "9"


@pytest.mark.parametrize(
    ("name", "script", "status", "recorded"),
    [("exit", "exit 7", 7, "7"), ("killed", "kill -KILL $$", 128 + signal.SIGKILL, "-9")],
)
def test_first_light_ends_with_the_status_of_the_workload(
    shared: Road, name: str, script: str, status: int, recorded: str
) -> None:
    told = shared.capture(name, "sh", "-c", script, status=status)
    assert (told["ended_by"], str(told["workload_status"])) == ("workload", recorded)
    assert sealed(shared, name) == recorded
    assert outcome(shared.findings(name), "late_rank")["state"] == "not evaluated"


def test_first_light_refuses_an_output_that_exists(shared: Road) -> None:
    kept = shared.folder / "kept.db"
    kept.write_bytes(b"somebody's only copy")
    before = listing(shared.folder)
    done = shared.run("capture", "--out", "kept.db", "--duration", "1s", status=2)
    check_refused(done, 2, "kept.db exists already", "--force")
    assert listing(shared.folder) == before


def test_first_light_refuses_a_workload_that_is_not_there(shared: Road) -> None:
    before = listing(shared.folder)
    done = shared.run("capture", "--out", "none.db", "--", "no-such-program-here", status=2)
    check_refused(done, 2, "'no-such-program-here' was not found in PATH")
    assert listing(shared.folder) == before


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_first_light_without_privilege_names_what_lacks(shared: Road) -> None:
    """Root without any capability, which every interpreter can be run as; what is decided by is the capabilities."""
    if not (shared.folder / "keys").exists():  # it may be the first to need an identity
        shared.run("keys", "init")
    before = listing(shared.folder)
    prefix = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    done = shared.run("capture", "--out", "bare.db", status=4, prefix=prefix)
    check_refused(done, 4, "CAP_BPF", "CAP_PERFMON", "sudo audit capture")
    assert listing(shared.folder) == before


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")


def test_first_light_as_nobody(shared: Road) -> None:
    if shutil.which("setpriv") is None or subprocess.run([*NOBODY, sys.executable, "-c", ""], check=False).returncode:
        pytest.skip("nobody may not execute this Python, or there is no setpriv (util-linux)")
    public = shared.folder / "public"
    public.mkdir()
    os.chown(public, 65534, 65534)
    keys = {"GPU_AUDIT_KEYS": str(public / "keys")}
    done = shared.run("capture", "--out", "public/n.db", status=4, prefix=NOBODY, env=keys)
    assert "CAP_BPF" in done.stderr
    assert not (public / "n.db").exists()
    assert not (public / "n.db.partial").exists()
