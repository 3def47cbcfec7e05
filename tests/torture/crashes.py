"""kill -9 at random moments of a capture: what was sealed before must verify, and must not look complete."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.torture.progress import Progress

AUDIT = [sys.executable, "-m", "gpuaudit.cli.main"]
LONGEST_S = 4.0
"""Latest moment of a kill after the start on a quiet machine; attaching takes about a second, so that some kills come
before leaf 0. On a busy one it is :data:`TIMES_READY` times what a capture took to give its receipt there."""

TIMES_READY = 3.0
READY_DEADLINE_S = 120.0


def run(count: int, seed: int) -> list[str]:
    """Kill ``count`` captures; sentences about those whose evidence does not verify as it must."""
    choose = random.Random(seed)
    problems, receipts = [], 0
    with tempfile.TemporaryDirectory(prefix="torture-") as folder, Progress("crashes", count) as progress:
        env = {**os.environ, "GPU_AUDIT_KEYS": f"{folder}/keys"}
        subprocess.run([*AUDIT, "keys", "init"], env=env, check=True, stdout=subprocess.DEVNULL)
        longest_s = max(LONGEST_S, TIMES_READY * _ready_s(Path(folder) / "ready", env))
        for i in range(count):
            delay_s = choose.uniform(0.0, longest_s)
            victim = choose.choice(["all", "recorder", "attacher"])
            problem = _one(Path(folder) / str(i), env, delay_s, victim)
            receipts += (Path(folder) / str(i) / "crash.db.receipt").exists()
            if problem:
                problems.append(f"crash {i} of seed {seed}: {victim} killed after {delay_s:.3f} s: {problem}")
            progress.step()
    print(f"crashes: {receipts} of {count} captures had given a receipt")
    if count >= 8 and not receipts:
        problems.append(f"no capture of seed {seed} lived long enough to prove anything")
    return problems


def _ready_s(folder: Path, env: dict[str, str]) -> float:
    """How long a capture takes here until its receipt is there; it is ended then."""
    folder.mkdir()
    out, start_s = folder / "ready.db", time.monotonic()
    command = [*AUDIT, "capture", "--duration", "600", "--out", str(out)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path(f"{out}.receipt").exists() and process.poll() is None:
        if time.monotonic() - start_s > READY_DEADLINE_S:
            break
        time.sleep(0.02)
    took_s = time.monotonic() - start_s
    process.send_signal(signal.SIGINT)
    process.wait()
    return took_s


def _one(folder: Path, env: dict[str, str], delay_s: float, victim: str) -> str:
    folder.mkdir()
    out = folder / "crash.db"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*AUDIT, "capture", "--duration", "60", "--out", str(out)],
            env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        time.sleep(delay_s)
        family = _family(process.pid)
        chosen = {"all": family, "attacher": family[:1], "recorder": family[1:] or family[:1]}[victim]
        for pid in chosen:
            _kill(pid)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            for pid in _family(process.pid):
                _kill(pid)
            return "the surviving process did not end within 60 s"
        _wait_gone(family)
    return _judge(out, (folder / "log").read_text(errors="replace"), env)


def _family(pid: int) -> list[int]:
    """The process and its descendants, the parent first."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return []
    return [pid, *(d for c in children for d in _family(int(c)))]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_gone(pids: list[int]) -> None:
    """Until none of the processes runs; what they still write would change what is judged."""
    for _ in range(600):
        if not any(_runs(p) for p in pids):
            return
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _judge(out: Path, log: str, env: dict[str, str]) -> str:
    """What is wrong with what the crash left; empty if nothing. Without a receipt there is no promise."""
    if "start receipt" not in log:
        return ""
    sealed = out.exists()
    path = out if sealed else out.with_name(out.name + ".partial") / "bundle.db"
    if not path.exists():
        return f"a receipt was printed, but there is neither {out.name} nor {path.parent.name}/bundle.db"
    command = [*AUDIT, "verify", str(path), "--json"]
    verified = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    expected = {0: "SEALED", 1: "UNSEALED"}
    if verified.returncode not in expected:
        return f"verify ended with {verified.returncode}: {verified.stderr.strip()}"
    status = json.loads(verified.stdout)["status"]
    if status != expected[verified.returncode]:
        return f"status {status} with exit code {verified.returncode}"
    return "" if sealed or status == "UNSEALED" else f"an interrupted bundle has status {status}"
