"""The worked examples of counters, histograms, quantiles, windows and aggregation, through the real functions."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze.inference.aggregate import aggregate
from gpuaudit.analyze.inference.model import Buckets, GpuWindow, HistogramDelta, RunTotals, Window
from gpuaudit.analyze.inference.quantiles import quantile
from gpuaudit.analyze.inference.windows import plan, window_length_s
from tests.engine_scene import EngineScene
from tests.inference_cases import Case, cases, exact

RUNNING = {"vllm:num_requests_running": 1}


def _two_scrapes(first: dict[str, float], last: dict[str, float], seconds: float = 2) -> Window:
    """The one window between two scrapes of a server."""
    (window,) = EngineScene().scrape(0, RUNNING | first).scrape(seconds, RUNNING | last).run().windows
    return window


@pytest.mark.parametrize("case", cases("cnt"), ids=str)
def test_counters(case: Case) -> None:
    name = "vllm:iteration_tokens_total_sum"
    before, after = case.inputs["iteration_tokens_total_sum"]
    window = _two_scrapes({name: before}, {name: after}, case.inputs["secs"])
    assert case.agrees(window.generation_tps, case.expected)


@pytest.mark.parametrize("case", cases("pfx"), ids=str)
def test_prefix_hits(case: Case) -> None:
    ends = [{f"vllm:prefix_cache_{what}_total": case.inputs[what][i] for what in ("hits", "queries")} for i in (0, 1)]
    assert case.agrees(_two_scrapes(ends[0], ends[1]).prefix_hit_share, case.expected)


@pytest.mark.parametrize("case", cases("his"), ids=str)
def test_histogram_means(case: Case) -> None:
    name = "vllm:time_to_first_token_seconds"
    ends = [
        {f"{name}_sum": case.inputs["sum"][i], f"{name}_count": case.inputs["count"][i],
         f'{name}_bucket{{le="+Inf"}}': case.inputs["count"][i]}
        for i in (0, 1)
    ]  # fmt: skip
    ttft = _two_scrapes(ends[0], ends[1]).ttft
    if case.id == "his-03":
        assert ttft.window_mean is None
        assert ttft.mean == Fraction(500, 1000)
    else:
        assert ttft.mean == ttft.window_mean
        assert case.agrees(None if ttft.mean is None else ttft.mean * 1000, case.expected)


@pytest.mark.parametrize("case", cases("p99"), ids=str)
def test_quantiles(case: Case) -> None:
    edges, counts = zip(*case.inputs["buckets"], strict=True)
    found = quantile(Buckets(tuple(float(e) for e in edges), counts), exact(case.inputs["q"]))
    assert case.agrees(None if found is None else found.value, case.expected)


@pytest.mark.parametrize("case", cases("win"), ids=str)
def test_windows(case: Case) -> None:
    i = case.inputs
    if case.id == "win-01":
        assert plan(i["duration_s"], i["window_s"]) == case.expected
        assert window_length_s(i["duration_s"]) == i["window_s"]
    elif "gen_tps" in i:
        assert _window(i).active is case.expected
    else:
        scene = EngineScene()
        gauges = {"vllm:num_requests_waiting": 0} | (
            {} if i["running"] is None else {"vllm:num_requests_running": i["running"]}
        )
        (window,) = scene.scrape(0, gauges).scrape(i["duration_s"], gauges).run().windows
        assert window.evaluable is case.expected


def _window(i: dict[str, Any], seconds: int = 2) -> Window:
    """A window with the rates and gauges of an example."""
    return Window(
        duration_s=Fraction(seconds), planned_s=Fraction(seconds), running=i.get("running", i.get("run")),
        waiting=i.get("waiting"), generation_tokens=None if i.get("gen_tps") is None else i["gen_tps"] * seconds,
        kv_last_share=None if i.get("kv") is None else Fraction(i["kv"], 100),
        gpu=GpuWindow(1, None if i.get("gpu_util") is None else Fraction(i["gpu_util"])),
    )  # fmt: skip


def _windows(i: dict[str, Any]) -> list[Window]:
    """The windows of an example of lists: one per entry, of 2 s where no length is given."""
    lengths = {"run", "tps", "util", "secs", "actual_secs", "dh", "dq", "kv_last", "kv_peak", "gen_total", "mean"}
    count = max(len(v) for k, v in i.items() if k in lengths)
    seconds = i.get("actual_secs") or i.get("secs") or [2] * count
    out = []
    for n, s in enumerate(seconds):
        w = _window({"running": _at(i, "run", n, 1), "gen_tps": _at(i, "tps", n, 5)}, s)
        out.append(replace(
            w, index=n, planned_s=Fraction(i.get("planned", seconds)[n]), running_mean=_fraction(_at(i, "mean", n)),
            prefix_hits=_at(i, "dh", n), prefix_queries=_at(i, "dq", n),
            kv_last_share=_share(_at(i, "kv_last", n)), kv_peak_share=_share(_at(i, "kv_peak", n)),
            gpu=GpuWindow(1, _fraction(_at(i, "util", n))),
            counters={"generation_tokens": i["gen_total"][n]} if "gen_total" in i else {},
        ))  # fmt: skip
    return out


def _at(i: dict[str, Any], key: str, n: int, otherwise: Any = None) -> Any:
    return i[key][n] if key in i else otherwise


def _fraction(value: int | None) -> Fraction | None:
    return None if value is None else Fraction(value)


def _share(percent: int | None) -> Fraction | None:
    return None if percent is None else Fraction(percent, 100)


def _told(totals: RunTotals) -> dict[str, Fraction | None]:
    """Fields of the run by the names of the examples."""
    percent = {"avg": totals.kv_avg_share, "peak": totals.kv_peak_share}
    return {
        "run": totals.running, "tps": totals.generation_tps, "util": totals.gpu_utilization_percent,
        **{k: None if v is None else v * 100 for k, v in percent.items()},
    }  # fmt: skip


@pytest.mark.parametrize("case", cases("agg"), ids=str)
def test_aggregation(case: Case) -> None:
    windows = _windows(case.inputs)
    if case.id == "agg-07":
        assert case.inputs["second_evaluable"] is False
        windows[1] = replace(windows[1], running=None)
        assert not windows[1].evaluable
    if case.id == "agg-08":
        windows = [replace(w, running=None) for w in windows]
    totals = aggregate(windows)
    if case.id == "agg-08":
        assert totals.evaluable == 0
        assert totals.counters == windows[-1].counters
        assert totals.generation_tps == windows[-1].generation_tps
        assert totals.running is None
    elif isinstance(case.expected, dict):
        assert all(case.agrees(_told(totals)[k], v) for k, v in case.expected.items())
    else:
        single = {
            "agg-02": totals.generation_tps, "agg-03": totals.prefix_hit_share,
            "agg-07": totals.counters.get("generation_tokens"), "agg-12": totals.running,
        }  # fmt: skip
        assert case.agrees(single[case.id], case.expected)


def _four() -> list[Window]:
    """2 s of traffic, 6 s without, 2 s of traffic, and a last window whose running gauge is missing."""
    made = []
    for n, (seconds, running, tokens, kv) in enumerate(
        ((2, 4, 200, 40), (6, 0, 0, 20), (2, 8, 600, 80), (2, 9, 1, 99))
    ):
        share, size = Fraction(kv, 100), HistogramDelta(Fraction(100 * n), n + 1, Fraction(1), 1)
        made.append(Window(
            n, planned_s=Fraction(seconds), duration_s=Fraction(seconds), running=running,
            running_mean=Fraction(running), running_peak=running + 1, waiting=0, swapped=n, generation_tokens=tokens,
            kv_last_share=share, kv_mean_share=share, kv_peak_share=share, prefix_hits=n, prefix_queries=10, ttft=size,
            prompt_size=size, counters={"generation_tokens": n},
            gpu=GpuWindow(1, Fraction(kv), vram_used_bytes=n, temperature_c=n),
        ))  # fmt: skip
    return [*made[:3], replace(made[3], running=None)]


def test_every_field_is_of_its_own_windows() -> None:
    """Line by line the table "across windows": of active, of evaluable, of the last evaluable, of the last window."""
    totals = aggregate(_four())
    assert (totals.windows, totals.evaluable, totals.active, totals.idle) == (4, 3, 2, 1)
    assert totals.evaluable_s == 10
    assert totals.active_s == 4
    assert totals.running == 6, "active"
    assert totals.generation_tps == 200, "active"
    assert totals.gpu_utilization_percent == 60, "active"
    assert totals.kv_mean_share == Fraction(60, 100), "active"
    assert totals.ttft.mean == Fraction(0 + 200, 1 + 3), "active: sum of sums over sum of counts"
    assert totals.kv_avg_share == Fraction(2 * 40 + 6 * 20 + 2 * 80, 1000), "evaluable"
    assert totals.prompt_size.mean == Fraction(0 + 100 + 200, 1 + 2 + 3), "evaluable"
    assert totals.prefix_hit_share == Fraction(3, 30), "evaluable"
    assert (totals.kv_peak_share, totals.running_peak) == (Fraction(80, 100), 9), "evaluable"
    assert (totals.swapped, totals.vram_used_bytes, totals.temperature_c) == (2, 2, 2), "the last evaluable one"
    assert totals.counters == {"generation_tokens": 3}, "the last one"
