"""Every section on one host with everything: an H100 with a vLLM server that was scraped, probed and sampled.

Each number has evidence whose query gives its rows, each sentence its values, each chart what the report can draw.
"""

from __future__ import annotations

import importlib
import pkgutil
import string
from collections.abc import Iterator
from fractions import Fraction

import pytest

from gpuaudit.analyze import sections
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Quantity, Section
from gpuaudit.analyze.registry import section_makers
from gpuaudit.report.charts.bands import bands
from gpuaudit.report.charts.roofline import roofline
from gpuaudit.report.charts.stack import stack
from gpuaudit.report.charts.strips import strips
from tests.engine_scene import EngineScene, histogram
from tests.scenes import MS, T0, S, Scene

GIB = 1 << 30
PID = 7
SECONDS = 70


def host() -> Context:
    """A server that loads 16 GiB, reserves 40 GiB and then serves 20 requests of 64 tokens a second."""
    scene = Scene().clock(end=T0 + SECONDS * S).process(PID, start_ns=T0 + MS)
    for part in range(16):
        scene.cuda(
            PID, "cudaMalloc", T0 + (10 + part * 20) * MS, MS, device_pointer=(1 << 40) + part * GIB, size_bytes=GIB
        )
        scene.cuda(
            PID, "cudaMemcpy", T0 + (15 + part * 20) * MS, 10 * MS, device_pointer=(1 << 40) + part * GIB,
            size_bytes=GIB, direction=1,
        )  # fmt: skip
    scene.cuda(PID, "cudaMalloc", T0 + S, MS, device_pointer=1 << 42, size_bytes=40 * GIB)
    for second in range(2, SECONDS):
        at = T0 + second * S
        scene.cuda(PID, "cudaMemcpyAsync", at, MS, device_pointer=9 << 40, size_bytes=4096, direction=1, stream=1)
        scene.cuda(PID, "cudaLaunchKernel", at + 2 * MS, MS, stream=1)
        scene.cuda(PID, "cudaStreamSynchronize", at + 4 * MS, 900 * MS, stream=1)
        for call in range(8):
            scene.add(
                "nccl_calls", start_ns=at + call * MS, duration_ns=1, pid=PID, tid=PID, op="ncclAllReduce",
                return_code=0, comm_handle=1, comm_id=5, rank=0, nranks=2, datatype=9, reduce_op=0,
                count=4096 * (1 + second % 3), size_bytes=8192, stream=1,
            )  # fmt: skip
    memory = {"memory_used_bytes": 60 * GIB, "memory_reserved_bytes": GIB, "memory_total_bytes": 80 * GIB}
    scene.samples(
        T0, T0 + SECONDS * S, 0, [PID], gpu_utilization_percent=85, pcie_generation=5, pcie_width=16, **memory
    )
    for row in scene.rows["nvml_processes"]:
        row["memory_used_bytes"] = 59 * GIB
    for second in range(SECONDS):
        scene.add(
            "gpm_samples", start_ns=T0 + second * S, duration_ns=S, gpu_index=0, gpu_uuid="GPU-0", unavailable="",
            sm_activity_percent=80.5, tensor_half_percent=12.25, dram_bandwidth_percent=61.0,
        )  # fmt: skip
    engine = EngineScene(pid=PID)
    for key, value, source in (
        ("model", "meta-llama/Llama-3.1-8B-Instruct", "/v1/models"), ("dtype", "bfloat16", "/server_info"),
        ("num_gpu_blocks", "20000", "metric label"), ("block_size", "16", "metric label"),
        ("tensor_parallel_size", "1", "command line"), ("max_model_len", "8192", "/v1/models"),
        ("max_num_seqs", "256", "command line"),
    ):  # fmt: skip
        engine.setting(key, value, source)
    for second in range(SECONDS):
        engine.scrape(second, metrics(second))
    for table, rows in scene.rows.items():
        engine.rows(table, rows)
    gpus = [{"index": 0, "uuid": "GPU-0", "name": "NVIDIA H100 80GB HBM3", "driver": "1"}]
    return engine.context(gpus=gpus)


def metrics(second: int) -> dict[str, float]:
    n = 20 * second
    return {
        'vllm:num_requests_running{engine="0"}': 40, 'vllm:num_requests_waiting{engine="0"}': 0,
        'vllm:kv_cache_usage_perc{engine="0"}': 0.25, 'vllm:generation_tokens_total{engine="0"}': 64 * n,
        'vllm:prompt_tokens_total{engine="0"}': 512 * n, 'vllm:request_success_total{engine="0"}': n,
        **histogram("vllm:request_prompt_tokens", 512.0 * n, n, {"1000.0": n}),
        **histogram("vllm:request_generation_tokens", 64.0 * n, n, {"100.0": n}),
    }  # fmt: skip


