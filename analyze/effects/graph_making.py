"""Graph making: time that a thread spent in capturing, instantiating and updating CUDA graphs, where it is noticeable.

Of a thread that spent at least :data:`SHARE` of its observed time so, from its first recorded call to its last. Units:
ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import intervals
from gpuaudit.analyze.call_meanings import any_of
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.finding import Declaration, Threshold

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context
    from gpuaudit.analyze.graphs import Graphs
    from gpuaudit.analyze.threads import Thread

KIND = "graph_making"

SHARE = Threshold(
    "making_share", Fraction(1, 20), "share",
    "the share from which a finding is a warning: graphs are made to save launches, not to take their place",
)  # fmt: skip

DECLARATION = Declaration(
    id=KIND,
    kind="effect",
    title="Making of graphs",
    question="Which threads spent a noticeable part of their time in making CUDA graphs?",
    inputs=(("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "handle", "other_handle", "parent_ns")),),
    thresholds=(SHARE,),
    texts={},
    never_claims="That a graph was made in vain, or that launches without one would have taken less.",
)


def effects(context: Context) -> Sequence[Effect]:
    """One per thread."""
    from gpuaudit.analyze.call_meanings import GRAPH_MAKE  # noqa: PLC0415 - with the two below
    from gpuaudit.analyze.graphs import BEGIN, read_graphs  # noqa: PLC0415 - they import the context
    from gpuaudit.analyze.threads import threads  # noqa: PLC0415

    making = threads(context, any_of(BEGIN, GRAPH_MAKE))
    graphs = read_graphs(context, [t.pid for t in making])
    found = (_of_thread(context, t, graphs) for t in making)
    return [e for e in found if e is not None]


def _of_thread(context: Context, thread: Thread, graphs: Graphs) -> Effect | None:
    mine = graphs.of_thread(thread.pid, thread.tid)
    time = intervals.intersect(graphs.time(mine), thread.observed)
    least = context.policy.value(SHARE, DECLARATION.id)
    if not len(time) or Fraction(intervals.measure(time), thread.length_ns) < least:
        return None
    pid, tid = thread.pid, thread.tid
    return Effect(
        kind=KIND, key=f"{KIND}:{pid}:{tid}",
        name=f"the making of graphs on thread {tid} of {context.process_name(pid)} ({pid})", pid=pid, tid=tid,
        op="make", time=time, parts=np.stack([graphs.calls.a["start_ns"][mine], graphs.reach[mine]], axis=1),
        of_ns=thread.length_ns, evidence=_evidence(context, graphs, time),
        subject={"pid": str(pid), "tid": str(tid)},
    )  # fmt: skip


def _evidence(context: Context, graphs: Graphs, time: intervals.Intervals) -> Callable[[], tuple[str, ...]]:
    return lambda: graphs.calls.evidence(context)(time)
