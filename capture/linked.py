"""Which libraries a command will be linked with, as its own dynamic loader lists them, before it runs.

The loader is asked as the invoking user and with that user's environment, because LD_LIBRARY_PATH and LD_PRELOAD decide
the answer; ``--list`` maps the program without executing it. For a script its interpreters are asked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from gpuaudit.capture.launch import Command, InvokingUser

MAX_INTERPRETERS = 4
"""The kernel follows at most this many ``#!`` lines (BINPRM_MAX_RECURSION of older kernels, 5 since)."""

LIST_DEADLINE_S = 10.0
_SHEBANG_BYTES = 256
_LIBRARY = re.compile(r"^\s*(?:\S+ => )?(/.*) \(0x[0-9a-f]+\)$", re.MULTILINE)


def linked_files(command: Command, user: InvokingUser | None) -> list[str]:
    """The programs that will run and the libraries they are linked with, absolute paths, in the loader's order.

    What cannot be listed (a static program, a loader that fails) is left out: what is loaded at run time is found by
    the scans that follow anyway.
    """
    environment = user.environment if user else dict(os.environ)
    out: dict[str, None] = {}
    for program in programs(command, environment.get("PATH", os.defpath)):
        out[str(program)] = None
        out.update(dict.fromkeys(_list(program, user, environment)))
    return list(out)


def programs(command: Command, search_path: str) -> list[Path]:
    """The executable and, for a script, its interpreter; for ``/usr/bin/env NAME`` also what NAME is in the PATH."""
    found = [command.executable]
    for program in found:
        if len(found) > MAX_INTERPRETERS:
            break
        line = _shebang(program)
        found += [p for p in _interpreters(line, search_path) if p not in found]
    return found


def _shebang(program: Path) -> list[str]:
    try:
        with program.open("rb") as f:
            head = f.read(_SHEBANG_BYTES)
    except OSError:
        return []
    return os.fsdecode(head[2:].partition(b"\n")[0]).split() if head.startswith(b"#!") else []


def _interpreters(line: list[str], search_path: str) -> Iterator[Path]:
    if not line:
        return
    yield Path(line[0])
    if Path(line[0]).name == "env":
        name = next((word for word in line[1:] if not word.startswith("-") and "=" not in word), None)
        if name and (found := shutil.which(name, path=search_path)):
            yield Path(found).absolute()


def _list(program: Path, user: InvokingUser | None, environment: dict[str, str]) -> list[str]:
    loader = _loader(program)
    if loader is None:
        return []
    identity = {}
    if user is not None:
        identity = {"user": user.credentials.uid, "group": user.credentials.gid, "extra_groups": list(user.groups)}
    try:
        done = subprocess.run(
            [loader, "--list", str(program)], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=LIST_DEADLINE_S, check=False, **identity,
        )  # type: ignore[call-overload]  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    return _LIBRARY.findall(os.fsdecode(done.stdout))


def _loader(program: Path) -> str | None:
    """The dynamic loader that the program asks for (PT_INTERP); None for a static or a foreign one."""
    try:
        with program.open("rb") as f:
            for segment in ELFFile(f).iter_segments():
                if isinstance(segment, InterpSegment):
                    return str(segment.get_interp_name())
    except (OSError, ELFError, ValueError, UnicodeDecodeError):
        return None
    return None
