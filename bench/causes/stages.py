"""``python -m bench.causes.stages``: CPU time and peak memory of each kind of effect and each detector.

Without a bundle one of ``--events N`` is made first (``events.py``; 10,000,000 unless told). ``audit analyze`` is run
on it as a command, Python's start and verification included. Then this process reads the bundle, makes every effect,
runs every detector, one after the other, and the joins of ``by_hand.py``. What several need
(collectives, rows of calls) is counted for the first that asks. Peak memory is that of the process so far
(``ru_maxrss``): it never falls, so a stage that adds to it is one that needed more than all before. CPU time is of all
threads of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bench import usage
from bench.causes import by_hand
from bench.causes.events import write_bundle
from bench.figures.verify import audit_environment
from gpuaudit.analyze import intervals
from gpuaudit.analyze.causal.detect import detectors
from gpuaudit.analyze.causal.model import Causes, Effect
from gpuaudit.analyze.context import Context, NotEvaluated
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.quality import read_quality
from gpuaudit.analyze.registry import effect_makers, plugins
from gpuaudit.analyze.run import read_evidence
from gpuaudit.analyze.store import Store
from gpuaudit.analyze.window import read_window

T = TypeVar("T")

LIMIT_S = 7_200
"""A command that takes longer is given up."""


@dataclass
class Timed:
    """Stages in the order in which they ran: CPU seconds, and MiB of peak memory after each."""

    seconds: list[tuple[str, float]] = field(default_factory=list)
    peaks: list[tuple[str, float]] = field(default_factory=list)

    def run(self, name: str, what: Callable[[], T]) -> T:
        """Time one stage."""
        began = time.process_time()
        out = what()
        self.seconds.append((name, time.process_time() - began))
        self.peaks.append((name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        return out

    def of(self, *names: str) -> float:
        """Seconds of some stages."""
        return sum(s for n, s in self.seconds if n in names)


def measure(path: Path) -> dict[str, Any]:
    """Every stage of one bundle; ``covered`` and ``by_hand`` are ns per detector and process, which ought to agree."""
    timed = Timed()
    verification, store = timed.run("verify and read", lambda: read_evidence(path, ()))
    context = timed.run("window and quality", lambda: _context(store, verification.status))
    effects: list[Effect] = []
    for make in effect_makers():
        name = make.__module__.rpartition(".")[2]
        effects += [e for e in timed.run(f"effect {name}", partial(make, context)) if e.length_ns]
    covered: dict[str, dict[int, int]] = {}
    for known in detectors():
        mine = [e for e in effects if e.kind in known.detector.kinds]
        name = known.declaration.id
        causes = timed.run(f"detector {name}", partial(known.detector.find, context, mine))
        if name in by_hand.JOINS and not isinstance(causes, NotEvaluated):
            covered[name] = _covered(mine, causes)
    for plugin in plugins():
        if plugin.declaration.kind == "chain" and plugin.declaration.id not in {d.declaration.id for d in detectors()}:
            timed.run(f"detector {plugin.declaration.id}", partial(plugin.evaluate, context))
    hand = timed.run("the joins by hand", lambda: by_hand.run(store))
    joined = ("effect slow_calls", *(f"detector {name}" for name in by_hand.JOINS))
    return {
        "stages": timed.seconds, "peaks": timed.peaks, "joined_s": timed.of(*joined),
        "by_hand_s": timed.of("the joins by hand"), "covered": covered, "by_hand": hand,
    }  # fmt: skip


def analyzed(bundle: Path, folder: Path) -> usage.Usage:
    """What ``audit analyze`` takes of a bundle, as a command."""
    command = [sys.executable, "-m", "gpuaudit.cli.main", "analyze", str(bundle), "--out", str(folder / "findings")]
    return usage.run(command, environment=audit_environment(folder), limit_s=LIMIT_S)


def _context(store: Store, status: str) -> Context:
    window = read_window(store)
    return Context(store, window, read_quality(store, window, status), EvidenceBook(store))


def _covered(effects: Sequence[Effect], causes: Causes) -> dict[int, int]:
    """Per process, ns of its slow calls that causes cover, each moment of an effect once."""
    out: dict[int, int] = {}
    for e in effects:
        mine = [c.time for c in causes.get(e.key, ())]
        if e.kind == "slow_call" and mine:
            out[e.pid] = out.get(e.pid, 0) + intervals.measure(intervals.intersect(e.time, intervals.union(*mine)))
    return out


def main(arguments: Sequence[str]) -> int:
    """Print a line per stage, or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.causes.stages", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="a bundle that is there; one is made without it")
    parser.add_argument("--events", type=int, default=10_000_000, help="size of the bundle that is made (10,000,000)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gpu-audit-bench-") as name:
        folder = Path(name)
        bundle = options.bundle or folder / "events.db"
        if options.bundle is None:
            write_bundle(bundle, options.events)
        whole = analyzed(bundle, folder)
        told = measure(bundle)
    if options.json:
        print(json.dumps({**told, "audit analyze": asdict(whole)}))
        return 0
    print(f"audit analyze: {whole.seconds:.1f} s, CPU {whole.cpu_s:.1f} s, peak {whole.peak_bytes >> 20} MiB")
    peaks = dict(told["peaks"])
    for name, seconds in told["stages"]:
        print(f"{seconds:9.2f} s  {peaks[name]:7.0f} MiB  {name}")
    print(f"{told['joined_s'] / told['by_hand_s']:9.2f} ×  slow calls and three detectors ÷ their joins by hand")
    print("the same nanoseconds" if told["covered"] == told["by_hand"] else f"{told['covered']} ≠ {told['by_hand']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
