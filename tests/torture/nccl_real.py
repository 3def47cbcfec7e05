"""The real NCCL wheel, without a GPU: its functions are called, fail as they must, and the probes see it.

The wheel is fetched by its hash (requirements/torture.lock, hundreds of MB) into a temporary folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gpuaudit.capture.probes import NCCL

COMMS = "SELECT pid, op, return_code, rank, nranks FROM nccl_comms WHERE parent_ns IS NULL ORDER BY start_ns"
CALLS = "SELECT pid, op, return_code, count, datatype, stream FROM nccl_calls WHERE parent_ns IS NULL ORDER BY start_ns"
"""The program's own, and not what the library calls inside them."""

AUDIT = [sys.executable, "-m", "gpuaudit.cli.main"]

CALLER = r"""
import ctypes, json, os, sys, time
nccl = ctypes.CDLL(sys.argv[1])
def probed(name):
    return ctypes.string_at(ctypes.cast(getattr(nccl, name), ctypes.c_void_p).value, 1) == b"\xcc"
for _ in range(600):
    if probed("ncclCommInitRank") and probed("ncclAllReduce"):
        break
    time.sleep(0.1)
class UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_char * 128)]
comm = ctypes.c_void_p()
init = nccl.ncclCommInitRank(ctypes.byref(comm), 3, UniqueId(), 2)
nccl.ncclAllReduce.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                               ctypes.c_void_p, ctypes.c_void_p]
reduce = [nccl.ncclAllReduce(0x10, 0x20, 1000 + i, 7, 0, None, 0x77) for i in range(5)]
each = {}
for name in sys.argv[2:]:
    try:
        function = getattr(nccl, name)
    except AttributeError:
        continue
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        function.argtypes = None
        os.write(tell, str(function(*[ctypes.c_void_p()] * 24)).encode())
        os._exit(0)
    os.close(tell)
    _, status = os.waitpid(child, 0)
    each[name] = (child, int(os.read(told, 16) or 0) if not status else None)
    os.close(told)
print(json.dumps({"init": init, "reduce": reduce, "each": each}))
"""
"""nccl.h: ncclCommInitRank(comm*, nranks, ncclUniqueId, rank); ncclAllReduce(send, recv, count, datatype, op, comm,
stream), datatype 7 is float32. Without a GPU the first fails, and a null communicator is an invalid argument. A library
that is opened while the program runs is found by the next scan; a probe is there once the function begins with int3.
Then every function of the table is called, each in a process of its own, with nothing but zeros: 24 of them fill the
registers and a ncclUniqueId on the stack. One that a zero kills is told as None."""

EACH = "SELECT pid, op, return_code FROM {table} WHERE parent_ns IS NULL"


def run(count: int, seed: int) -> list[str]:
    """One capture around calls into the real library; ``count`` and ``seed`` have no meaning here."""
    del count, seed
    with tempfile.TemporaryDirectory(prefix="nccl-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--require-hashes", "--only-binary", ":all:", "--target", str(folder / "wheel"),
             "--requirement", "requirements/torture.lock"], check=True,
        )  # fmt: skip
        (library,) = (folder / "wheel").glob("nvidia/nccl/lib/libnccl.so.*")
        return _probe(folder, library)


def _probe(folder: Path, library: Path) -> list[str]:
    env = {**os.environ, "GPU_AUDIT_KEYS": str(folder / "keys")}
    out = folder / "nccl.db"
    names = [p.op for p in NCCL.probes]
    done = subprocess.run(
        [*AUDIT, "capture", "--out", str(out), "--", sys.executable, "-c", CALLER, str(library), *names],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return [f"the capture ended with {done.returncode}: {done.stderr[-500:]}"]
    returned = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    own = {pid for pid, _ in returned["each"].values()}
    comms = [_without(r, "pid") for r in _query(out, env, COMMS) if r["pid"] not in own]
    calls = [_without(r, "pid") for r in _query(out, env, CALLS) if r["pid"] not in own]
    problems = list(_each(out, env, returned["each"]))
    expected_comms = [{"op": "ncclCommInitRank", "return_code": returned["init"], "rank": 2, "nranks": 3}]
    if comms != expected_comms:
        problems.append(f"nccl_comms: expected {expected_comms}, got {comms}")
    expected_calls = [
        {"op": "ncclAllReduce", "return_code": code, "count": 1000 + i, "datatype": 7, "stream": 0x77}
        for i, code in enumerate(returned["reduce"])
    ]
    if calls != expected_calls:
        problems.append(f"nccl_calls: expected {expected_calls}, got {calls}")
    return problems


def _each(out: Path, env: dict[str, str], called: dict[str, tuple[int, int | None]]) -> Iterator[str]:
    """What is recorded of every function that was called with zeros, against what it returned."""
    rows = [r for table in ("nccl_calls", "nccl_comms") for r in _query(out, env, EACH.format(table=table))]
    recorded = {(r["pid"], r["op"]): r["return_code"] for r in rows}
    for name, (pid, code) in called.items():
        if (pid, name) not in recorded:
            yield f"{name} was called with zeros, and is not in the evidence"
        elif recorded[pid, name] != code:
            yield f"{name} returned {code}, recorded is {recorded[pid, name]}"
    killed = sorted(name for name, (_, code) in called.items() if code is None)
    absent = sorted({p.op for p in NCCL.probes} - set(called))
    print(f"{len(called)} functions were called with zeros; killed by them: {', '.join(killed) or 'none'}; "
          f"not in this version: {', '.join(absent) or 'none'}", flush=True)  # fmt: skip


def _without(row: dict[str, object], column: str) -> dict[str, object]:
    return {k: v for k, v in row.items() if k != column}


def _query(bundle: Path, env: dict[str, str], sql: str) -> list[dict[str, object]]:
    done = subprocess.run([*AUDIT, "query", str(bundle), sql, "--json"], env=env, capture_output=True, check=True)
    rows = json.loads(done.stdout)
    return [dict(row) for row in rows]
