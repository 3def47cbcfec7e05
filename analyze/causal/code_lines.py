"""Lines of the programs behind a chain: where slow calls were made, and what the culprit's threads called meanwhile.

From the stacks of the calls themselves: of an effect those of its own operation, of a culprit those of its recorded
calls that share a moment with the time allotted to it. A call without a stack says nothing. Units: ns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import call_sites
from gpuaudit.analyze.call_meanings import OUTERMOST
from gpuaudit.analyze.causal.during import THREAD, Columns, During, rows_during, thread_key
from gpuaudit.analyze.causal.findings import Explained
from gpuaudit.analyze.intervals import Intervals

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

MAX_LINES = 3
"""Lines of one effect or culprit, those with most time first."""

MAX_PARTS = 4
"""Effects of a chain whose lines are looked up, those of which most is explained."""

_CALLS = tuple(
    During(
        table,
        THREAD,
        {"op": "op", "python": "coalesce(python_stack::VARCHAR, '')", "native": "coalesce(native_stack::VARCHAR, '')"},
        f"{OUTERMOST} AND {call_sites.WITH_STACK}",
    )
    for table in ("cuda_calls", "nccl_calls")
)


def of_parts(context: Context, parts: Sequence[Explained]) -> tuple[str, ...]:
    """Lines of the effects, then those of the culprits; none where no stack was recorded."""
    if not context.store.row_count("stack_frames"):
        return ()
    wanted: dict[str, tuple[int, Intervals]] = {}
    for n, x in enumerate(parts[:MAX_PARTS]):
        if x.effect.tid is not None:
            wanted[f"{n} effect"] = (thread_key(x.effect.pid, x.effect.tid), x.effect.time)
        for pid, tid in (x.cause.thread, *x.cause.ran) if x.cause.thread else x.cause.ran:
            wanted[f"{n} culprit {pid} {tid}"] = (thread_key(pid, tid), x.part.allotted)
    found = [rows_during(context, what, wanted) for what in _CALLS]
    out: list[str] = []
    for name in sorted(wanted, key=lambda k: ("culprit" in k, k)):
        x = parts[int(name.partition(" ")[0])]
        of_effect = name.endswith("effect")
        for rows in found:
            if name in rows:
                op, whose = (x.effect.op, "") if of_effect else ("", f"{x.cause.culprit}: ")
                out += [whose + line for line in _lines(context, rows[name], op)]
    return tuple(dict.fromkeys(out))


def _lines(context: Context, rows: Columns, op: str) -> Iterator[str]:
    """ "cudaMalloc from train.py:142 in forward()", of one operation or (empty) of all."""
    time = Counter[tuple[str, str, str]]()
    took = rows["end_ns"] - rows["start_ns"]
    chosen = rows["op"] == op if op else np.ones(len(took), dtype=bool)
    for name, python, native, ns in zip(
        *(rows[c][chosen].tolist() for c in ("op", "python", "native")), took[chosen].tolist(), strict=True
    ):
        time[name, python, native] += ns
    ordered = sorted(time, key=lambda k: (-time[k], k))
    for name, python, native in ordered[:MAX_LINES]:
        kind, stack = ("python", python) if python else ("native", native)
        frames = call_sites.frames(context.store, int(stack), kind)
        if frames:
            yield f"{name} from {frames[0]}"
