"""Rule: errors of GPU memory that ECC saw, rows and pages taken out of use, and what the vendor says to do.

From ``nvml_health``, or for the counters from ``nvml_samples`` where only those have them: growth of the volatile
counters within the capture (a counter that falls began anew), the counters of the board's life, and the flags for row
remapping and page retirement. One finding per GPU and kind. Unit of the impact: count of errors, rows or pages.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpuaudit.analyze import coverage, intervals
from gpuaudit.analyze.context import Context, NotEvaluated, Outcome
from gpuaudit.analyze.drafts import about_gpu, derived
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Severity, Threshold
from gpuaudit.analyze.gpu_time import UNKNOWN
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.nvml_values import Array, Device, devices, growth, last_told, refusal, series

UNCORRECTED = Threshold(
    "uncorrected_growth", 1, "count",
    "NVIDIA, XID Errors, XID 48: one uncorrectable error already calls for a reset of the GPU", least=1,
)  # fmt: skip
CORRECTED = Threshold(
    "corrected_growth", 1, "count",
    "chosen: a corrected error does no harm; it is told as a notice, so that a row of them is seen to grow", least=1,
)  # fmt: skip

DECLARATION = Declaration(
    id="memory_errors",
    kind="rule",
    title="ECC errors, row remapping and page retirement",
    question="Did GPU memory have errors, and is a row or page waiting to be taken out of use?",
    inputs=(
        ("nvml_health", ("start_ns", "gpu_uuid", "ecc_enabled", "ecc_corrected_volatile", "ecc_uncorrected_volatile",
                         "ecc_corrected_aggregate", "ecc_uncorrected_aggregate", "retired_pages_single_bit",
                         "retired_pages_double_bit", "retired_pages_pending", "remapped_rows_corrected",
                         "remapped_rows_uncorrected", "remapped_rows_pending", "remapped_rows_failed")),
        ("nvml_samples", ("start_ns", "gpu_uuid", "ecc_corrected", "ecc_uncorrected")),
    ),
    thresholds=(UNCORRECTED, CORRECTED, coverage.JUDGED),
    texts={
        "uncorrected": "Uncorrectable memory errors of GPU {gpu} within the capture: {errors}; in the board's life: "
        "{life}.",
        "corrected": "Memory errors that GPU {gpu} corrected within the capture: {errors}; in the board's life: "
        "{life}.",
        "remap_failed": "GPU {gpu} reports that a row of its memory could not be remapped; rows remapped so far: "
        "{rows}.",
        "remap_pending": "GPU {gpu} has a row of memory that will be remapped at its next reset; rows remapped so far: "
        "{rows}.",
        "retirement_pending": "GPU {gpu} has pages of memory that will be retired when the driver is loaded again; "
        "pages retired so far: {pages}.",
        "history": "Uncorrectable memory errors of GPU {gpu} in the board's life: {life}; within the capture: "
        "{errors}.",
    },
    never_claims="That results were wrong, which allocation an error hit, or that the board will fail.",
    assumptions=(
        "A counter below its reading before began anew: the driver was loaded again in between.",
    ),
)  # fmt: skip

FIXES = {
    "uncorrected": "Stop the work on this GPU and reset it; run the vendor's diagnostics, and ask the hardware "
    "vendor's support if it happens again (NVIDIA, XID Errors, XID 48)",
    "corrected": "None is needed; watch whether the counter goes on growing (NVIDIA, XID Errors, XID 92, names a high "
    "rate as a case for support)",
    "remap_failed": "Take the GPU out of use and have it examined by the hardware vendor's support; NVIDIA, GPU Memory "
    "Error Management: a failed remapping is a criterion for return of the board",
    "remap_pending": "Reset the GPU when the work on it allows: the remapping takes effect then (NVIDIA, GPU Memory "
    "Error Management)",
    "retirement_pending": "Load the driver again or reboot when the work allows: the pages are retired then (NVIDIA, "
    "Dynamic Page Retirement)",
    "history": "None is needed now; take it into account if errors return",
}
"""What the vendor says to do, with its document."""

SEVERITY: dict[str, Severity] = {
    "uncorrected": "critical", "corrected": "notice", "remap_failed": "critical", "remap_pending": "warning",
    "retirement_pending": "warning", "history": "notice",
}  # fmt: skip
"""By the vendor's action: out of use at once, at the next opportunity, or none."""

HEALTH = tuple(c for c in DECLARATION.inputs[0][1] if c not in {"start_ns", "gpu_uuid"})


