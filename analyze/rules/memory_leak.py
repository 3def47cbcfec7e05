"""Rule: memory of a process that grows through the whole capture, by the balance of its allocations and frees.

The observed time of a process, from its first recorded CUDA call to its last, is cut into ``windows`` of equal length;
in each, the least that it held is its low water. Growth of the low water from every window to the next, after the first
one, in which a program loads, is consistent with a leak: caches and pools stop growing. Unit of the impact: bytes.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import call_totals, intervals
from gpuaudit.analyze.balance import EITHER, HOLDING, Balance, read_balances
from gpuaudit.analyze.context import Context, Found, NotEvaluated, Outcome
from gpuaudit.analyze.drafts import about_process, derived, worst
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Threshold
from gpuaudit.analyze.threads import blind
from gpuaudit.analyze.words import duration

WINDOWS = Threshold(
    "windows", 8, "count",
    "chosen: a low water without a trend rises in six steps in a row once in 7! = 5,040 times",
    least=3, most=1_000,
)  # fmt: skip
GROWTH = Threshold(
    "growth_bytes", 67_108_864, "bytes",
    "chosen: 64 MiB, three of the 20 MiB blocks in which PyTorch's allocator takes memory",
)  # fmt: skip
GROWTH_SHARE = Threshold(
    "growth_share", Fraction(1, 20), "share",
    "chosen: of what the process holds at the end, a twentieth; less may be the last of its warming up",
)  # fmt: skip
SPAN = Threshold("span_ns", 30_000_000_000, "ns", "chosen: in less than half a minute a program may still be loading")

DECLARATION = Declaration(
    id="memory_leak",
    kind="rule",
    title="Growth of GPU memory, as by a leak",
    question="Does the memory that a process allocated and did not free grow through the whole capture?",
    inputs=(
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "op", "return_code", "size_bytes", "device_pointer")),
        ("gaps", ("start_ns", "duration_ns", "source", "table_name", "pid")),
    ),
    thresholds=(WINDOWS, GROWTH, GROWTH_SHARE, SPAN),
    texts={
        "memory_leak": "Process {process} held at least {low_last} in the end, {growth} more than at the beginning: "
        "the least it held rose in every one of {steps} steps over {observed} ({rate}). Allocations: "
        "{allocations}, frees: {frees}. This is consistent with a leak; a program that is still loading, or a cache "
        "that is still filling, looks the same."
    },
    never_claims="That it is a leak, nor anything of memory that is "
    "taken by other functions, or kept within a pool.",
    window="equal parts of the time from a process's first recorded CUDA call to its last",
    assumptions=(
        "An address belongs to one allocation at a time within a process.",
        "A process without a free of an unknown address freed nothing that it had allocated before it was probed.",
    ),
)  # fmt: skip

NS_PER_S = 10**9


def evaluate(context: Context) -> Outcome:
    """One finding per process."""
    lost = context.quality.lost("cuda_calls")
    if lost:
        return NotEvaluated(f"records of CUDA calls were lost ({lost}): a free among them would look like a leak")
    balances = read_balances(context.store, EITHER)
    if not balances:
        return NotEvaluated(
            f"no allocation was recorded: {context.quality.source_reason('cuda') or 'no probed process made one'}"
        )
    items: list[Finding] = []
    refused: list[str] = []
    for balance in balances:
        edges = _edges(context, balance.pid)
        why = _why_not(context, balance, edges)
        if why:
            refused.append(f"process {balance.pid}: {why}")
        elif (found := _of_process(context, balance, edges)) is not None:
            items.append(found)
    told = f"{len(balances) - len(refused)} of {len(balances)} processes evaluated"
    told = "; ".join([told, *refused[:MAX_NAMED], *([f"and {len(refused)} in all"] if refused[MAX_NAMED:] else [])])
    return Found(worst(items), told) if items or not refused else NotEvaluated(told)


MAX_NAMED = 10
"""Processes that could not be evaluated and are named."""


def _edges(context: Context, pid: int) -> npt.NDArray[np.int64]:
    """Limits of the windows: from the first recorded call of the process to its last."""
    ((start, end),) = context.store.sql(
        f"SELECT min(start_ns), max(coalesce(end_ns, start_ns)) FROM cuda_calls WHERE pid = {pid}"
    )
    count = int(context.policy.value(WINDOWS, DECLARATION.id))
    return np.array([int(start) + (int(end) - int(start)) * i // count for i in range(count + 1)], dtype=np.int64)


def _why_not(context: Context, balance: Balance, edges: npt.NDArray[np.int64]) -> str:
    span = int(context.policy.value(SPAN, DECLARATION.id))
    if edges[-1] - edges[0] < span:
        return f"it was observed for {duration(int(edges[-1] - edges[0]))}, less than the {duration(span)} it takes"
    if fast := call_totals.of_process(context.store, balance.pid, HOLDING):
        return f"{fast} allocations and frees of it were aggregated in the kernel, without their addresses"
    if balance.unmatched:
        return (
            f"allocations and frees of it match no recorded one ({balance.unmatched}): it was probed late, or uses "
            "functions that are not probed"
        )
    hidden = intervals.clip(blind(context, balance.pid), int(edges[0]), int(edges[-1]))
    if len(hidden):
        return f"its calls could not be seen for {duration(intervals.measure(hidden))}"
    return ""


def _of_process(context: Context, balance: Balance, edges: npt.NDArray[np.int64]) -> Finding | None:
    low = balance.low_water(edges)[1:]
    grown, last = int(low[-1] - low[0]), int(low[-1])
    if grown < context.policy.value(GROWTH, DECLARATION.id) or not bool((np.diff(low) > 0).all()):
        return None
    if Fraction(grown, last) < context.policy.value(GROWTH_SHARE, DECLARATION.id):
        return None
    rows = (context.book.where("cuda_calls", f"pid = {balance.pid} AND {HOLDING.first}"),)
    every = (context.book.where("cuda_calls", f"pid = {balance.pid}"),)
    observed = int(edges[-1] - edges[0])
    impact = derived(grown, "bytes", rows, "low water of the last window − low water of the second")
    length = int(edges[-1] - edges[1])
    values: dict[str, Quantity | str] = {
        "growth": impact,
        "low_first": derived(int(low[0]), "bytes", rows, "least bytes held in the second window"),
        "low_last": derived(last, "bytes", rows, "least bytes held in the last window"),
        "steps": derived(len(low) - 1, "count", rows, "windows after the second"),
        "observed": derived(observed, "ns", every, "first to last recorded CUDA call of the process"),
        "rate": derived(Fraction(grown * NS_PER_S, length), "bytes/s", every, "growth / time of those windows"),
        "allocations": derived(balance.allocations, "count", rows, "successful allocations"),
        "frees": derived(balance.frees, "count", rows, "successful frees"),
    }
    fix = Fix(
        "Look for what is kept from step to step: a list of results, a graph of gradients, a cache without a limit"
    )
    return about_process(
        context, DECLARATION, balance.pid, text="memory_leak", severity="warning", values=values, impact=impact,
        fixes=(fix,),
    )  # fmt: skip