@pytest.fixture(scope="module")
def context() -> Context:
    return host()


@pytest.fixture(scope="module")
def made(context: Context) -> list[Section]:
    return [make(context) for make in section_makers()]


def quantities(section: Section) -> Iterator[Quantity]:
    for s in section.statements:
        yield from (v for v in s.values.values() if isinstance(v, Quantity))
    for t in section.tables:
        yield from (c for row in t.rows for c in row if isinstance(c, Quantity))


def test_the_folder_is_the_registry() -> None:
    modules = [
        importlib.import_module(f"{sections.__name__}.{m.name}") for m in pkgutil.iter_modules(sections.__path__)
    ]
    assert len(modules) == len(section_makers())
    orders = [m.ORDER for m in modules]
    assert len(set(orders)) == len(orders)
    for module in modules:
        assert module.__doc__
        assert module.evaluate.__doc__


def test_everything_of_this_part_could_be_evaluated(made: list[Section]) -> None:
    states = {s.id: (s.state, s.reason) for s in made}
    for name in ("roofline", "compute_stall", "residency", "vram", "quantisation"):
        assert states[name][0] == "evaluated", states[name]


def test_every_number_has_evidence_and_a_formula(made: list[Section]) -> None:
    for section in made:
        for q in quantities(section):
            assert (q.value is None) == bool(q.reason), (section.id, q)
            if q.provenance != "assumed":
                assert q.evidence, (section.id, q)
                assert q.formula or q.provenance != "derived", (section.id, q)


def test_every_query_gives_its_rows(made: list[Section], context: Context) -> None:
    used = {i for section in made for q in quantities(section) for i in q.evidence}
    for e in context.book.entries():
        if e.id in used:
            assert len(context.store.sql(e.query)) == e.rows


def test_sentences_and_tables_are_whole(made: list[Section]) -> None:
    ids = [s.id for s in made]
    assert len(set(ids)) == len(ids)
    for section in made:
        assert section.question.endswith("?")
        for s in section.statements:
            assert {n for _, n, _, _ in string.Formatter().parse(s.text) if n} <= set(s.values)
        for t in section.tables:
            assert len({n for n, _ in t.columns}) == len(t.columns)
            assert all(len(row) == len(t.columns) for row in t.rows)
        assert all(len(text) > 20 for _, text in section.definitions), section.id


def test_the_report_can_draw_every_chart(made: list[Section]) -> None:
    for section in made:
        for chart in section.charts:
            if chart.kind == "roofline":
                assert roofline(chart.data, chart.title) is not None
            elif chart.kind == "stack":
                assert list(stack(chart.data, chart.title))
            elif chart.kind == "bands":
                assert bands(chart.data, chart.title, T0) is not None
            else:
                assert strips(chart.data, chart.title, T0)


def table(made: list[Section], section: str, name: str) -> list[dict[str, Quantity | str | None]]:
    found = next(t for s in made if s.id == section for t in s.tables if t.id == name)
    return [dict(zip((n for n, _ in found.columns), row, strict=True)) for row in found.rows]


def number(cell: Quantity | str | None) -> Fraction:
    assert isinstance(cell, Quantity)
    assert cell.value is not None
    return Fraction(cell.value)


def test_the_numbers_of_this_host(made: list[Section]) -> None:
    """1,280 tokens/s of 40 sequences; 320,000 tokens of cache at 131,072 bytes, a quarter used; 16 GiB loaded."""
    decode = next(r for r in table(made, "roofline", "points") if r["work"] == "decode")
    flop = 2 * 8 * 10**9 + 2 * (2 * 4096 * 32) * (512 + 32)
    assert number(decode["rate"]) == 1280 * flop
    (note,) = next(s for s in made if s.id == "roofline").notes
    assert note.startswith("GPUs of engine 0: NVML listed the engine's process")
    weights = next(r for r in table(made, "vram", "topology") if r["category"] == "weights")
    assert number(weights["bytes"]) == 16 * GIB
    assert weights["precision"] == "bfloat16"
    cache = 320_000 * 131_072
    pool = next(r for r in table(made, "vram", "topology") if r["category"] == "KV cache")
    assert number(pool["bytes"]) == cache
    (freed,) = table(made, "vram", "reclaimable")
    assert number(freed["bytes"]) == cache * 3 // 4
    parts = [number(r["bytes"]) for r in table(made, "vram", "topology")]
    assert sum(parts) == 61 * GIB
