"""GPU idle: time between the first and the last work of a process on a device in which no work of it ran there.

By the GPU's own record (``gpu_activities``), so only where a recording has one. The thread that lost it is the one that
makes most of the calls that give work. Units: ns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gpuaudit.analyze.call_meanings import COPY, FIRST, GRAPH_LAUNCH, LAUNCH, SET, any_of
from gpuaudit.analyze.causal.model import Effect
from gpuaudit.analyze.gpu_activity import Device, read_devices

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context

KIND = "gpu_idle"

GIVES_WORK = any_of(LAUNCH, GRAPH_LAUNCH, COPY, SET)


def effects(context: Context) -> Sequence[Effect]:
    """One per process and device, by process and device."""
    return [_of_device(context, d, d.pid) for d in read_devices(context.store) if d.pid is not None and len(d.idle)]


def key(pid: int, device: int | None) -> str:
    """Name of the effect of one device."""
    return f"{KIND}:{pid}:{'' if device is None else device}"


def _of_device(context: Context, d: Device, pid: int) -> Effect:
    named = "a device" if d.device is None else f"device {d.device}"
    return Effect(
        kind=KIND, key=key(pid, d.device),
        name=f"the idle time of {named} between the work of {context.process_name(pid)} ({pid})",
        pid=pid, tid=_giver(context, pid), op="idle", time=d.idle, parts=d.idle, of_ns=d.span_ns,
        evidence=_evidence(context, d), subject={"pid": str(pid), "device": str(d.device)},
    )  # fmt: skip


def _giver(context: Context, pid: int) -> int | None:
    """The thread that gives most work; of equals the first."""
    rows = context.store.sql(
        f"SELECT tid FROM cuda_calls WHERE pid = {int(pid)} AND {context.means(GIVES_WORK)} AND {FIRST} "
        "GROUP BY tid ORDER BY count(*) DESC, tid LIMIT 1"
    )
    return int(rows[0][0]) if rows else None


def _evidence(context: Context, d: Device) -> Callable[[], tuple[str, ...]]:
    return lambda: (context.book.where("gpu_activities", d.where),)
