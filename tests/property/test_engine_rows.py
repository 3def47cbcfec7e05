"""Whatever rows a bundle holds of engines, they are analysed the same way twice, or refused; never a crash."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuaudit.analyze.sections.engines import evaluate
from gpuaudit.analyze.store import Store
from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.tables import TABLES
from tests.recorded_engines import context

TIMES = st.one_of(st.integers(0, 40).map(lambda s: 10**12 + s * 10**9), st.sampled_from([0, 1, (1 << 62) - 1]))
METRICS = st.sampled_from([
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:num_preemptions_total",
    "vllm:generation_tokens_total", "vllm:request_success_total", "vllm:time_to_first_token_seconds_bucket",
    "vllm:time_to_first_token_seconds_sum", "vllm:time_to_first_token_seconds_count", "vllm:cache_config_info",
    "vllm:max_num_seqs", "", "ray_vllm_num_requests_running", "\u202e\x00",
])  # fmt: skip
VALUES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 5).map(float))
LABELS = st.sampled_from(["{}", '{"model_name":"m"}', '{"finished_reason":"abort"}', "", "[1]", "{", '{"a":{}}'])
ENGINE = st.integers(0, 2)

SERIES = st.fixed_dictionaries({
    "start_ns": TIMES, "engine": ENGINE, "series": st.integers(0, 12), "op": st.just("gauge"), "metric": METRICS,
    "engine_index": st.sampled_from([None, "0", "1", "x"]), "labels": LABELS,
    "le": st.one_of(st.none(), st.sampled_from([0.1, 1.0, -1.0, float("inf"), float("nan")])),
})  # fmt: skip
SAMPLES = st.fixed_dictionaries({"start_ns": TIMES, "engine": ENGINE, "series": st.integers(0, 12), "value": VALUES})
SCRAPES = st.fixed_dictionaries({
    "start_ns": TIMES, "duration_ns": st.integers(0, 10**10), "engine": ENGINE,
    "op": st.sampled_from(["ok", "ok", "ok", "timeout"]), "http_status": st.none(), "size_bytes": st.none(),
    "series": st.none(), "skipped": st.none(), "full": st.integers(0, 1), "reset": st.integers(0, 1),
    "reason": st.none(),
})  # fmt: skip
ENGINES = st.fixed_dictionaries({
    "start_ns": TIMES, "duration_ns": st.none(), "engine": ENGINE, "op": st.sampled_from(["vllm", "unknown", "tgi"]),
    "url": st.text(max_size=20), "pid": st.one_of(st.none(), st.integers(1, 9)), "found_by": st.text(max_size=9),
    "remote": st.integers(0, 1), "state": st.sampled_from(["scraped", "refused"]), "reason": st.none(),
})  # fmt: skip
CONFIG = st.fixed_dictionaries({
    "start_ns": TIMES, "engine": ENGINE, "op": st.sampled_from(["model", "max_num_seqs", "max_model_len"]),
    "value": st.one_of(st.text(max_size=12), st.sampled_from(["0", "-1", "9" * 40, "1e999999999", "1/0"])),
    "source": st.sampled_from(["/v1/models", "command line", "config.json", "?"]), "detail": st.none(),
})  # fmt: skip

ROWS = {"engines": ENGINES, "engine_series": SERIES, "engine_samples": SAMPLES, "engine_scrapes": SCRAPES,
        "engine_config": CONFIG}  # fmt: skip


def _told(evidence: Store) -> str:
    return json.dumps(evaluate(context(evidence)).to_json(), sort_keys=True)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.fixed_dictionaries({name: st.lists(rows, min_size=1, max_size=14) for name, rows in ROWS.items()}))
def test_any_rows_are_analysed_alike(records: dict[str, list[dict[str, Any]]]) -> None:
    tables = {name: from_records(TABLES[name], rows) for name, rows in records.items()}
    evidence = Store.from_tables(tables, open_body={"synthetic": False})
    assert _told(evidence) == _told(evidence)
