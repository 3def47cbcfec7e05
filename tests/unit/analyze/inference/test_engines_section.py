"""What the section of the engines says, and that it says when it cannot."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Quantity, Section
from gpuaudit.analyze.inference.measures import measures
from gpuaudit.analyze.sections.engines import evaluate
from tests.engine_scene import EngineScene
from tests.recorded_engines import REGIMES, context, run, store

LIGHT = {"vllm:num_requests_running": 1, "vllm:num_requests_waiting": 0}


def _section(regime: str) -> tuple[Context, Section]:
    found = context(store(regime))
    return found, evaluate(found)


def _quantities(section: Section) -> list[Quantity]:
    values: list[object] = [v for s in section.statements for v in s.values.values()]
    values += [c for t in section.tables for r in t.rows for c in r]
    return [v for v in values if isinstance(v, Quantity)]


def _words(section: Section) -> str:
    return " ".join(s.text for s in section.statements)


def test_without_an_engine_it_is_not_evaluated() -> None:
    scene = EngineScene()
    del scene.sink.rows["engines"]
    scene.rows(
        "gaps", [{"start_ns": 1, "duration_ns": 5, "source": "x", "reason": "y", "pid": None, "table_name": None}]
    )
    section = evaluate(scene.context())
    assert section.state == "not evaluated"
    assert "no inference engine" in section.reason


@pytest.mark.parametrize("regime", REGIMES)
def test_every_number_has_its_rows(regime: str) -> None:
    """Each quantity names evidence, each evidence query gives as many rows as it says, and none is empty."""
    found, section = _section(regime)
    used = {e for q in _quantities(section) for e in q.evidence}
    assert all(q.evidence for q in _quantities(section))
    entries = {e.id: e for e in found.book.entries()}
    assert used <= set(entries)
    for id in sorted(used):
        rows = found.store.sql(f"SELECT count(*) FROM ({entries[id].query})")
        assert rows[0][0] == entries[id].rows > 0
    assert all((q.value is None) == bool(q.reason) for q in _quantities(section))


def test_the_same_bytes_twice() -> None:
    first, second = (json.dumps(_section("kv_pressure")[1].to_json(), sort_keys=True) for _ in range(2))
    assert first == second


def test_measures_are_the_runs_totals() -> None:
    found = context(store("heavy_queue"))
    (engine,) = found.engine_runs
    told = {m.key: m.quantity.value for m in measures(found, engine)}
    assert told["generation_tokens"] == 44_492
    assert told["waiting_peak"] == 91
    assert round(told["queue_mean"] or 0, -6) == 10_428_000_000
    assert told["ttft_p99"] == run("heavy_queue").totals.ttft.p99.value * 10**9  # type: ignore[union-attr]


def test_few_observations_make_no_silent_p99() -> None:
    found = context(store("light"))
    (engine,) = found.engine_runs
    p99 = next(m for m in measures(found, engine) if m.key == "ttft_p99")
    assert "fewer than 100" in p99.basis


def test_strips_are_bounded_and_show_the_peaks() -> None:
    _, section = _section("kv_pressure")
    (chart,) = section.charts
    data = chart.data
    names = {s["name"]: s for s in data["series"]}
    assert {"running", "waiting", "kv_use", "generation_tokens", "preemptions", "ttft_p99"} <= set(names)
    assert len(data["times_ns"]) <= 300
    for series in data["series"]:
        assert {len(series[k]) for k in ("minimum", "mean", "maximum")} == {len(data["times_ns"])}
        known = [x for x in zip(series["minimum"], series["mean"], series["maximum"], strict=True) if x[1] is not None]
        assert all(int(a) <= int(b) <= int(c) for a, b, c in known)
    assert max(int(v) for v in names["kv_use"]["maximum"] if v is not None) == 1_000
    assert names["kv_use"]["ceiling"] == "1000"
    assert max(int(v) for v in names["waiting"]["maximum"] if v is not None) == 21_000
    assert {m[2] for m in data["marks"]} == {"no answer"}
    assert max(int(m[1]) for m in data["marks"]) > 3_380_000_000


def test_a_bin_without_an_answer_is_empty() -> None:
    """No rate is spread over time in which nobody looked."""
    _, section = _section("kv_pressure")
    rates = next(s for s in section.charts[0].data["series"] if s["name"] == "preemptions")["mean"]
    assert sum(int(v) > 0 for v in rates if v is not None) <= 58
    assert any(v is None for v in rates)


def test_a_long_run_has_wide_bins() -> None:
    scene = EngineScene()
    for second in range(0, 4_000, 10):
        scene.scrape(second, {**LIGHT, "vllm:num_requests_running": second % 7})
    (chart,) = evaluate(scene.context()).charts
    assert len(chart.data["times_ns"]) <= 300
    assert int(chart.data["bin_ns"]) > 13_000_000_000


def test_remote_failed_and_restarted_are_said() -> None:
    scene = EngineScene()
    engines = [
        {"start_ns": 10**12, "duration_ns": None, "engine": 0, "op": "vllm", "url": "http://10.1.1.1:8000/metrics",
         "pid": None, "found_by": "--engine", "remote": 1, "state": "scraped", "reason": None},
        {"start_ns": 10**12, "duration_ns": None, "engine": 1, "op": "unknown", "url": "http://10.1.1.2:8000/metrics",
         "pid": None, "found_by": "--engine", "remote": 0, "state": "refused", "reason": "not a loopback address"},
    ]  # fmt: skip
    scene.rows("engines", engines)
    for second, started in ((0, 1), (1, 1), (3, 2), (4, 2)):
        scene.scrape(second, {**LIGHT, "process_start_time_seconds": started})
    section = evaluate(scene.fail(2, "refused").context())
    assert "--allow-remote" in _words(section)
    assert "brought no answer" in _words(section)
    assert "Restarts of engine" in _words(section)
    refused = next(s for s in section.statements if "was not read" in s.text)
    assert refused.values["reason"] == "not a loopback address"
    found = next(t for t in section.tables if t.id == "found")
    assert [row[5] for row in found.rows] == ["another host, by --allow-remote", "this host"]
    assert section.charts[0].data["marks"][-1][2] == "restart"


def test_data_parallel_cache_is_told_per_index() -> None:
    values = {**{f'vllm:num_requests_running{{engine="{i}"}}': 1 for i in range(2)},
              **{f'vllm:kv_cache_usage_perc{{engine="{i}"}}': 0.25 * (i + 1) for i in range(2)}}  # fmt: skip
    section = evaluate(EngineScene().scrape(0, values).scrape(1, values).context())
    table = next(t for t in section.tables if t.id == "kv_0")
    assert [r[0] for r in table.rows] == ["0", "1"]
    assert [r[2].value for r in table.rows if isinstance(r[2], Quantity)] == [Fraction(1, 4), Fraction(1, 2)]
    assert any("data-parallel" in n for n in section.notes)


def test_a_hostile_setting_is_cut() -> None:
    scene = EngineScene().scrape(0, LIGHT).scrape(1, LIGHT).setting("model", "m" * 5_000, "/v1/models")
    section = evaluate(scene.context())
    cells = [c for t in section.tables for r in t.rows for c in r if isinstance(c, str)]
    assert max(len(c) for c in cells) <= 256


def test_settings_that_no_rule_reads_are_counted_with_their_query() -> None:
    scene = EngineScene().scrape(0, LIGHT).scrape(1, LIGHT).setting("max_num_seqs", "32", "command line")
    scene.setting("mamba_cache_mode", "none", "metric label").setting("kv_sharing", "False", "metric label")
    table = next(t for t in evaluate(scene.context()).tables if t.id == "settings_0")
    assert "max_num_seqs" in [r[0] for r in table.rows]
    assert "mamba_cache_mode" not in [r[0] for r in table.rows]
    told = [n for n in table.notes if "more are in the bundle" in n]
    assert [n.startswith("2 more") for n in told] == [True]
    assert told[0].endswith("FROM engine_config WHERE engine = 0")


def test_an_engine_without_the_running_gauge_is_not_called_idle() -> None:
    scene = EngineScene()
    for second in range(4):
        scene.scrape(second, {"vllm:generation_tokens_total": second})
    section = evaluate(scene.context())
    assert "no window of them can be evaluated" in _words(section)
    assert "vllm:num_requests_running" in str(section.statements[0].values["reason"])


def test_a_gauge_of_nonsense_is_not_called_a_lack_of_polls() -> None:
    def reason(*running: float) -> str:
        scene = EngineScene()
        for second, value in enumerate(running):
            scene.scrape(second, {"vllm:num_requests_running": value})
        return str(evaluate(scene.context()).statements[0].values["reason"])

    assert "told no number" in reason(-1, -1, -1)
    assert reason(1) == "fewer than two polls in every window"
