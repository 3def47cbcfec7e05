"""Who entered a collective last by the GPU's own time: how long each rank's kernel ran longer than the shortest one.

A collective's kernel begins when its GPU reaches it and ends when all ranks have done their part, so the kernels of one
collective end together, and the one that began last is the shortest. How much longer another rank's kernel ran is time
in which it waited for that rank (or for its part of the wire), in ns. Durations are compared, and no two clocks.

The n-th kernel of a group on one rank is the n-th on every other: only where all have the same number of them, and each
n-th kernels were going on at one moment. Kernels of sends and receives end with their own peers, and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.gpu_activity import COMMUNICATION, WORK
from gpuaudit.analyze.store import NOT_OWN, Store

PAIRWISE = (
    "(contains(lower(coalesce(collective, name)), 'send') OR contains(lower(coalesce(collective, name)), 'recv'))"
)
"""SQL condition: the kernel sends or receives, and is no collective of a whole group (ncclDevKernel_SendRecv)."""

GROUP = "(coalesce(group_name, ''), coalesce(group_ranks, ''), coalesce(collective, name))"
MAX_GROUPS = 256

Member = tuple[int, int | None]
"""Process and device."""


@dataclass(frozen=True)
class DeviceLateness:
    """One member of one group: sums over the collectives that all members recorded.

    ``longer_ns``: its kernels, minus the shortest of each collective. ``last``: collectives in which its kernel was
    the shortest, alone. ``imposed_ns``: by how much the others' kernels were longer in those.
    """

    group: str
    collective: str
    member: Member
    members: int
    count: int
    kernel_ns: int
    longer_ns: int
    last: int
    imposed_ns: int


def read_device_lateness(store: Store) -> tuple[list[DeviceLateness], list[str]]:
    """A row per group and member; and for each group that could not be compared, why."""
    rows = store.sql(
        f"SELECT {GROUP} AS g, pid, device, list(start_ns::BIGINT ORDER BY start_ns, end_ns), "
        f"list(end_ns::BIGINT ORDER BY start_ns, end_ns) FROM gpu_activities WHERE {WORK} AND {COMMUNICATION} "
        f"AND NOT {PAIRWISE} AND pid IS NOT NULL AND {NOT_OWN} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    groups: dict[tuple[str, ...], dict[Member, npt.NDArray[np.int64]]] = {}
    for key, pid, device, starts, ends in rows:
        name = tuple(str(v) for v in (key.values() if isinstance(key, dict) else key))
        groups.setdefault(name, {})[int(pid), None if device is None else int(device)] = np.array(
            [starts, ends], dtype=np.int64
        )
    found: list[DeviceLateness] = []
    reasons: list[str] = []
    for (group, _, collective), members in list(groups.items())[:MAX_GROUPS]:
        why = _why_not(members)
        if why:
            reasons.append(f"{collective[:80]} of group {group[:40] or 'without a name'}: {why}")
        else:
            found += _compare(group, collective, members)
    if len(groups) > MAX_GROUPS:
        reasons.append(f"{len(groups) - MAX_GROUPS} further groups: more than the {MAX_GROUPS} that are looked at")
    return found, reasons


def _why_not(members: dict[Member, npt.NDArray[np.int64]]) -> str:
    """Why the kernels of these members cannot be put side by side; empty where they can."""
    if len(members) < 2:
        return "one rank alone was recorded"
    counts = sorted({m.shape[1] for m in members.values()})
    if len(counts) > 1:
        return f"ranks recorded between {counts[0]} and {counts[-1]} of them"
    times = np.stack(list(members.values()))
    apart = np.flatnonzero(times[:, 0].max(axis=0) >= times[:, 1].min(axis=0))
    if len(apart):
        return f"number {int(apart[0]) + 1} of one rank was over before that of another began"
    return ""


def _compare(group: str, collective: str, members: dict[Member, npt.NDArray[np.int64]]) -> list[DeviceLateness]:
    times = np.stack(list(members.values()))
    lasted = times[:, 1] - times[:, 0]
    longer = lasted - lasted.min(axis=0)
    alone = (longer == 0).sum(axis=0) == 1
    return [
        DeviceLateness(
            group, collective, member, len(members), int(lasted.shape[1]), int(lasted[i].sum()), int(longer[i].sum()),
            int((alone & (longer[i] == 0)).sum()), int(longer[:, alone & (longer[i] == 0)].sum()),
        )
        for i, member in enumerate(members)
    ]  # fmt: skip
