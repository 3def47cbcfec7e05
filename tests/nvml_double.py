"""The NVML source over the double, in a process of its own: the library is found through LD_LIBRARY_PATH at start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpuaudit.capture.child import child_environment

SCRIPTS = Path(__file__).parent / "doubles" / "nvml" / "scripts"

PROGRAM = """
import json, sys, time
from gpuaudit.capture.nvml_source import NvmlSource
from tests.unit.capture.sinks import ListSink
until, limit_s = json.loads(sys.argv[1]), float(sys.argv[2])
sink, source = ListSink(), NvmlSource()
def enough():
    return all(len(sink.gaps if table == "gaps" else sink.rows[table]) >= n for table, n in until.items())
capability = source.probe()
ended_in_s = None
if capability.available:
    source.start(sink)
    give_up = time.monotonic() + limit_s
    while not enough() and time.monotonic() < give_up:
        source.poll(sink)
        time.sleep(0.005)
    began = time.monotonic()
    source.stop(sink)
    ended_in_s = time.monotonic() - began
json.dump({"capability": vars(capability), "gpus": [g.to_json() for g in source.gpus], "rows": sink.rows,
           "gaps": sink.gaps, "critical": sink.critical, "artefacts": sink.artefacts, "ended_in_s": ended_in_s},
          sys.stdout)
sys.stdout.flush()
import os
os._exit(0)  # a thread that hangs in the double must not hold up the test
"""


def environment(library: Path | None, script: str | Path) -> dict[str, str]:
    """For a process whose NVML is the double (or none), reading a script: a file of ``SCRIPTS`` or text."""
    env = child_environment()
    env.pop("LD_LIBRARY_PATH", None)
    if library is None:
        return env
    if isinstance(script, str):
        path = library.parent / "script.txt"
        path.write_text(script)
        script = path
    return env | {"LD_LIBRARY_PATH": str(library.parent), "DOUBLE_NVML_SCRIPT": str(script)}


def named(name: str) -> Path:
    """A script of the double by its name."""
    return SCRIPTS / f"{name}.txt"


def watch(library: Path | None, script: str | Path = "", *, until: dict[str, int], limit_s: float = 60) -> Any:
    """Run the source until every table in ``until`` (or ``gaps``) has so many rows; what it handed over."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(until), str(limit_s)]
    done = subprocess.run(command, env=environment(library, script), capture_output=True, check=True)
    return json.loads(done.stdout)
