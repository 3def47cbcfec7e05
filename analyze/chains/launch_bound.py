"""Chain: a GPU ran out of work because its kernels are over sooner than the next one is launched.

Effect: idle time of a device, by the GPU's own record. Cause: gaps between two pieces of work whose second was given by
a call that had not returned when the gap began, and that came within ``near_ns`` of the same thread's call before it:
the thread did little but give work, and the GPU waited for it all the same. A gap in whose beginning the work was
queued already (another stream, an event, the device's own latency), or before which the thread did something else, is
none of these. Without the GPU's own record nobody knows that it was idle: the chain ``launch_paced`` then tells what
the host's waits prove, and the rule ``tiny_launches`` what its launches show. Units: ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.call_meanings import FIRST
from gpuaudit.analyze.call_rows import Rows
from gpuaudit.analyze.causal import model
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.finding import Declaration, Quantity, Threshold
from gpuaudit.analyze.gpu_activity import Device, read_devices
from gpuaudit.analyze.medians import median

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

NEAR = Threshold(
    "near_ns", 100_000, "ns",
    "chosen: an eager framework takes 5 to 50 µs of host code from one launch to the next; twice that is another thing",
)  # fmt: skip

DECLARATION = Declaration(
    id="launch_bound",
    kind="chain",
    title="Bound by launches",
    question="Was a GPU idle because its kernels ended sooner than the host could launch the next?",
    inputs=(
        ("gpu_activities", ("start_ns", "duration_ns", "pid", "op", "device", "stream", "correlation")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "correlation", "parent_op")),
    ),
    thresholds=(*model.THRESHOLDS, NEAR),
    texts={
        "launch_bound": "For {explained} of {effect_time} ({share}) of {effect} the GPU had run out of work while the "
        "thread did little but give it more: {gaps} gaps. Its kernels take {kernel}, and {pace} pass from the start "
        "of one call that gives work to the next (medians).",
    },
    never_claims="That the whole would be shorter by as much: a kernel that another one waits for cannot begin "
    "earlier; nor what a call took without being recorded, for a profiler makes launches slower.",
    assumptions=("Work belongs to the call of the same process and correlation number.",),
)  # fmt: skip

Array = npt.NDArray[np.int64]


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Gaps that end with work given by a thread that did nothing else."""
    from gpuaudit.analyze.effects.gpu_idle import key  # noqa: PLC0415 - beside the effect's maker

    devices = {key(d.pid, d.device): d for d in read_devices(context.store) if d.pid is not None}
    found = ((e.key, _of_device(context, devices[e.key])) for e in effects if e.key in devices)
    return {name: [cause] for name, cause in found if cause is not None}


def _of_device(context: Context, d: Device) -> Cause | None:
    near = int(context.policy.value(NEAR, DECLARATION.id))
    calls = _calls(context, d)
    work = context.store.arrays(
        "SELECT start_ns::BIGINT AS start_ns, end_ns::BIGINT AS end_ns, correlation::UBIGINT AS correlation, "
        "(op = 'kernel')::BIGINT AS kernel, leaf::BIGINT AS leaf, row::BIGINT AS row "
        f"FROM gpu_activities WHERE {d.where} AND correlation IS NOT NULL ORDER BY 1, 5, 6"
    )
    gaps = d.idle
    if not len(gaps) or not len(work["start_ns"]) or not len(calls["start_ns"]):
        return None
    at = np.searchsorted(work["start_ns"], gaps[:, 1])
    at = np.minimum(at, len(work["start_ns"]) - 1)
    place = np.searchsorted(calls["correlation"], work["correlation"][at])
    place = np.minimum(place, len(calls["correlation"]) - 1)
    linked = (work["start_ns"][at] == gaps[:, 1]) & (calls["correlation"][place] == work["correlation"][at])
    waited = calls["end_ns"][place] > gaps[:, 0]
    chosen = linked & waited & (calls["since"][place] >= 0) & (calls["since"][place] <= near)
    if not chosen.any():
        return None
    mine = {"start_ns": gaps[chosen, 0], "end_ns": gaps[chosen, 1], "leaf": work["leaf"][at[chosen]],
            "row": work["row"][at[chosen]]}  # fmt: skip
    rows = Rows("gpu_activities", d.where, mine)
    evidence = rows.evidence(context)
    listed = evidence(rows.time)
    kernels = work["kernel"] == 1
    own_calls = (context.book.where("cuda_calls", f"pid = {d.pid} AND correlation IS NOT NULL"),)
    return Cause(
        culprit="launches", time=rows.time, text="launch_bound", what="its host gave work more slowly than it was done",
        evidence=lambda time: (*evidence(time), *own_calls),
        values={
            "gaps": Quantity(int(chosen.sum()), "count", "derived", listed, "gaps that end with work given so"),
            "kernel": median((work["end_ns"] - work["start_ns"])[kernels], "ns", listed, "median duration of a kernel"),
            "pace": median(
                calls["pace"][calls["pace"] >= 0], "ns", own_calls, "median time from call to call of a thread"
            ),
        },
    )  # fmt: skip


def _calls(context: Context, d: Device) -> dict[str, npt.NDArray[Any]]:
    """Calls that gave work, by correlation: ``since`` the end of the same thread's call before it, and ``pace`` from
    its start; -1 for a thread's first."""
    from gpuaudit.analyze.effects.gpu_idle import GIVES_WORK  # noqa: PLC0415 - beside the effect's maker

    return context.store.arrays(
        "SELECT correlation::UBIGINT AS correlation, start_ns::BIGINT AS start_ns, end_ns::BIGINT AS end_ns, "
        "coalesce(greatest(start_ns::BIGINT - (lag(end_ns) OVER w)::BIGINT, 0), -1)::BIGINT AS since, "
        "coalesce(start_ns::BIGINT - (lag(start_ns) OVER w)::BIGINT, -1)::BIGINT AS pace FROM cuda_calls "
        f"WHERE pid = {d.pid} AND correlation IS NOT NULL AND end_ns IS NOT NULL AND {FIRST} "
        f"AND {context.means(GIVES_WORK)} "
        "WINDOW w AS (PARTITION BY tid ORDER BY start_ns, leaf, row) "
        "QUALIFY row_number() OVER (PARTITION BY correlation ORDER BY start_ns, leaf, row) = 1 ORDER BY 1"
    )


DETECTOR = Detector(
    precedence=125,
    kinds=frozenset({"gpu_idle"}),
    scope="same process and correlation number",
    find=find,
    refuted_by="The same gaps when the sequence is launched as one CUDA graph: then the device itself, or a dependency "
    "between kernels, makes them.",
    experiment="Capture the sequence once as a CUDA graph (torch.cuda.graph, torch.compile with "
    'mode="reduce-overhead") and launch that; or fuse small kernels, or raise the batch size.',
    next_step="Look at the kernels before and after the gaps: many short ones in a fixed order suit a graph.",
)
