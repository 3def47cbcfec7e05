"""Rule: a process that holds more managed memory than the GPUs it is on have.

The most managed memory that the process held at once, by the balance of its allocations and frees, against the
memory of the GPUs on which NVML listed it. Beyond that, pages move between host and GPU while kernels run. Unit of the
impact: bytes above the memory of the GPUs.
"""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze import call_totals
from gpuaudit.analyze.balance import Balance, read_balances
from gpuaudit.analyze.call_meanings import ALLOCATE_MANAGED, FREE, LIBRARIES, any_of
from gpuaudit.analyze.context import Context, Found, NotEvaluated, Outcome
from gpuaudit.analyze.drafts import about_process, derived, worst
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Threshold
from gpuaudit.analyze.store import quoted

MANAGED_AND_FREES = any_of(ALLOCATE_MANAGED, FREE)

OVER = Threshold(
    "managed_ratio", 1, "ratio",
    "CUDA C++ Programming Guide, GPU memory oversubscription: managed memory may be larger than the GPU's, and pages "
    "are then evicted",
)  # fmt: skip

DECLARATION = Declaration(
    id="managed_oversubscription",
    kind="rule",
    title="Managed memory beyond the GPU",
    question="Did a process hold more managed memory than its GPUs have?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "op", "return_code", "size_bytes", "device_pointer")),
        ("probes", ("op", "library")),
        ("nvml_processes", ("gpu_uuid", "pid")),
        ("nvml_samples", ("gpu_uuid", "memory_total_bytes", "parent_uuid")),
    ),
    thresholds=(OVER,),
    texts={
        "managed_oversubscription": "Process {process} held up to {managed} of managed memory, {ratio} times the "
        "{memory} of the GPUs that NVML listed it on ({gpus}): {over} of it cannot be on them at once."
    },
    never_claims="That pages moved, or how much time it cost: page faults are not recorded; nor that all was used.",
    assumptions=("What was allocated before a process was probed is not counted.",
                 "Managed memory that is freed by a function that is not probed is counted as still held.",),
)  # fmt: skip


def evaluate(context: Context) -> Outcome:
    """One finding per process."""
    if not context.store.row_count("cuda_calls"):
        reason = context.quality.source_reason("cuda") or "no process that maps a probed library made one"
        return NotEvaluated(f"no CUDA call was recorded: {reason}")
    lost = context.quality.lost("cuda_calls")
    if not _probed(context):
        return NotEvaluated("cudaMallocManaged was not among the functions that this recording probed")
    balances = read_balances(context.store, ALLOCATE_MANAGED)
    if lost:
        return NotEvaluated(f"records of CUDA calls were lost ({lost}): an allocation or a free may be among them")
    items: list[Finding] = []
    nowhere = []
    for balance in balances:
        memory = _memory(context, balance.pid)
        if not memory or call_totals.of_process(context.store, balance.pid, MANAGED_AND_FREES):
            nowhere.append(balance.pid)
        elif (found := _of_process(context, balance, memory)) is not None:
            items.append(found)
    told = f"{len(balances) - len(nowhere)} of {len(balances)} processes with managed memory evaluated"
    if nowhere:
        told += "; of the others NVML did not tell the GPU or its memory, or allocations were aggregated in the kernel"
    return Found(worst(items), told) if items or not nowhere else NotEvaluated(told)


def _probed(context: Context) -> bool:
    """Whether the recording says nothing of its probes, or has one at the allocation that is looked for."""
    rows = context.store.sql(
        f"SELECT count(*), count(*) FILTER ({ALLOCATE_MANAGED.condition}) FROM probes WHERE library IN {LIBRARIES}"
    )
    return not rows[0][0] or bool(rows[0][1])


def _memory(context: Context, pid: int) -> dict[str, int]:
    """Memory of each physical GPU on which NVML listed the process."""
    rows = context.store.sql(
        "SELECT gpu_uuid, min(gpu_index), max(memory_total_bytes) FROM nvml_samples WHERE parent_uuid IS NULL AND "
        f"memory_total_bytes > 0 AND gpu_uuid IN (SELECT gpu_uuid FROM nvml_processes WHERE pid = {pid}) "
        "GROUP BY gpu_uuid ORDER BY 2, 1"
    )
    return {str(uuid): int(total) for uuid, _, total in rows}


def _of_process(context: Context, balance: Balance, memory: dict[str, int]) -> Finding | None:
    peak, total = balance.peak, sum(memory.values())
    if Fraction(peak, total) <= context.policy.value(OVER, DECLARATION.id):
        return None
    rows = (context.book.where("cuda_calls", f"pid = {balance.pid} AND {MANAGED_AND_FREES.first}"),)
    uuids = ", ".join(quoted(u) for u in memory)
    told = (context.book.where("nvml_samples", f"gpu_uuid IN ({uuids}) AND memory_total_bytes IS NOT NULL"),)
    listed = (context.book.where("nvml_processes", f"pid = {balance.pid}"),)
    impact = derived(max(0, peak - total), "bytes", (*rows, *told), "managed − memory, at least 0")
    values: dict[str, Quantity | str] = {
        "managed": derived(peak, "bytes", rows, "most bytes of managed memory held at once"),
        "memory": derived(total, "bytes", (*told, *listed), "memory of the GPUs on which the process was listed"),
        "ratio": derived(Fraction(peak, total), "ratio", (*rows, *told), "managed / memory"),
        "over": impact,
        "gpus": ", ".join(memory),
    }
    fix = Fix(
        "Hold in GPU memory what kernels use, and move the rest by hand, or use more GPUs", "", "", "",
        "the program has to plan its copies itself",
    )  # fmt: skip
    return about_process(
        context, DECLARATION, balance.pid, text="managed_oversubscription", severity="warning", values=values,
        impact=impact, fixes=(fix,),
    )  # fmt: skip
