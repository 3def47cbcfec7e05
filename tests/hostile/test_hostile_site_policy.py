"""Policy files that are none, or that mean harm: each is refused with its file and line, and nothing is captured."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.policy_file import MAX_FILE_BYTES, MAX_ITEMS, PolicyFile
from gpuaudit.capture.site_policy import SitePolicy
from tests.commands import audit, check_refused, environment

BAD = {
    "not TOML": (b"[capture\n", "is not TOML"),
    "JSON": (b'{"thresholds": {}}', "is not TOML"),
    "not UTF-8": (b"[capture]\nsources = [\"\xff\"]", "is not UTF-8: byte 22"),
    "NUL": (b"[capture]\n\0", "is not TOML"),
    "a section of nobody's": (b"[captures]\n", ":1: captures: no section of that name"),
    "a key of nobody's": (b"[capture]\nstack = false", ":2: stack: no key of that name"),
    "a key at the top": (b"stacks = false", ":1: stacks: no section"),
    "a key twice": (b"[capture]\nstacks = true\nstacks = false", "is not TOML"),
    "the section as a list": (b"[[capture]]\n", "expected a table"),
    "a rule of nobody's": (b"[capture.ops]\nallowed = []", ":2: allowed: no key of that name"),
    "a rule that is a number": (b"[capture]\nops = 3", ":2: ops: got int"),
    "a name that is a number": (b"[capture]\nsources = [3]", "expected a list of names"),
    "a source that there is not": (b'[capture]\nsources = ["cude"]', ":2: cude: matches none of the sources"),
    "an op that there is not": (b'[capture.ops]\ndeny = ["cudaMaloc"]', ":2: cudaMaloc: matches none of the ops"),
    "a table that cannot be denied": (b'[capture.tables]\ndeny = ["gaps"]', "matches none of the tables"),
    "a variable that is never read": (b'[capture.environment]\ndeny = ["HF_TOKEN"]', "matches none of the environment"),
    "a capability that there is not": (b'[capture]\ncapabilities = ["CAP_ROOT"]', "matches none of the capabilities"),
    "a pattern that is none": (b'[capture.ops]\ndeny = ["cuda(.*)+"]', "nor a pattern"),
    "a name with a control character": (b'[capture]\nsources = ["cuda\\u001b[2J"]', "printable characters"),
    "an empty name": (b'[capture]\nsources = [""]', "printable characters"),
    "yes as a word": (b'[capture]\nstacks = "yes"', ":2: stacks: got 'yes', expected true or false"),
    "no as a number": (b"[capture]\nremote_engines = 0", "expected true or false"),
    "a duration as a number": (b"[capture]\nmax_duration = 600", "expected a length of time"),
    "no duration": (b'[capture]\nmax_duration = "0 s"', "expected a length of time"),
    "a negative duration": (b'[capture]\nmax_duration = "-5 s"', "expected a length of time"),
    "an endless duration": (b'[capture]\nmax_duration = "inf h"', "expected a length of time"),
    "too long": (b"#" * (MAX_FILE_BYTES + 1), f"is larger than {MAX_FILE_BYTES} bytes"),
    "too many names": (
        b"[capture]\nsources = [" + b'"cuda",' * (MAX_ITEMS + 1) + b"]", f"expected at most {MAX_ITEMS}"
    ),
    "nested without end": (b"[capture]\nx = " + b"[" * 100_000, "policy.toml: is n"),
    "a number without end": (b"[capture]\nx = " + b"9" * 100_000, "policy.toml"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_with_its_place(name: str) -> None:
    data, says = BAD[name]
    with pytest.raises(InputUnusable) as e:
        SitePolicy.of(PolicyFile(data, "policy.toml"))
    assert says in e.value.message
    assert e.value.message.startswith("policy.toml")
    assert e.value.message.isprintable()
    assert len(e.value.message) < 600
    assert e.value.hint


@pytest.mark.parametrize("command", ["check", "capture"])
def test_both_commands_refuse_it_in_one_line_and_capture_nothing(tmp_path: Path, command: str) -> None:
    (tmp_path / "policy.toml").write_bytes(b"[capture]\nstack = false\n")
    more = ("--out", tmp_path / "a.db", "--duration", "1") if command == "capture" else ()
    done = audit(command, "--policy", tmp_path / "policy.toml", *more, env=environment(tmp_path / "keys"))
    check_refused(done, 3, "policy.toml:2: stack: no key of that name")
    assert [p.name for p in tmp_path.iterdir()] == ["policy.toml"]


@pytest.mark.parametrize("what", ["missing", "a folder", "a pipe that nobody writes to"])
def test_what_is_no_file(tmp_path: Path, what: str) -> None:
    path = tmp_path / "policy.toml"
    if what == "a folder":
        path.mkdir()
    elif what != "missing":
        os.mkfifo(path)
    try:
        done = audit("check", "--policy", path, env=environment(tmp_path), prefix=["timeout", "60"])
    except subprocess.TimeoutExpired:  # pragma: no cover
        pytest.fail("it waits for a pipe")
    check_refused(done, 3, "cannot be read")
