"""Chain: graphs were captured and instantiated, and never launched.

Effect: the making of graphs on a thread. Cause: capture and instantiation of executable graphs that no recorded launch
names, of processes whose launches all tell their graph and were all recorded. A graph that is only made costs its
making and saves nothing. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration, Quantity

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated
    from gpuaudit.analyze.graphs import Graphs

DECLARATION = Declaration(
    id="graph_unused",
    kind="chain",
    title="Graphs never launched",
    question="Were CUDA graphs made that nobody launched?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "stream", "handle", "other_handle",
                        "return_code")),
        ("call_totals", ("start_ns", "pid", "op", "count")),
    ),
    thresholds=model.THRESHOLDS,
    texts={
        "graph_unused": "For {explained} of {effect_time} ({share}) of {effect} the thread captured and instantiated "
        "{graphs} graphs that were not launched until the capture ended.",
    },
    never_claims="That they would not have been launched later.",
    assumptions=(
        "A capture belongs to the instantiation that follows it on the same thread.",
        "An executable graph's handle that is used again for another one counts as launched for both.",
    ),
)  # fmt: skip


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Making of graphs that were not launched, by thread."""
    from gpuaudit.analyze.context import NotEvaluated  # noqa: PLC0415 - it imports what imports this
    from gpuaudit.analyze.graphs import read_graphs  # noqa: PLC0415 - it imports the context

    lost = context.quality.lost("cuda_calls")
    if lost:
        return NotEvaluated(f"records of CUDA calls were lost ({lost}): a launch may be among them")
    graphs = read_graphs(context, [e.pid for e in effects])
    found = ((e.key, _unused(context, e, graphs)) for e in effects if e.pid in graphs.handles_told)
    return {key: [cause] for key, cause in found if cause is not None}


def _unused(context: Context, e: Effect, graphs: Graphs) -> Cause | None:
    if e.tid is None:
        return None
    chosen, count = _never_launched(graphs, e.pid, graphs.of_thread(e.pid, e.tid))
    if not count:
        return None
    calls = graphs.calls.of(chosen)
    evidence = calls.evidence(context)
    return Cause(
        culprit="graphs never launched", time=graphs.time(chosen), evidence=evidence, text="graph_unused",
        what="its thread made graphs that were never launched",
        values={
            "graphs": Quantity(
                count, "count", "derived", evidence(calls.time), "executable graphs that no launch names"
            )
        },
    )  # fmt: skip


def _never_launched(graphs: Graphs, pid: int, mine: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], int]:
    """Calls that make a graph that was not launched (the capture before it too), and how many such graphs."""
    chosen = np.zeros(len(mine), dtype=bool)
    count, since = 0, list[int]()
    for i in np.flatnonzero(mine).tolist():
        made, failed = int(graphs.calls.a["made"][i]), bool(graphs.calls.a["code"][i])
        since.append(i)
        if made and not failed:
            if (pid, made) not in graphs.launched:
                chosen[since] = True
                count += 1
            since = []
    return chosen, count


DETECTOR = Detector(
    precedence=115,
    kinds=frozenset({"graph_making"}),
    scope="same thread",
    find=find,
    refuted_by="A launch of these graphs in a longer capture.",
    experiment="Turn the capture of graphs off (enforce_eager, no torch.compile mode with graphs), and see that "
    "nothing but the making is gone.",
    next_step="See for which shapes graphs are made at start-up, and make only those that requests have.",
)
