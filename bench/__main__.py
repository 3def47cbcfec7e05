"""``python -m bench``: measure every figure, print a table.

Run it from the root of a source tree, as root: two figures attach BPF programs, and need clang-16, libbpf-dev, gcc and
bpftrace. A figure that cannot be had is printed as "not measured", with the reason. Takes about a quarter of an
hour.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from bench import machine, pages, printing
from bench.result import Figure, NotMeasured, Plan, Result
from gpuaudit.bundle.errors import EXIT_DONE, EXIT_ENVIRONMENT, EXIT_NEGATIVE, AuditError, UsageError

FIGURES: dict[str, float] = {
    "drain": 60,
    "seal": 40,
    "probe": 50,
    "stacks": 40,
    "verify": 75,
    "poll": 30,
    "cadence": 40,
    "flow": 60,
    "storm": 110,
    "training": 45,
    "startup": 25,
    "day": 300,
    "render": 110,
    "demo": 110,
    "imports": 90,
    "causes": 120,
}
"""Every figure, in the order of the road, and the seconds it may spend on repeats."""

TOTAL_S = 1_300
"""What a whole run may take: a figure that overruns leaves fewer repeats to those after it."""

QUICK = 0.1
"""What ``--quick`` makes of sizes and seconds."""


def main(arguments: Sequence[str]) -> int:
    """Run from the command line; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.markdown:
            return _markdown(check=options.check)
        unknown = [name for name in options.figures if name not in FIGURES]
        if unknown:
            raise UsageError(f"there is no figure {unknown[0]!r}", hint=f"there are: {', '.join(FIGURES)}")
        command = shlex.join(["python", "-m", "bench", *arguments])
        names = options.figures or list(FIGURES)
        result = run(names, repeats=options.repeats, quick=options.quick, command=command)
    except AuditError as e:
        print(f"bench: {e}", file=sys.stderr)
        return e.exit_code
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text(result.to_json(), "utf-8")
        print(f"saved {options.save}", file=sys.stderr)
    sys.stdout.write(result.to_json() if options.json else printing.text(result))
    return EXIT_ENVIRONMENT if result.not_measured else EXIT_DONE


def run(names: Sequence[str], *, repeats: int = 5, quick: bool = False, command: str = "") -> Result:
    """Measure the figures called ``names``; progress on stderr. ``command``: what to repeat it with."""
    taken = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    start_s, described = time.monotonic(), machine.describe()
    scale = QUICK if quick else 1.0
    found: list[Figure] = []
    missing: list[NotMeasured] = []
    for i, name in enumerate(names):
        module = importlib.import_module(f"bench.figures.{name}")
        began_s = time.monotonic()
        print(f"{name}: {module.TITLE} …", file=sys.stderr, flush=True)
        later_s = sum(FIGURES[n] for n in names[i + 1 :])
        budget_s = min(FIGURES[name], max(0.0, TOTAL_S - later_s - (began_s - start_s)))
        outcome = _measure(module, repeats, budget_s * scale, scale)
        if isinstance(outcome, Figure):
            found.append(outcome)
        else:
            missing.append(outcome)
            print(f"{name}: not measured: {outcome.reason}", file=sys.stderr)
        print(f"{name}: {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    seconds = round(time.monotonic() - start_s, 1)
    return Result(command, taken, seconds, described, tuple(found), tuple(missing))


def _measure(module: ModuleType, repeats: int, budget_s: float, scale: float) -> Figure | NotMeasured:
    """One figure in a folder of its own; what hinders one does not hinder the next."""
    with tempfile.TemporaryDirectory(prefix="gpu-audit-bench-") as folder:
        try:
            figure = module.measure(Plan(repeats, budget_s, scale, Path(folder)))
        except (AuditError, OSError, subprocess.SubprocessError) as e:
            return NotMeasured(module.NAME, module.TITLE, str(e))
    assert isinstance(figure, Figure)
    return figure


def _markdown(*, check: bool) -> int:
    wrong = pages.stale() if check else pages.write()
    for name in wrong:
        print(f"{name} is out of step; run python -m bench --markdown" if check else f"wrote {name}")
    return EXIT_NEGATIVE if check and wrong else EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[2].strip())
    names = ", ".join(FIGURES)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"some of {names}; all, if none is named")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each figure, time allowing (5)")
    parser.add_argument("--quick", action="store_true", help="a tenth of sizes and time: does it work? not for quoting")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of the table")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the JSON to a file as well")
    parser.add_argument("--markdown", action="store_true", help="write the pages that follow from the kept result")
    parser.add_argument("--check", action="store_true", help="with --markdown: change nothing; status 1 if stale")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
