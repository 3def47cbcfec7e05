"""Write or check ``docs/reference/probes.md``, the probe table for people, from the rows themselves.

``python -m gpuaudit.capture.reference`` writes it, ``--check`` says whether it is out of step (status 1).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import gpuaudit
from gpuaudit.capture.probes import LIBRARIES, PROBE_TABLE, Flag, Library, Probe, describe

TARGET = Path(gpuaudit.__file__).parent.parent / "docs" / "reference" / "probes.md"

HEAD = """# The probe table

Generated from `capture/probe_rows/`; do not edit (`python -m gpuaudit.capture.reference`). `audit probes --json` gives
the same for programs.

Each function is probed at its entry and at its return, in every version of the library that a process maps. A name that
a library does not export is passed over; what it exports and nobody probes is counted and listed in the evidence
(`libraries.not_observed`). Twins for the per-thread default stream (`_ptds`, `_ptsz`, `_spt`) and versions (`_v2`) are
functions of their own. Of NCCL, `ncclX` and `pncclX` are one function.

How values are found, by the System V ABI for x86-64:

- `rdi` … `r9`: the six integer registers at entry; `>> 32`: the upper half, which holds the second 32-bit member of a
  structure; `stack[n]`: the n-th 8 bytes of the arguments on the stack, structures of more than 16 bytes among them.
- `*rdi`, `*(rdi + 32)`: what the pointer leads to, at entry; `at return`: when the function has succeeded, otherwise
  null.
- A number: what the function's name says (cuMemcpyHtoD copies from host to device: 1).
- `a × b`: the product, null where it leaves 64 bits; `null unless … is 0`: the value has no meaning otherwise.
- `fold of 128 bytes`: splitmix64 over an ncclUniqueId, the communicator's identity.

A communicator that was split or shrunk from another has an identity that follows from it, the same on every rank: with
`mix` the finaliser of splitmix64, `h = mix(0x9e3779b97f4a7c15 ^ parent)`, `h = mix(h ^ n)` for the n-th split of that
parent, from 0, and `h = mix(h ^ colour)`; a shrink has the colour 0xffffffff. Those of ncclCommInitAll have one that
holds within their process: the same from the first handle and the process's run, with 0xfffffffe.

Calls marked • change what exists. They are rows of their own also when calls are so many that others are added up.

Left out on purpose, and therefore among the names that are listed as not observed: questions that are answered at once
(cudaGetDevice, cudaGetLastError, cudaStreamIsCapturing, attributes, occupancy, ncclCommGetAsyncError), textures and
surfaces, graphics interoperability, the registration of code at program start, parameters of nodes of a graph that is
not executable, and the driver's functions with 32-bit device pointers, from before CUDA 3.2.
"""


def markdown() -> str:
    """The reference page."""
    out = [HEAD]
    out.append(f"{len(PROBE_TABLE) - 1} functions.\n")
    for library in LIBRARIES:
        note = f" **{library.note[0].upper()}{library.note[1:]}.**" if library.note else ""
        out.append(f"## {library.name}\n")
        out.append(f"Files: `{library.files}`. {len(library.probes)} rows, source {library.source}.{note}\n")
        out.append("| functions | table | what is read |\n|---|---|---|")
        out += [_row(probes, values) for probes, values in _alike(library)]
        out.append("")
    return "\n".join(out).rstrip() + "\n"


def _alike(library: Library) -> Iterator[tuple[list[Probe], dict[str, str]]]:
    """Neighbours with the same values, and what those are."""
    rows = zip(library.probes, describe([library]), strict=True)
    for _, group in groupby(rows, lambda r: (r[0].table, r[0].flags, r[0].versions, r[1]["values"])):
        pairs = list(group)
        values = pairs[0][1]["values"]
        yield [probe for probe, _ in pairs], values if isinstance(values, dict) else {}


def _row(probes: Iterable[Probe], values: dict[str, str]) -> str:
    found = list(probes)
    mark = "• " if found[0].flags & Flag.STATE else ""
    names = ", ".join(f"`{p.op}`" for p in found)
    files = f" in files `{found[0].versions}`" if found[0].versions else ""
    read = ", ".join(f"{name} = {place}" for name, place in values.items()) or "–"
    cells = (f"{mark}{names}{files}", found[0].table, read)
    return f"| {' | '.join(c.replace('|', chr(92) + '|').replace('*', chr(92) + '*') for c in cells)} |"


def main() -> int:
    """Write the page, or with ``--check`` compare it; returns the exit status."""
    text = markdown()
    if "--check" in sys.argv[1:]:
        if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        sys.stderr.write(f"{TARGET.name} is out of step with the rows; run python -m gpuaudit.capture.reference\n")
        return 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
