"""Rights of an engine's process, taken on by an attacher that is no root but has root's capabilities over files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpuaudit.capture.child import child_environment

PROGRAM = """
import os, sys
from gpuaudit.capture.capabilities import CapabilitySets
from gpuaudit.capture.engine_rights import Rights, taken_on
def readable():
    try:
        os.close(os.open(sys.argv[1], os.O_RDONLY))
    except PermissionError:
        return False
    return True
before = CapabilitySets.of()
said = [readable()]
with taken_on(Rights(34567, 34567, ())):
    said.append(readable())
    said.append("CAP_SYS_PTRACE" in CapabilitySets.of().effective)
said += [readable(), CapabilitySets.of() == before]
print(*said)
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
@pytest.mark.parametrize(
    ("capabilities", "said"),
    [
        ("dac_read_search,setuid,setgid,sys_ptrace", "True False True True True"),
        ("sys_ptrace", "False False True False True"),
    ],
)
def test_capabilities_over_files_stay_behind(tmp_path: Path, capabilities: str, said: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of root's")
    secret.chmod(0o600)
    held = "-all," + ",".join(f"+{c}" for c in capabilities.split(","))
    command = ["setpriv", "--reuid=23456", "--regid=23456", "--clear-groups", f"--inh-caps={held}",
               f"--ambient-caps={held}"]  # fmt: skip
    done = subprocess.run(
        [*command, sys.executable, "-c", PROGRAM, str(secret)], env=child_environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode and "dac_read_search" not in capabilities:
        pytest.skip("this Python lies where other users may not read it")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == said
