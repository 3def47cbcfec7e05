"""From scrapes to rows: what is named, what is written, how a restart shows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import pytest

from gpuaudit.bundle.columns import check_rows, from_records
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.engine_labels import from_samples
from gpuaudit.capture.engine_series import FULL_INTERVAL_NS, EngineRows, SeriesTracker
from gpuaudit.capture.exposition import parse

HEAD = "# TYPE vllm:tokens_total counter\n# TYPE vllm:running gauge\n"


def scrape(tracker: SeriesTracker, at: int, values: Mapping[str, object], head: str = HEAD) -> EngineRows:
    text = head + "".join(f"{series} {value}\n" for series, value in values.items())
    return tracker.scrape(at, 1, parse(text).samples, http_status=200, size_bytes=len(text))


def test_only_what_changed_is_written() -> None:
    tracker = SeriesTracker(3, count(10))
    first = scrape(tracker, 0, {"vllm:running": 1, "vllm:tokens_total": 5, "http_requests_total": 9})
    assert [(s["series"], s["metric"], s["op"]) for s in first.series] == [
        (10, "vllm:running", "gauge"), (11, "vllm:tokens_total", "counter"),
    ]  # fmt: skip
    assert first.samples == [(10, 1.0), (11, 5.0)]
    assert {k: first.scrape[k] for k in ("engine", "op", "series", "skipped", "full", "reset")} == {
        "engine": 3, "op": "ok", "series": 2, "skipped": 1, "full": 1, "reset": 0,
    }  # fmt: skip
    second = scrape(tracker, 1, {"vllm:running": 1, "vllm:tokens_total": 6, "http_requests_total": 10})
    assert (second.series, second.samples, second.scrape["full"]) == ([], [(11, 6.0)], 0)


def test_labels_are_canonical_and_le_and_engine_stand_apart() -> None:
    head = "# TYPE vllm:h histogram\n"
    rows = scrape(
        SeriesTracker(0), 0, {'vllm:h_bucket{model_name="m",le="0.5",engine="1",a="b"}': 1,
                              'vllm:h_bucket{engine="1",le="+Inf",a="b",model_name="m"}': 2}, head,
    )  # fmt: skip
    assert [(s["engine_index"], s["labels"], s["le"], s["op"]) for s in rows.series] == [
        ("1", '{"a":"b","model_name":"m"}', 0.5, "histogram_bucket"),
        ("1", '{"a":"b","model_name":"m"}', float("inf"), "histogram_bucket"),
    ]
    for table, records in (("engine_series", rows.series), ("engine_scrapes", [rows.scrape])):
        check_rows(TABLES[table], from_records(TABLES[table], records))
    check_rows(TABLES["engine_samples"], rows.sample_columns())


def test_a_series_that_goes_and_comes_back() -> None:
    tracker = SeriesTracker(0)
    scrape(tracker, 0, {"vllm:running": 1, "vllm:other": 2})
    gone = scrape(tracker, 1, {"vllm:running": 1})
    assert gone.samples == [(1, None)]
    assert gone.sample_columns()["value"].to_list() == [None]
    assert scrape(tracker, 2, {"vllm:running": 1}).samples == []
    back = scrape(tracker, 3, {"vllm:running": 1, "vllm:other": 2})
    assert (back.series, back.samples) == ([], [(1, 2.0)])


def test_a_full_snapshot_comes_again() -> None:
    tracker, values = SeriesTracker(0), {"vllm:running": 1, "vllm:tokens_total": 5}
    times = [0, 1, FULL_INTERVAL_NS - 1, FULL_INTERVAL_NS, FULL_INTERVAL_NS + 1, 2 * FULL_INTERVAL_NS]
    rows = [scrape(tracker, t, values) for t in times]
    assert [r.scrape["full"] for r in rows] == [1, 0, 0, 1, 0, 1]
    assert [len(r.samples) for r in rows] == [2, 0, 0, 2, 0, 2]


def test_a_poll_that_failed_is_a_row_and_the_next_one_is_full() -> None:
    tracker = SeriesTracker(0)
    scrape(tracker, 0, {"vllm:running": 1})
    failed = tracker.failed(1, 5, "timeout", "no answer", http_status=None)
    assert (failed.scrape["op"], failed.scrape["reason"], failed.scrape["series"]) == ("timeout", "no answer", None)
    assert (failed.series, failed.samples) == ([], [])
    after = scrape(tracker, 2, {"vllm:running": 1})
    assert (after.scrape["full"], after.scrape["reset"], after.samples) == (1, 0, [(0, 1.0)])


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({"vllm:tokens_total": 5}, {"vllm:tokens_total": 4}, "1 counters fell"),
        (
            {"process_start_time_seconds": 100}, {"process_start_time_seconds": 200},
            "process_start_time_seconds changed",
        ),
        ({"vllm:tokens_created": 100}, {"vllm:tokens_created": 200}, "1 _created times changed"),
        ({'vllm:h_bucket{le="1"}': 5}, {'vllm:h_bucket{le="1"}': 1}, "1 counters fell"),
    ],
)  # fmt: skip
def test_a_restart_shows(before: dict[str, int], after: dict[str, int], reason: str) -> None:
    head = HEAD + "# TYPE vllm:h histogram\n"
    tracker = SeriesTracker(0)
    scrape(tracker, 0, {"vllm:running": 1, **before}, head)
    rows = scrape(tracker, 1, {"vllm:running": 1, **after}, head)
    assert (rows.scrape["reset"], rows.scrape["full"], rows.scrape["reason"]) == (1, 1, reason)
    assert len(rows.samples) == 2
    assert scrape(tracker, 2, {"vllm:running": 1, **after}, head).scrape["reset"] == 0


def test_a_restart_behind_failed_polls_shows() -> None:
    tracker = SeriesTracker(0)
    scrape(tracker, 0, {"vllm:tokens_total": 5})
    tracker.failed(1, 1, "failed", "refused")
    assert scrape(tracker, 2, {"vllm:tokens_total": 3}).scrape["reset"] == 1


@pytest.mark.parametrize("values", [(5, 4), ("5", "NaN"), ("NaN", "1")])
def test_a_gauge_that_falls_is_no_restart(values: tuple[Any, Any]) -> None:
    tracker = SeriesTracker(0)
    scrape(tracker, 0, {"vllm:running": values[0]})
    assert scrape(tracker, 1, {"vllm:running": values[1]}).scrape["reset"] == 0


def test_nan_is_a_value_that_does_not_change() -> None:
    tracker = SeriesTracker(0)
    assert len(scrape(tracker, 0, {"vllm:running": "NaN"}).samples) == 1
    assert scrape(tracker, 1, {"vllm:running": "NaN"}).samples == []


def test_the_kind_is_told_by_the_first_metrics_that_have_one() -> None:
    tracker = SeriesTracker(0)
    early = scrape(tracker, 0, {"python_info": 1, "sglang:x": 0})
    assert tracker.kind.name == "sglang"
    assert early.scrape["series"] == 1
    late = SeriesTracker(1)
    assert scrape(late, 0, {"python_info": 1}).scrape["series"] == 0
    assert scrape(late, 1, {"python_info": 1, "llamacpp:x": 0}).scrape["series"] == 1
    assert late.kind.name == "llama_cpp"


def test_labels_of_the_engine_are_settings_and_others_are_not() -> None:
    text = 'python_info{version="3.11"} 1\n'
    text += 'vllm:cache_config_info{engine="0",block_size="16",cache_dtype="auto",x="None"} 1\n'
    found = [(s["op"], s["value"], s["detail"]) for s in from_samples(parse(text).samples)]
    assert found == [
        ("block_size", "16", "vllm:cache_config_info block_size"),
        ("kv_cache_dtype", "auto", "vllm:cache_config_info cache_dtype"),
    ]
