"""What a call means, for every name of the probe table: three libraries, one meaning, and what has none is named."""

from __future__ import annotations

import re

import pytest

from gpuaudit.analyze import call_meanings
from gpuaudit.analyze.call_meanings import MEANINGS, OTHER, meaning_sql
from gpuaudit.analyze.store import Store
from gpuaudit.capture.probes import PROBE_TABLE

OPS = sorted({p.op for p in PROBE_TABLE if p.table == "cuda_calls"})
SAME = {
    "ALLOCATE": ("cudaMalloc", "cuMemAlloc_v2", "hipMalloc"),
    "ALLOCATE_MANAGED": ("cudaMallocManaged", "cuMemAllocManaged", "hipMallocManaged"),
    "ALLOCATE_HOST": ("cudaHostAlloc", "cuMemHostAlloc", "hipHostMalloc"),
    "FREE": ("cudaFreeAsync_ptsz", "cuMemFree_v2", "hipFree"),
    "FREE_HOST": ("cudaFreeHost", "cuMemFreeHost", "hipHostFree"),
    "BLOCKING_COPY": ("cudaMemcpy_ptds", "cuMemcpyHtoD_v2", "hipMemcpy_spt"),
    "COPY": ("cudaMemcpyAsync_ptsz", "cuMemcpyDtoHAsync_v2", "hipMemcpyHtoDAsync"),
    "SET": ("cudaMemset2D", "cuMemsetD32_v2", "hipMemsetAsync"),
    "LAUNCH": ("cudaLaunchKernelExC_ptsz", "cuLaunchKernelEx", "hipModuleLaunchKernel"),
    "GRAPH_LAUNCH": ("cudaGraphLaunch_ptsz", "cuGraphLaunch", "hipGraphLaunch"),
    "STREAM_SYNC": ("cudaStreamSynchronize_ptsz", "cuStreamSynchronize", "hipStreamSynchronize_spt"),
    "DEVICE_SYNC": ("cudaDeviceSynchronize", "cuCtxSynchronize", "hipDeviceSynchronize"),
    "EVENT_SYNC": ("cudaEventSynchronize", "cuEventSynchronize", "hipEventSynchronize"),
    "EVENT_RECORD": ("cudaEventRecordWithFlags_ptsz", "cuEventRecord", "hipEventRecord"),
    "STREAM_WAIT": ("cudaStreamWaitEvent_ptsz", "cuStreamWaitEvent", "hipStreamWaitEvent"),
    "GRAPH_MAKE": ("cudaGraphInstantiate", "cuGraphExecUpdate_v2", "hipGraphInstantiate"),
    "MODULE_LOAD": ("cudaLibraryLoadData", "cuModuleLoadData", "hipModuleLoad"),
}
"""One name of each library for every meaning."""


@pytest.fixture(scope="module")
def meanings() -> dict[str, str]:
    """What SQL says of every name, as analyses ask it."""
    names = ", ".join(f"('{op}')" for op in OPS)
    return dict(Store.from_tables({}).sql(f"SELECT op, {meaning_sql()} FROM (VALUES {names}) AS t(op)"))


@pytest.mark.parametrize("constant", SAME)
def test_three_libraries_mean_the_same(constant: str, meanings: dict[str, str]) -> None:
    meaning = getattr(call_meanings, constant)
    assert set(SAME[constant]) <= set(OPS)
    assert {meanings[op] for op in SAME[constant]} == {meaning.name}


def test_every_meaning_is_tested_and_distinct() -> None:
    assert {getattr(call_meanings, c) for c in SAME} == set(MEANINGS)
    assert len({m.name for m in MEANINGS}) == len(MEANINGS)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("Memcpy", {"copy", "blocking copy"}), ("Memset", {"set memory"}),
        ("Synchronize", {"wait for a stream", "wait for a device", "wait for an event"}),
        ("LaunchKernel", {"launch a kernel"}), ("GraphLaunch", {"launch a graph"}),
    ],
)  # fmt: skip
def test_a_name_that_says_what_it_does_is_taken_for_it(part: str, expected: set[str], meanings: dict[str, str]) -> None:
    """Nodes of graphs are no calls of what they hold."""
    named = [op for op in OPS if re.search(part, op) and "Node" not in op]
    assert len(named) >= 3
    assert {meanings[op] for op in named} <= expected, [op for op in named if meanings[op] not in expected]


def test_asynchronous_copies_are_never_blocking(meanings: dict[str, str]) -> None:
    assert not [op for op in OPS if "Async" in op and meanings[op] == call_meanings.BLOCKING_COPY.name]
    assert not [op for op in OPS if re.search("Peer|DtoD", op) and meanings[op] == call_meanings.BLOCKING_COPY.name]


def test_memory_without_an_address_is_not_balanced_against_frees(meanings: dict[str, str]) -> None:
    """Arrays and handles of physical memory are no addresses; cuMemMap has one."""
    assert {meanings[op] for op in ("cudaMallocArray", "cudaFreeArray", "cuMemCreate", "cuMemRelease")} == {OTHER}
    assert meanings["cuMemMap"] == call_meanings.ALLOCATE.name
    assert meanings["cuMemUnmap"] == call_meanings.FREE.name
