"""Steps paced by their host: the GPU had finished what they gave it as soon as the host asked, again and again.

One effect per thread, of the steps that :mod:`gpuaudit.analyze.paced_steps` shows it of: from the first launch of each
until its closing wait began. Only of processes without a record of the GPU's own time (that would tell of its idle time
itself), where such steps are many, and a good part of the thread's time from its first step to its last. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from gpuaudit.analyze import intervals, silence, unlisted
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.finding import Declaration, Threshold
from gpuaudit.analyze.gpu_activity import WORK

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context
    from gpuaudit.analyze.steps import Steps

KIND = "host_paced"

ROUNDING_NS = 1_000
"""By no more than that is a share of a step off as a floating-point number, steps of years included."""

WAITED = Threshold(
    "waited_share", Fraction(1, 10), "share",
    "chosen: had the GPU needed no time at all, the step would be a tenth shorter at most. A share, because what a "
    "wait for nothing takes (some microseconds) depends on the host, the call and what records it",
)  # fmt: skip
QUEUE = Threshold(
    "launch_ns", 50_000, "ns",
    "chosen: a launch that is only queued takes some microseconds, and a probe adds two or three; ten times that may "
    "be a wait for room in the queue",
)  # fmt: skip
STEPS = Threshold("least_steps", 100, "count", "chosen: five times what a thread needs to have steps at all; fewer are "
                  "a test, a start or an end")  # fmt: skip
SHARE = Threshold(
    "paced_share", Fraction(1, 4), "share",
    "chosen, as for threads that spend much of their time in launches: a quarter of the thread's time from its first "
    "step to its last",
)  # fmt: skip

DECLARATION = Declaration(
    id=KIND,
    kind="effect",
    title="Steps paced by the host",
    question="Which threads found the GPU done whenever they waited for it, so that they set the pace themselves?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "return_code", "stream", "handle", "device",
                        "direction", "parent_op")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "stream", "return_code")),
        ("call_totals", ("start_ns", "duration_ns", "pid", "count")),
    ),
    thresholds=(WAITED, QUEUE, STEPS, SHARE),
    texts={},
    never_claims="That the GPU was idle for all of that time, nor for how much of it; nor that no step waited for it "
    "by other means than calls, such as memory that it writes and the host looks at.",
    assumptions=("A process whose calls choose no two devices uses one.",),
)  # fmt: skip


def effects(context: Context) -> Sequence[Effect]:
    """One per thread."""
    if silence.unplaced_losses(context) > 0 or unlisted.complete_until(context, "cuda_calls") is not None:
        return []  # a wait that has no row would make one step of two, and hide that it was long
    timed = {pid for (pid,) in context.store.sql(f"SELECT DISTINCT pid FROM gpu_activities WHERE {WORK}")}
    if None in timed:
        return []
    found = (_of_thread(context, s) for s in context.steps if s.pid not in timed)
    return [e for e in found if e is not None]


def _of_thread(context: Context, s: Steps) -> Effect | None:
    from gpuaudit.analyze.paced_steps import paced  # noqa: PLC0415 - it imports the context

    waited, queue_ns, least, share = (context.policy.value(t, DECLARATION.id) for t in DECLARATION.thresholds)
    of_ns = int(s.ends[-1] - s.starts[0])
    # Most threads' waits are far too long by themselves: their other calls need not be read.
    brief = (s.ends - s.asked) <= (s.ends - s.starts) * float(waited) + ROUNDING_NS
    if brief.sum() < least or int((s.asked - s.starts)[brief].sum()) < of_ns * share:
        return None
    told = paced(context, s, Fraction(waited), int(queue_ns))
    time = intervals.from_bounds(told.parts[:, 0], told.parts[:, 1])
    if len(told.parts) < least or not len(time) or intervals.measure(time) < of_ns * share:
        return None
    pid, tid = s.pid, s.tid
    return Effect(
        kind=KIND, key=f"{KIND}:{pid}:{tid}",
        name=f"the {len(told.parts)} steps that thread {tid} of {context.process_name(pid)} ({pid}) paced itself",
        pid=pid, tid=tid, op="step", time=time, parts=told.parts, of_ns=of_ns,
        evidence=lambda: (context.book.where("cuda_calls", s.where),), subject={"pid": str(pid), "tid": str(tid)},
        notes=_notes(len(s), told.judged, len(told.parts)),
    )  # fmt: skip


def _notes(steps: int, judged: int, found: int) -> tuple[str, ...]:
    waited = f"in {judged - found} more steps the thread waited: there the GPU, or what it did itself, set the pace"
    unknown = (
        f"{steps - judged} more steps are not judged: their wait did not cover all they gave, another thread used the "
        "GPU too, or some of their calls failed, made graphs, were answered “not yet” or have no row"
    )
    return (*([waited] if judged > found else []), *([unknown] if steps > judged else []))
