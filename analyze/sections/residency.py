"""Section: what was loaded, reserved and moved, per process; and over how many GPUs a model is split.

Bytes as calls asked for them, times in ns on CLOCK_BOOTTIME. Definitions: ``residency.py`` and ``parallelism.py``.
"""

from __future__ import annotations

from typing import Literal

from gpuaudit.analyze import residency
from gpuaudit.analyze.allocations import ALLOCATES
from gpuaudit.analyze.call_meanings import ALLOCATE, COPY, FIRST
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Quantity, Section, SectionTable, Statement
from gpuaudit.analyze.parallelism import Fingerprint, Verdict, read_fingerprints, read_verdicts
from gpuaudit.analyze.residency import Phase, Residency

ORDER = 35

ID = "residency"
MAX_ROWS = 512

PHASES = (
    ("pid", "process"), ("phase", "phase"), ("start", "begins after"), ("length", "lasts"), ("calls", "calls"),
    ("bytes", "bytes"), ("reason", "why not told apart"),
)  # fmt: skip
SPLITS = (
    ("comm", "communicator"), ("nranks", "ranks"), ("all_reduces", "all-reduces"), ("passes", "forward passes"),
    ("per_pass", "all-reduces per pass"), ("layers", "layers"), ("degree", "tensor-parallel degree"),
    ("reason", "rests on"),
)  # fmt: skip
CHECKS = (
    ("engine", "engine"), ("flag", "setting"), ("source", "told by"), ("degree", "from collectives"),
    ("result", "result"), ("reason", "reason"),
)  # fmt: skip