def evaluate(context: Context) -> Outcome:
    """One finding per GPU and kind."""
    gpus = devices(context.store, "nvml_health", "nvml_samples")
    if not gpus:
        return NotEvaluated(f"no NVML reading of any GPU: {context.quality.source_reason('nvml') or 'none recorded'}")
    read = [(gpu, _Memory(context, gpu)) for gpu in gpus]
    known = {gpu.uuid: memory.known for gpu, memory in read}
    items = [f for gpu, memory in read for f in _of_gpu(context, gpu, memory)]
    if not items and not any(len(t) for t in known.values()):
        why = refusal(context.store, "nvml_health", gpus[0].where, "ecc_uncorrected_volatile")
        return NotEvaluated(f"NVML told no counter of memory errors twice: {why}")
    return coverage.outcome(context, items, known, "ECC counters", DECLARATION.id)


class _Memory:
    """The memory columns of one GPU, and the time between the first and the last reading of the error counters."""

    def __init__(self, context: Context, gpu: Device) -> None:
        self.health = series(context.store, "nvml_health", gpu.where, HEALTH)
        self.samples = series(context.store, "nvml_samples", gpu.where, ("ecc_corrected", "ecc_uncorrected"))
        told = self.source("uncorrected")[1] != UNKNOWN
        at = self.source("uncorrected")[2][told]
        self.known: Intervals = intervals.single(int(at[0]), int(at[-1])) if len(at) else intervals.EMPTY

    def source(self, kind: str) -> tuple[str, Array, Array]:
        """(table, values, times) of the volatile counter: that of ``nvml_health`` where it was told twice."""
        values = self.health[f"ecc_{kind}_volatile"]
        if int((values != UNKNOWN).sum()) > 1:
            return "nvml_health", values, self.health["start_ns"]
        return "nvml_samples", self.samples[f"ecc_{kind}"], self.samples["start_ns"]

    def total(self, *columns: str) -> int | None:
        """Sum of the last readings of columns of ``nvml_health``; None where none was told."""
        told = [v for c in columns if (v := last_told(self.health[c])) is not None]
        return sum(told) if told else None


def _of_gpu(context: Context, gpu: Device, memory: _Memory) -> Iterator[Finding]:
    limits = {
        k: context.policy.value(t, DECLARATION.id) for k, t in (("uncorrected", UNCORRECTED), ("corrected", CORRECTED))
    }
    health = (context.book.where("nvml_health", gpu.where),)
    grew = {}
    for kind, limit in limits.items():
        _, values, _ = memory.source(kind)
        grew[kind] = growth(values)
        if (grew[kind] or 0) >= limit:
            errors = _errors(context, gpu, memory, kind)
            life = _life(memory, kind, health)
            yield _finding(context, gpu, kind, {"errors": errors, "life": life}, errors)
    life = _life(memory, "uncorrected", health)
    if life.value and (grew["uncorrected"] or 0) < limits["uncorrected"]:
        yield _finding(
            context, gpu, "history", {"life": life, "errors": _errors(context, gpu, memory, "uncorrected")}, life
        )
    rows_told = memory.total("remapped_rows_corrected", "remapped_rows_uncorrected")
    remapped = derived(rows_told, "count", health, "remapped rows, last reading", "NVML told none")
    for text, column in (("remap_failed", "remapped_rows_failed"), ("remap_pending", "remapped_rows_pending")):
        if last_told(memory.health[column]):
            flag = derived(1, "count", health, f"{column} was 1 at its last reading")
            yield _finding(context, gpu, text, {"rows": remapped}, flag)
    if last_told(memory.health["retired_pages_pending"]):
        told = memory.total("retired_pages_single_bit", "retired_pages_double_bit")
        pages = derived(told, "count", health, "retired pages, last reading", "NVML told none")
        flag = derived(1, "count", health, "retired_pages_pending was 1 at its last reading")
        yield _finding(context, gpu, "retirement_pending", {"pages": pages}, flag)


def _errors(context: Context, gpu: Device, memory: _Memory, kind: str) -> Quantity:
    """Growth of the volatile counter within the capture; with fewer than two readings it is not known."""
    table, values, _ = memory.source(kind)
    column = f"ecc_{kind}_volatile" if table == "nvml_health" else f"ecc_{kind}"
    rows = (context.book.where(table, f"{gpu.where} AND {column} IS NOT NULL"),)
    how = "growth of the volatile counter, reading by reading"
    return derived(growth(values), "count", rows, how, "fewer than two readings of the counter")


def _life(memory: _Memory, kind: str, evidence: tuple[str, ...]) -> Quantity:
    told = memory.total(f"ecc_{kind}_aggregate")
    return derived(told, "count", evidence, f"ecc_{kind}_aggregate, last reading", "NVML told no aggregate counter")


def _finding(context: Context, gpu: Device, kind: str, values: dict[str, Quantity | str], impact: Quantity) -> Finding:
    return about_gpu(
        context, DECLARATION, gpu, text=kind, severity=SEVERITY[kind], values=values, impact=impact,
        fixes=(Fix(FIXES[kind]),),
    )  # fmt: skip
