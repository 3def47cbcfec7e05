"""Chain: a followed process ended because the kernel killed it for want of memory.

Effect: the process is gone, from its end (or, where that was not seen, from the kill) to the end of the capture. Cause:
the kernel had chosen it as the victim of the out-of-memory killer. Joined by process id, in the life of that process.
Its exit status is the counter-evidence: −9 is the signal that the kernel sends, another one is not its doing. Units:
ns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpuaudit.analyze import severity
from gpuaudit.analyze.finding import Chain, Declaration, Gain, Link, Quantity, Share
from gpuaudit.analyze.store import NOT_OWN

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, Outcome

DECLARATION = Declaration(
    id="oom_kill",
    kind="chain",
    title="Killed for want of memory",
    question="Did a process of this capture end because the kernel killed it for want of memory?",
    inputs=(
        ("oom_kills", ("start_ns", "pid", "comm", "resident_bytes", "killer_pid", "killer_comm", "cgroup_id")),
        ("processes", ("start_ns", "duration_ns", "pid", "op", "role", "comm", "exit_status")),
    ),
    thresholds=severity.THRESHOLDS,
    texts={
        "oom_kill": "Process {process} was killed for want of memory while it held {resident}; the allocation that "
        "could not be served was made by {culprit}. From its end to the end of the capture it is missing for {absent}.",
        "oom_kill_refuted": "Process {process} was chosen to be killed for want of memory while it held {resident}, at "
        "an allocation of {culprit}, but ended with status {status}, which is not the kernel's signal. It is missing "
        "for {absent}.",
    },
    never_claims="That the victim used more memory than it should: the kernel takes who frees most; nor what its work "
    "would have been worth.",
    assumptions=("A process id that was chosen in the life of a process is that process.",),
)  # fmt: skip

KILLED = -9
"""Exit status of a process that ended by SIGKILL, which is what the out-of-memory killer sends (mm/oom_kill.c)."""

_KILLS = f"""
WITH lives AS (
  SELECT pid, start_ns, max(end_ns) AS end_ns, max(exit_status) AS exit_status, max_by(comm, seen_ns) AS comm
  FROM processes
  WHERE role NOT IN ('recorder', 'attacher', 'observer') GROUP BY pid, start_ns
)
SELECT o.start_ns::BIGINT, o.pid::BIGINT, try_cast(o.resident_bytes AS BIGINT), o.killer_pid, o.killer_comm,
  o.leaf::BIGINT, o.row::BIGINT, try_cast(p.end_ns AS BIGINT), p.exit_status, p.comm
FROM oom_kills o JOIN lives p ON p.pid = o.pid AND p.start_ns <= o.start_ns
  AND coalesce(p.end_ns, o.start_ns) >= o.start_ns
WHERE o.{NOT_OWN} ORDER BY 1, 2, 6, 7
"""


@dataclass(frozen=True)
class _Kill:
    at: int
    pid: int
    resident: int | None
    killer: str
    leaf: int
    row: int
    end: int | None
    status: int | None
    name: str
    """Of the life that was ended: another process may have had the number later."""


def evaluate(context: Context) -> Outcome:
    """One chain for each followed process that the kernel chose."""
    from gpuaudit.analyze.causal import recorded  # noqa: PLC0415 - it imports what imports this
    from gpuaudit.analyze.context import MAX_NAME, Found  # noqa: PLC0415

    why = recorded.unrecorded(context, "oom_kills", "kill for want of memory", "memory")
    if why is not None:
        return why
    kills = [
        _Kill(at, pid, resident, _killer(killer, comm), leaf, row, end, status, str(name)[:MAX_NAME])
        for at, pid, resident, killer, comm, leaf, row, end, status, name in context.store.sql(_KILLS)
    ]
    kills = list({k.pid: k for k in reversed(kills)}.values())[::-1]
    whole = context.store.row_count("oom_kills")
    return Found(
        [_chain(context, k) for k in kills], f"kills on the whole host: {whole}, of followed processes: {len(kills)}"
    )


def _killer(pid: int | None, comm: str | None) -> str:
    return "a process that was not recorded" if pid is None else f"{comm or 'name not recorded'} ({pid})"


def _chain(context: Context, k: _Kill) -> Chain:
    book = context.book
    kill = book.listed("oom_kills", np.array([[k.leaf, k.row]], dtype=np.int64), f"pid = {k.pid}")
    evidence = (kill, book.where("processes", f"pid = {k.pid}"))
    absent = max(0, context.window.end_ns - (k.at if k.end is None else max(k.end, k.at)))
    refuted = k.status is not None and k.status != KILLED
    name = f"{k.pid} ({k.name})"
    time = Quantity(absent, "ns", "derived", evidence, "end of the capture − end of the process")
    explained = Quantity(
        1 if absent else None, "share", "derived", evidence, "overlap / effect",
        "" if absent else "the capture ended with the process",
    )  # fmt: skip
    return Chain(
        id="",
        detector=DECLARATION.id,
        severity=severity.of_share(absent, context.window.length_ns, context.policy, DECLARATION.id),
        text="oom_kill_refuted" if refuted else "oom_kill",
        values={
            "process": name,
            "culprit": k.killer,
            "resident": Quantity(
                k.resident, "bytes", "measured", (kill,), "resident_bytes",
                "" if k.resident is not None else "its size was not recorded",
            ),
            "absent": time,
            **({"status": str(k.status)} if refuted else {}),
        },
        subject={"pid": str(k.pid)},
        links=(
            Link(
                effect=f"process {name} is gone until the end of the capture",
                cause=f"the kernel killed it for want of memory, at an allocation of {k.killer}",
                effect_ns=time, overlap_ns=time, explained=explained, evidence=evidence,
            ),
        ),
        impact=time,
        confidence="low" if refuted else ("high" if k.status == KILLED else "medium"),
        grade=context.quality.grade_of(tuple(t for t, _ in DECLARATION.inputs)),
        against=_against(k),
        refuted_by="An exit status of the process other than the kernel's signal, or its end before the kill.",
        next_step="See what filled the memory (memory.stat of the cgroup, resident_bytes by process in "
        "process_samples), and give the cgroup more, or the process less to hold: pinned buffers, loader workers, "
        "page cache.",
        evidence=evidence,
        experiment="Raise the memory limit (memory.max) or halve the batch held in host memory, and capture again.",
        gain=Gain(Quantity(0, "ns", "derived", evidence, "nothing shows that it would have gone on"), time),
        shares=(Share(DECLARATION.title, time, explained),) if absent else (),
    )  # fmt: skip


def _against(k: _Kill) -> tuple[str, ...]:
    out = []
    if k.end is None:
        out.append("the end of the process was not seen")
    elif k.status is None:
        out.append("how the process ended was not seen")
    elif k.status != KILLED:
        out.append(f"the process ended with status {k.status}, not with the signal that the kernel sends ({KILLED})")
    return tuple(out)
