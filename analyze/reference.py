"""Write or check ``docs/reference/rules.md``, what every rule and detector says of itself, from the declarations.

``python -m gpuaudit.analyze.reference`` writes it, ``--check`` says whether it is out of step (status 1).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import gpuaudit
from gpuaudit.analyze.finding import Declaration, Threshold
from gpuaudit.analyze.registry import declarations
from gpuaudit.bundle.errors import EXIT_DONE, EXIT_NEGATIVE
from gpuaudit.bundle.rounding import digits

TARGET = Path(gpuaudit.__file__).parent.parent / "docs" / "reference" / "rules.md"

_HEAD = """# Rules and detectors

Generated from the declarations in `analyze/rules`, `analyze/chains` and `analyze/effects`; do not edit
(`python -m gpuaudit.analyze.reference`). The technical appendix of every report prints the same, with the thresholds
that held. A rule finds something, is clear, or was not evaluated and says why; without its input it is never clear.
"""


def markdown() -> str:
    """The reference: one part per rule, then per detector, then per kind of effect with thresholds, by name."""
    declared = declarations()
    contents = [f"- [{d.id}](#{d.id}): {d.title}" for d in declared]
    return "\n".join([_HEAD, *contents, "", *(line for d in declared for line in _part(d))]).rstrip() + "\n"


def _part(d: Declaration) -> Iterator[str]:
    kind = {"rule": "Rule", "chain": "Chain detector", "effect": "Effect"}[d.kind]
    yield from (f"## {d.id}", "", f"{kind}: {d.title}. {d.question}", "")
    yield "- Reads: " + "; ".join(f"`{table}` ({', '.join(columns)})" for table, columns in d.inputs)
    yield f"- Window: {d.window}"
    yield f"- Never claims: {d.never_claims}"
    for assumption in d.assumptions:
        yield f"- Assumes: {assumption}"
    if d.controls:
        yield f"- Supports controls: {', '.join(d.controls)}"
    yield ""
    if d.thresholds:
        yield from ("| threshold | value | source |", "|---|--:|---|", *map(_row, d.thresholds), "")


def _row(t: Threshold) -> str:
    return f"| `{t.name}` | {_cell(digits(t.value, t.unit))} | {_cell(t.source)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the reference, or with ``--check`` compare it; returns the exit status."""
    text = markdown()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
        return EXIT_DONE
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return EXIT_DONE
    print(f"{TARGET.name} is out of step with the declarations; run python -m gpuaudit.analyze.reference",
          file=sys.stderr)  # fmt: skip
    return EXIT_NEGATIVE


if __name__ == "__main__":
    sys.exit(main())