DEFINITIONS = (
    ("load", "The stretch of one-time copies from the host (no other copy went to the same address until it was "
     "freed), without a pause above 10 s, that moved most bytes: at least 64 MiB, and nine tenths of all one-time "
     "bytes. Copies into memory of 32 MiB and more that was made later and stays, and of which they fill less than "
     "half, are no part of it."),
    ("reservation", "Allocations of 32 MiB and more made after the load, alive at the end of the capture, into which "
     "nothing was copied from the host; at most 1,024 of them."),
    ("traffic", "Copies in either direction after load and reservation."),
    ("forward pass", "2·layers summing all-reduces of equal element count after one another, one more where the "
     "embedding is split as well; nine tenths of a communicator's all-reduces must come so, in at least 8 passes."),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """A row per process and phase, a row per communicator, a row per engine."""
    title = "Residency and split of the model"
    question = "What was loaded, reserved and moved, and over how many GPUs is a model split?"
    found = [residency.read_residency(context, pid) for pid in _processes(context)]
    splits, checks = read_fingerprints(context), read_verdicts(context)
    if not found and not splits:
        why = context.quality.source_reason("cuda") or "no call of any process on a GPU was recorded"
        return Section(ID, title, question, "not evaluated", why, definitions=DEFINITIONS)
    phases = [row for r in found for row in _rows(context, r)]
    tables = [
        SectionTable("phases", "Phases", PHASES, tuple(phases[:MAX_ROWS]), (), max(0, len(phases) - MAX_ROWS)),
        SectionTable(
            "splits", "Fingerprint of tensor parallelism", SPLITS, tuple(_split(context, f) for f in splits[:MAX_ROWS]),
            (), max(0, len(splits) - MAX_ROWS),
        ),
        SectionTable("checks", "Tensor-parallel degree, setting against collectives", CHECKS,
                     tuple(_check(context, v) for v in checks[:MAX_ROWS])),
    ]  # fmt: skip
    told = sum(1 for r in found if r.load is not None)
    degrees = sum(1 for f in splits if f.degree is not None)
    state: Literal["evaluated", "not evaluated"] = "evaluated" if told or degrees else "not evaluated"
    reason = f"phases told apart for {told} of {len(found)} processes, degree for {degrees} of {len(splits)} "
    reason += "communicators" + "".join(f"; {r.reason}" for r in found[:1] if r.reason)
    return Section(
        ID, title, question, state, reason, tuple(_statements(checks)),
        tuple(t for t in tables if t.rows), (), DEFINITIONS,
    )  # fmt: skip


def _processes(context: Context) -> list[int]:
    """Processes on any GPU, and those that allocated device memory."""
    allocated = f"{context.means(ALLOCATE)} AND {FIRST}"
    rows = context.store.sql(f"SELECT DISTINCT pid FROM cuda_calls WHERE {allocated} ORDER BY 1")
    listed = set(context.gpus_by_pid)
    own = {int(p) for (p,) in context.store.sql("SELECT pid FROM processes WHERE role IN ('recorder', 'attacher')")}
    return sorted(({int(p) for (p,) in rows} | listed) - own)


def _rows(context: Context, r: Residency) -> list[tuple[Quantity | str | None, ...]]:
    pid = f"{r.pid} ({context.process_name(r.pid)})"
    if r.load is None:
        return [(pid, None, None, None, None, None, r.reason)]
    loaded = f"{COPY.first} AND start_ns BETWEEN {r.load.start_ns} AND {r.load.end_ns}"
    out = [_phase(context, pid, "load", r.load, f"pid = {r.pid} AND {loaded}")]
    if r.reservation is not None:
        made = f"{ALLOCATES} AND end_ns BETWEEN {r.reservation.start_ns} AND {r.reservation.end_ns}"
        out.append(_phase(context, pid, "reservation", r.reservation, f"pid = {r.pid} AND {made}"))
    if r.traffic is not None:
        after = (r.reservation or r.load).end_ns
        out.append(_phase(context, pid, "traffic", r.traffic, residency.traffic_where(r.pid, after)))
    return out


def _phase(
    context: Context, pid: str, name: str, phase: Phase, where: str
) -> tuple[Quantity | str | None, ...]:  # fmt: skip
    evidence = (context.book.where("cuda_calls", where),)

    def q(value: int, unit: str, formula: str) -> Quantity:
        return Quantity(value, unit, "derived", evidence, formula)

    return (
        pid, name, q(phase.start_ns - context.window.start_ns, "ns", "first call − start of the capture"),
        q(phase.end_ns - phase.start_ns, "ns", "last − first"), q(phase.calls, "count", "calls of the phase"),
        q(phase.bytes, "bytes", "sum of their sizes"), None,
    )  # fmt: skip


def _split(context: Context, f: Fingerprint) -> tuple[Quantity | str | None, ...]:
    evidence = (context.book.where("nccl_calls", f"comm_id = {f.comm_id}"),)

    def q(value: int | None, formula: str) -> Quantity:
        why = "" if value is not None else f.reason
        return Quantity(value, "count", "derived", evidence, formula, why)

    none = None if f.degree is None else True
    return (
        f.name, q(f.nranks, "size of the communicator"),
        q(f.all_reduces, "summing all-reduces of the rank with most calls"),
        q(f.passes if none else None, "all-reduces explained / per pass"),
        q(f.per_pass if none else None, "length that runs are multiples of"),
        q(f.layers, "per pass / 2, or of the model where it is known"),
        q(f.degree, "ranks, where collectives have the fingerprint"), f.reason,
    )  # fmt: skip


def _check(context: Context, v: Verdict) -> tuple[Quantity | str | None, ...]:
    where = f"engine = {v.engine} AND op = 'tensor_parallel_size'"
    evidence = (context.book.where("engine_config", where),)
    why = "" if v.flag is not None else "no source tells it"
    flag = Quantity(v.flag, "count", "measured", evidence, "tensor_parallel_size as set", why)
    degree = _split(context, v.fingerprint)[6] if v.fingerprint is not None else None
    return (str(v.engine), flag, v.flag_source, degree, v.result, v.reason)


def _statements(checks: list[Verdict]) -> list[Statement]:
    return [
        Statement(
            "Engine {engine}: the tensor-parallel setting and the collectives disagree: {reason}.",
            {"engine": str(v.engine), "reason": v.reason},
        )
        for v in checks
        if v.result == "conflict"
    ]
