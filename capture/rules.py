"""Processes chosen or left out by property: user, name, cgroup.

A process is selected when it meets one rule of every kind that is asked for; one that leaves it out is enough, and
stronger. Either holds for the children it will have as well. The programs in the kernel decide at fork and exec, and at
a first call; what runs already when the capture begins is judged here, in the same way.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpuaudit.bundle.errors import UsageError
from gpuaudit.capture.cgroups import Properties, cgroup_mount
from gpuaudit.capture.processes import why_not_followed

Kind = Literal["user", "comm", "cgroup"]
RULE_NUMBERS: dict[str, int] = {"user": 1, "comm": 2, "cgroup": 3}
"""``enum rule_kind`` of capture/bpf/targets.h."""
MAX_RULES = 64
"""As in capture/bpf/targets.h; the last place marks the end."""
MAX_COMM_BYTES = 15
"""TASK_COMM_LEN of the Linux kernel, without its NUL."""


@dataclass(frozen=True)
class Rule:
    """One property. ``number``: user id; ``text``: name, or absolute path of the cgroup's folder."""

    kind: Kind
    text: str
    number: int = 0
    excludes: bool = False


def parse_rules(
    users: Sequence[str], comms: Sequence[str], cgroups: Sequence[str], excludes: Sequence[str]
) -> tuple[tuple[Rule, ...], frozenset[int]]:
    """(rules, processes left out by number) from the options of a capture; UsageError for what names nothing."""
    rules = [_user(u) for u in users] + [_comm(c) for c in comms] + [_cgroup(c) for c in cgroups]
    pids = set()
    for text in excludes:
        kind, _, value = text.partition("=")
        if kind == "pid" and re.fullmatch("[0-9]{1,10}", value):
            if why := why_not_followed(int(value)):
                raise UsageError(f"--exclude {text!r:.80}: {why}", hint="ps -e lists processes")
            pids.add(int(value))
        elif kind in _PARSERS and value:
            rules.append(_PARSERS[kind](value, excludes=True))
        else:
            raise UsageError(f"--exclude {text!r:.80}", hint="give pid=N, comm=NAME, user=NAME or cgroup=PATH")
    if len(rules) >= MAX_RULES:
        raise UsageError(f"{len(rules)} rules choose processes, at most {MAX_RULES - 1} can be given")
    return tuple(rules), frozenset(pids)


def _user(text: str, excludes: bool = False) -> Rule:
    if re.fullmatch("[0-9]{1,10}", text) and int(text) < (1 << 32) - 1:
        return Rule("user", text, int(text), excludes)
    try:
        return Rule("user", text, pwd.getpwnam(text).pw_uid, excludes)
    except (KeyError, ValueError):
        raise UsageError(f"user {text!r:.80}: there is no such user", hint="give a name or a number of id") from None


def _comm(text: str, excludes: bool = False) -> Rule:
    if not text or "\0" in text or len(os.fsencode(text)) > MAX_COMM_BYTES:
        raise UsageError(
            f"name {text!r:.80}: the kernel's names have 1 to {MAX_COMM_BYTES} bytes", hint="ps -eo comm lists them"
        )
    return Rule("comm", text, 0, excludes)


def _cgroup(text: str, excludes: bool = False) -> Rule:
    mount = cgroup_mount()
    if mount is None:
        raise UsageError(f"cgroup {text!r:.200}: no cgroup version 2 hierarchy is mounted here")
    given = os.path.normpath(text)
    path = given if Path(given).is_relative_to(mount) else os.path.normpath(f"{mount}/{given.lstrip('/')}")
    if not Path(path).is_relative_to(mount) or not Path(path, "cgroup.procs").is_file():
        raise UsageError(
            f"cgroup {text!r:.200}: there is no such cgroup in {mount}", hint="cat /proc/PID/cgroup shows those in use"
        )
    return Rule("cgroup", path, 0, excludes)


_PARSERS = {"user": _user, "comm": _comm, "cgroup": _cgroup}


def judge(rules: Sequence[Rule], process: Properties) -> Literal["selected", "excluded", ""]:
    """The verdict on one process, as ``judge`` in capture/bpf/targets.h has it."""
    if any(r.excludes and _meets(r, process) for r in rules):
        return "excluded"
    asked = {r.kind for r in rules if not r.excludes}
    met = {r.kind for r in rules if not r.excludes and _meets(r, process)}
    return "selected" if asked and met == asked else ""


def _meets(rule: Rule, process: Properties) -> bool:
    if rule.kind == "user":
        return process.uid == rule.number
    if rule.kind == "comm":
        return process.comm == rule.text
    below = f"{cgroup_mount() or ''}{process.cgroup or ''}".rstrip("/")
    return process.cgroup is not None and (below == rule.text or below.startswith(f"{rule.text}/"))
