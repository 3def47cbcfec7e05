"""Write the files that follow from ``bundle/tables.py``, or say which of them is out of step.

``python -m gpuaudit.bundle.generate`` writes them in a source tree; with ``--check`` it changes nothing and exits
with 1 when one differs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gpuaudit.bundle import tables
from gpuaudit.bundle.errors import EXIT_DONE, EXIT_NEGATIVE, EXIT_USAGE

ROOT = Path(__file__).resolve().parents[1]
GENERATED: dict[str, Callable[[], str]] = {
    "capture/bpf/tables.h": tables.c_header,
    "docs/reference/tables.md": tables.markdown,
}


def stale(root: Path = ROOT) -> list[str]:
    """Names of the generated files that differ from what the definitions say, or are missing."""
    return [n for n, make in GENERATED.items() if not (root / n).is_file() or (root / n).read_text("utf-8") != make()]


def write(root: Path = ROOT) -> list[str]:
    """Bring every generated file into step; the names of those that changed."""
    changed = stale(root)
    for name in changed:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(GENERATED[name](), "utf-8")
    return changed


def main(arguments: Sequence[str]) -> int:
    """Run from the command line; the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m gpuaudit.bundle.generate [--check]", file=sys.stderr)
        return EXIT_USAGE
    if not arguments:
        for name in write():
            print(f"wrote {name}")
        return EXIT_DONE
    wrong = stale()
    for name in wrong:
        print(f"{name} is out of step with bundle/tables.py; run python -m gpuaudit.bundle.generate", file=sys.stderr)
    return EXIT_NEGATIVE if wrong else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
