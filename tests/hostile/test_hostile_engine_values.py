"""Servers that export nonsense: every rule still ends with an outcome, and the document can be read back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuaudit.analyze.load import parse_document
from gpuaudit.analyze.run import AnalyzeOptions, analyze_store, document_bytes
from gpuaudit.analyze.store import Store
from tests.served import Served, Traffic
from tests.verifications import SEALED

ENGINE_RULES = 8
NONSENSE = (float("nan"), float("inf"), float("-inf"), -1.0, 1e308, -1e308, 5e-324, 0.5, 2.0**53)
KEYS = (
    "max_num_seqs", "num_gpu_blocks", "block_size", "max_model_len", "gpu_memory_utilization",
    "kv_cache_max_concurrency", "tensor_parallel_size", "enable_prefix_caching", "max_num_batched_tokens",
)  # fmt: skip
VALUES = (
    "0",
    "-1",
    "999999999999999999",
    "0.000000000000000001",
    "auto",
    "nan",
    "1e9",
    "{engine}",
    "\x1b[2J",
    "x" * 9000,
)


def check(scene: Served) -> None:
    gpus = [{"index": 0, "uuid": "GPU-0", "name": scene.gpu, "driver": "570.1"}]
    store = Store.from_tables(scene.sink.tables(), open_body={"synthetic": False, "gpus": gpus})
    document = analyze_store(store, SEALED, AnalyzeOptions())
    assert sum(1 for o in document.outcomes if o.id[:1] == "r" and o.id[1:2].isdigit()) == ENGINE_RULES
    parse_document(document_bytes(document))


@pytest.mark.parametrize("gauge", ["running", "waiting", "kv"])
def test_gauges_of_nonsense(gauge: str) -> None:
    """Every kind of nonsense in one capture, one after the other, with a full cache and a queue around it."""
    calm = Traffic(kv=0.95, waiting=20, preemptions=1, seconds=0, settings={"max_num_seqs": "8"})
    scene = calm.scene()
    for t, value in enumerate(NONSENSE * 2, start=1):
        scene.scrape(t, replace(calm, **{gauge: value}).at(t))  # type: ignore[arg-type]
    check(scene)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(told=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)), full=st.booleans())
def test_settings_of_nonsense(told: dict[str, str], full: bool) -> None:
    check(Traffic(kv=0.95 if full else 0.2, waiting=20 if full else 0, preemptions=1, seconds=8, settings=told).scene())


def test_a_name_without_end() -> None:
    check(Traffic(model="{engine}" * 5_000, kv=0.95, waiting=20, preemptions=1, seconds=8).scene())


def test_histograms_of_nonsense() -> None:
    scene = Traffic(seconds=0).scene()
    for t in range(1, 9):
        scene.scrape(t, replace(Traffic(), ttft=1e300 * t, tpot=-1.0, prompt=10**15, generated=0).at(t))
    check(scene)
