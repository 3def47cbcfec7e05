"""Chain: a thread captured or made graphs again after its process had begun to launch them.

Effect: the making of graphs on a thread, slow calls, a late arrival, or a drop of throughput. Cause: making (capture
from begin to end, instantiation, update) on the same thread that began after the process had begun to replay graphs:
after the first of ten launches in a row, or, where it never launched as many, after its first. A graph is made once and
launched many times; making one again costs what the launches were to save. A warm-up, which makes one graph after the
other and launches each a few times at most, is not making again. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration, Quantity

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated
    from gpuaudit.analyze.graphs import Graphs

DECLARATION = Declaration(
    id="graph_recapture",
    kind="chain",
    title="Graphs made again",
    question="Did a thread capture, instantiate or update CUDA graphs while its process was launching them already?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "stream", "handle", "other_handle")),
        ("call_totals", ("start_ns", "pid", "op", "count")),
    ),
    thresholds=model.THRESHOLDS,
    texts={
        "graph_recapture": "For {explained} of {effect_time} ({share}) of {effect} the thread was making graphs again: "
        "{captures} captures and {makings} instantiations or updates after the process had begun to launch graphs.",
    },
    never_claims="That the graphs were the same as before: what they hold is not recorded; nor that making them anew "
    "could have been avoided.",
    assumptions=("The capture that begins on a stream of a thread ends with the next end on that stream and thread.",),
)  # fmt: skip


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Making after the first launch, by thread."""
    from gpuaudit.analyze.graphs import read_graphs  # noqa: PLC0415 - it imports the context

    graphs = read_graphs(context, [e.pid for e in effects])
    found = ((e.key, _again(context, e, graphs)) for e in effects)
    return {key: [cause] for key, cause in found if cause is not None}


def _again(context: Context, e: Effect, graphs: Graphs) -> Cause | None:
    since = graphs.replays.get(e.pid, graphs.first_launch.get(e.pid))
    if since is None or e.tid is None:
        return None
    mine = graphs.of_thread(e.pid, e.tid) & (graphs.calls.a["start_ns"] > since)
    if not mine.any():
        return None
    calls = graphs.calls.of(mine)
    time = graphs.time(mine)
    evidence = calls.evidence(context)
    rows = evidence(time)
    edge = calls.a["edge"]
    return Cause(
        culprit="graphs made again", time=time, evidence=evidence, text="graph_recapture",
        what="its thread captured or made graphs again",
        values={
            "captures": Quantity(int((edge > 0).sum()), "count", "derived", rows, "captures begun once graphs"
                                 " were replayed"),
            "makings": Quantity(int(np.sum(edge == 0)), "count", "derived", rows, "calls that make or update a graph"),
        },
    )  # fmt: skip


DETECTOR = Detector(
    precedence=110,
    kinds=frozenset({"graph_making", "slow_call", "late_arrival", "throughput_drop", "gpu_idle", "slow_step"}),
    scope="same thread",
    find=find,
    refuted_by="The same effect in steps in which no graph is captured, made or updated.",
    experiment="Keep one graph for each shape and launch that (pad shapes to a few sizes, or capture them all at "
    "start-up), and capture again.",
    next_step="See what changes from one capture to the next: shapes, addresses of inputs, a cache of graphs that is "
    "too small.",
)
