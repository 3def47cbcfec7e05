"""What is read from an engine's series when they are not the plain case."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gpuaudit.analyze.inference import physics
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.inference.names import COUNTERS, KINDS, MEANINGS, plain
from tests.engine_scene import EngineScene, Values, histogram

TTFT = "vllm:time_to_first_token_seconds"


def _run(*scrapes: Values, every_s: int = 1) -> EngineRun:
    scene = EngineScene()
    for i, values in enumerate(scrapes):
        scene.scrape(i * every_s, {"vllm:num_requests_running": 1, **values})
    return scene.run()


def test_a_value_holds_until_it_changes() -> None:
    """Unchanged values have no rows, and are there all the same."""
    run = _run(*({"vllm:generation_tokens_total": v} for v in (5, 5, 5, 9, 9)))
    assert [w.generation_tokens for w in run.windows] == [0, 4]
    assert run.windows[0].scrapes == 3


def test_data_parallel_engines_are_summed() -> None:
    """Taking the first engine alone would see 1 of 4 running requests."""
    values = {
        'vllm:num_requests_running{engine="0"}': 1, 'vllm:num_requests_running{engine="1"}': 3,
        'vllm:num_requests_waiting{engine="0"}': 0, 'vllm:num_requests_waiting{engine="1"}': 2,
        'vllm:kv_cache_usage_perc{engine="0"}': 0.1, 'vllm:kv_cache_usage_perc{engine="1"}': 0.9,
    }  # fmt: skip
    tokens = 'vllm:generation_tokens_total{engine="%d"}'
    scene = EngineScene().scrape(0, values | {tokens % 0: 10, tokens % 1: 100})
    scene.scrape(2, values | {tokens % 0: 12, tokens % 1: 105}).setting("max_num_seqs", "8", "command line")
    scene.setting("kv_cache_max_concurrency", "3.5", "metric label").setting("num_gpu_blocks", "100", "metric label")
    run = scene.run()
    (window,) = run.windows
    assert (window.running, window.waiting, window.generation_tokens) == (4, 2, 7)
    assert (window.kv_mean_share, window.kv_peak_share) == (Fraction(1, 2), Fraction(9, 10))
    assert run.kv_by_index == {"0": (Fraction(1, 10), Fraction(1, 10)), "1": (Fraction(9, 10), Fraction(9, 10))}
    assert run.data_parallel == 2
    assert run.max_num_seqs == 16
    assert (physics.reported_kv_sequences(run), physics.blocks(run)) == (7, 200), "each has a cache of its own"


def test_ranks_that_share_requests_are_counted_once() -> None:
    """SGLang with metrics of all schedulers: four tensor-parallel ranks in two data-parallel parts."""
    labels = 'model_name="m",tp_rank="%d",pp_rank="0",dp_rank="%d"'
    values: dict[str, float] = {"sglang:generation_tokens_total": 5}
    for tp, dp in ((10, 1), (2, 1), (0, 0), (1, 0)):
        told = "{" + labels % (tp, dp) + "}"
        values |= {f"sglang:num_running_reqs{told}": 3 + dp, f"sglang:token_usage{told}": 0.25 + dp / 2}
        bucket = "sglang:queue_time_seconds_bucket" + told
        values |= {bucket.replace("}", ',le="1"}'): tp + 1, bucket.replace("}", ',le="+Inf"}'): tp + 1}
        values |= {bucket.replace("_bucket", "_count"): tp + 1}
    scene = EngineScene(kind="sglang").setting("max_num_seqs", "8", "command line")
    run = scene.scrape(0, dict.fromkeys(values, 0)).scrape(1, values).run()
    (window,) = run.windows
    assert (window.running, window.running_peak) == (7, 7), "3 of one part and 4 of the other"
    assert (window.kv_last_share, window.kv_peak_share) == (Fraction(1, 2), Fraction(3, 4))
    assert window.queue.buckets.counts == (4, 4), "1 of rank 0 in part 0, 3 of rank 2 in part 1"
    assert window.queue.count == 4
    assert run.data_parallel == 2
    assert run.max_num_seqs is None, "of each part or of both: nobody tells"


def test_shares_of_one_index_are_not_added() -> None:
    cache = 'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="%s"}'
    values = {cache % "a": 0.7, cache % "b": 0.6, 'nv_trt_llm_request_metrics{request_type="scheduled"}': 1}
    run = EngineScene(kind="triton").scrape(0, values).scrape(1, values).run()
    assert run.totals.kv_peak_share == Fraction(7, 10)


@pytest.mark.parametrize(("told", "seen"), [(-0.5, None), (95, None), (1.0000001, 1), (1, 1), (0, 0)])
def test_what_is_no_share_is_missing(told: float, seen: int | None) -> None:
    values = {"vllm:kv_cache_usage_perc": told}
    (window,) = _run(values, values).windows
    assert (window.kv_last_share, window.kv_mean_share, window.kv_peak_share) == (seen, seen, seen)


def test_fewer_than_no_requests_are_missing() -> None:
    values = {"vllm:num_requests_running": -3, "vllm:num_requests_waiting": -1}
    (window,) = _run(values, values).windows
    assert (window.running, window.waiting, window.waiting_mean, window.evaluable) == (None, None, None, False)


def test_buckets_that_are_not_cumulative_have_no_quantile() -> None:
    """More answers within 0.1 s than within 1 s: whatever these are, they are no distribution."""
    first = histogram(TTFT, 1, 10, {"0.1": 0, "1": 0})
    (window,) = _run(first, histogram(TTFT, 2, 20, {"0.1": 8, "1": 3})).windows
    assert window.ttft.buckets.edges == ()
    assert window.ttft.count == 10


def test_edges_in_any_order_are_put_in_order() -> None:
    end = histogram(TTFT, 8, 4, {"1": 3, "0.5": 1})
    backwards = dict(reversed(end.items()))
    (window,) = _run(dict.fromkeys(backwards, 0), backwards).windows
    assert window.ttft.buckets.edges == (0.5, 1.0, float("inf"))
    assert window.ttft.buckets.counts == (1, 3, 4)


def test_a_metric_without_the_engine_label_is_no_engine_of_its_own() -> None:
    run = _run({'vllm:num_requests_waiting{engine="0"}': 0}, {'vllm:num_requests_waiting{engine="0"}': 0})
    assert run.data_parallel == 1


def test_reasons_tell_aborted_requests_apart() -> None:
    success = 'vllm:request_success_total{finished_reason="%s"}'
    run = _run(
        {success % "stop": 1, success % "length": 2, success % "abort": 3},
        {success % "stop": 5, success % "length": 2, success % "abort": 10},
    )
    assert run.totals.deltas["completed"] == 4
    assert run.totals.deltas["aborted"] == 7


def test_a_label_set_that_appears_later_began_at_zero() -> None:
    success = 'vllm:request_success_total{finished_reason="%s"}'
    run = _run({success % "stop": 1}, {success % "stop": 1, success % "length": 2})
    assert run.totals.deltas["completed"] == 2


def test_a_counter_that_appears_later_began_at_zero() -> None:
    run = _run({}, {}, {"vllm:num_preemptions_total": 3}, {"vllm:num_preemptions_total": 4})
    assert run.totals.deltas["preemptions"] == 4
    assert [w.preemptions for w in run.windows] == [3, 1]


def test_a_counter_that_vanishes_says_nothing_more() -> None:
    """Gone is not zero: what it gained by then or since is not known."""
    run = _run({"vllm:num_preemptions_total": 3}, {}, {"vllm:num_preemptions_total": 9})
    (window,) = run.windows
    assert window.preemptions == 6
    gone = _run({"vllm:num_preemptions_total": 3}, {"vllm:num_preemptions_total": 5}, {})
    assert gone.windows[0].preemptions is None
    assert "preemptions" not in gone.totals.deltas


def test_a_gauge_that_vanishes_is_missing() -> None:
    scene = EngineScene().scrape(0, {"vllm:num_requests_running": 4, "vllm:num_requests_waiting": 0})
    (window,) = scene.scrape(1, {"vllm:num_requests_waiting": 0}).run().windows
    assert window.running is None
    assert window.evaluable is False
    assert window.running_peak == 4


@pytest.mark.parametrize("value", ["NaN", "+Inf"])
def test_what_is_no_number_is_missing(value: str) -> None:
    run = _run({"vllm:kv_cache_usage_perc": 0.5, "vllm:prompt_tokens_total": 1},
               {"vllm:kv_cache_usage_perc": float(value), "vllm:prompt_tokens_total": float(value)})  # fmt: skip
    (window,) = run.windows
    assert window.kv_last_share is None
    assert window.kv_peak_share == Fraction(1, 2)
    assert window.prompt_tokens is None


def test_failed_polls_are_holes() -> None:
    scene = EngineScene()
    for second in range(5):
        values = {"vllm:num_requests_running": 1, "vllm:generation_tokens_total": 10 * second}
        scene = scene.fail(second) if second in {1, 2} else scene.scrape(second, values)
    run = scene.run()
    assert (run.scrapes, run.failed) == (3, 2)
    assert run.longest_gap_s == 3
    assert [w.failed for w in run.windows] == [2, 0]
    assert [w.scrapes for w in run.windows] == [1, 2]
    assert [w.generation_tokens for w in run.windows] == [None, 40]
    assert run.windows[1].duration_s == 4
    assert run.totals.deltas["generation_tokens"] == 40


def test_a_hole_longer_than_a_window_belongs_to_no_window() -> None:
    """Nobody knows when in ten minutes the tokens were made: the run counts them, no window does."""
    scene = EngineScene()
    for second in (0, 1, 600, 601):
        scene.scrape(second, {"vllm:num_requests_running": 1, "vllm:generation_tokens_total": second})
    run = scene.run()
    counted = [w.generation_tokens for w in run.windows if w.generation_tokens is not None]
    assert counted == [1, 1]
    assert run.totals.deltas["generation_tokens"] == 601
    assert run.totals.evaluable_s == 2


def test_a_restart_starts_counters_anew() -> None:
    scene = EngineScene()
    for second, tokens in ((0, 100), (1, 150), (2, 160), (3, 7), (4, 9), (5, 12)):
        started = 1_000.0 if second < 3 else 2_000.0
        scene.scrape(second, {
            "vllm:num_requests_running": 1, "vllm:generation_tokens_total": tokens,
            "process_start_time_seconds": started,
        })  # fmt: skip
    run = scene.run()
    assert run.resets == 1
    assert run.totals.deltas["generation_tokens"] == 60 + 12
    assert [(w.reset, w.generation_tokens) for w in run.windows] == [(False, 60), (False, 2), (False, 3)]


def test_a_window_with_a_restart_in_it_has_no_rates() -> None:
    scene = EngineScene()
    for second, tokens in ((0, 100), (0.5, 150), (1, 7), (2, 9)):
        scene.scrape(second, {
            "vllm:num_requests_running": 1, "vllm:generation_tokens_total": tokens,
            **histogram(TTFT, tokens / 10, tokens, {"1": tokens}),
        })  # fmt: skip
    run = scene.run()
    (window,) = run.windows
    assert window.reset
    assert (window.generation_tokens, window.generation_tps, window.ttft.sum) == (None, None, None)
    assert window.ttft.buckets.edges == ()
    assert window.evaluable
    assert window.running_peak == 1
    assert run.totals.deltas["generation_tokens"] == 50 + 9


def test_a_restart_noticed_at_a_failed_poll_counts_at_the_next_answer() -> None:
    scene = EngineScene().scrape(0, {"vllm:num_requests_running": 1, "vllm:generation_tokens_total": 9})
    scene.fail(1, "refused").scrape(2, {"vllm:num_requests_running": 1, "vllm:generation_tokens_total": 4})
    run = scene.run()
    assert run.resets == 1
    assert run.totals.deltas["generation_tokens"] == 4


def test_label_sets_of_a_histogram_are_added_by_position() -> None:
    def both(a: int, b: int) -> dict[str, float]:
        one = histogram(TTFT, 1.0 * a, a, {"0.5": a})
        two = histogram(TTFT, 2.0 * b, b, {"0.5": 0})
        label = {'{le="0.5"}': '{model_name="%s",le="0.5"}', '{le="+Inf"}': '{model_name="%s",le="+Inf"}'}
        out: dict[str, float] = {}
        for name, values in (("x", one), ("y", two)):
            for key, value in values.items():
                family, brace, rest = key.partition("{")
                out[family + (label[brace + rest] % name if brace else '{model_name="%s"}' % name)] = value  # noqa: UP031
        return out

    (window,) = _run(both(1, 1), both(4, 11)).windows
    assert window.ttft.buckets.counts == (3, 13)
    assert window.ttft.sum == 23
    assert window.ttft.count == 13


def test_label_sets_with_different_edges_cannot_be_added() -> None:
    bucket = f'{TTFT}_bucket{{model_name="%s",le="%s"}}'
    values = {bucket % ("x", "1"): 1, bucket % ("x", "+Inf"): 1, bucket % ("y", "2"): 1, bucket % ("y", "+Inf"): 1}
    (window,) = _run(values, dict.fromkeys(values, 5)).windows
    assert window.ttft.buckets.edges == ()


@pytest.mark.parametrize("prefix", ["vllm_", "ray_vllm_"])
def test_collectors_that_rewrite_the_prefix(prefix: str) -> None:
    scene = EngineScene()
    for second, tokens in ((0, 1), (1, 4)):
        scene.scrape(second, {f"{prefix}num_requests_running": 2, f"{prefix}generation_tokens_total": tokens})
    (window,) = scene.run().windows
    assert (window.running, window.generation_tokens) == (2, 3)


def test_old_names_are_read_where_new_ones_are_gone() -> None:
    old = {"vllm:gpu_cache_usage_perc": 0.25, "vllm:gpu_prefix_cache_hits_total": 4,
           "vllm:gpu_prefix_cache_queries_total": 10, "vllm:num_requests_swapped": 1,
           **histogram("vllm:time_per_output_token_seconds", 1, 10, {"0.1": 10})}  # fmt: skip
    new = {**old, "vllm:gpu_prefix_cache_hits_total": 5, "vllm:gpu_prefix_cache_queries_total": 12,
           **histogram("vllm:time_per_output_token_seconds", 2, 14, {"0.1": 14})}  # fmt: skip
    (window,) = _run(old, new).windows
    assert window.kv_last_share == Fraction(1, 4)
    assert window.prefix_hit_share == Fraction(1, 2)
    assert window.swapped == 1
    assert window.tpot.mean == Fraction(1, 4)


def test_a_doubtful_fallback_is_called_one() -> None:
    run = _run({"vllm:iteration_tokens_total_sum": 1}, {"vllm:iteration_tokens_total_sum": 3})
    assert run.metrics["generation_tokens"] == "vllm:iteration_tokens_total_sum"
    assert "prompt" in run.doubts["generation_tokens"]


OTHERS: dict[str, tuple[dict[str, float], str | None]] = {
    "sglang": ({"sglang:num_running_reqs": 3, "sglang:token_usage": 0.5}, "sglang:generation_tokens_total"),
    "tgi": ({"tgi_batch_current_size": 3}, "tgi_request_generated_tokens_sum"),
    "triton": ({'nv_trt_llm_request_metrics{request_type="scheduled"}': 3}, None),
    "llama_cpp": ({"llamacpp:requests_processing": 3}, "llamacpp:tokens_predicted_total"),
}


@pytest.mark.parametrize("kind", sorted(OTHERS))
def test_other_engines(kind: str) -> None:
    gauges, tokens = OTHERS[kind]
    scene = EngineScene(kind=kind)
    for second in (0, 1):
        scene.scrape(second, {**gauges, **({tokens: 5 + 2 * second} if tokens else {})})
    run = scene.run()
    (window,) = run.windows
    assert window.running == 3
    assert window.generation_tokens == (2 if tokens else None)
    assert ("generation_tokens" in run.absent) is (tokens is None)
    assert set(run.metrics) | set(run.absent) == set(MEANINGS)
    assert all(run.absent.values())


_BUCKETS = {"0.1": 1}
GROWN: dict[str, tuple[dict[str, float], dict[str, Fraction | int]]] = {
    "sglang": (
        {
            "sglang:num_running_reqs": 3, "sglang:num_queue_reqs": 2, "sglang:token_usage": 0.5,
            "sglang:prompt_tokens_total": 40, "sglang:generation_tokens_total": 7, "sglang:cached_tokens_total": 10,
            "sglang:num_requests_total": 4, "sglang:num_retractions_total": 1,
            "sglang:num_aborted_requests_total": 2,
            **histogram("sglang:time_to_first_token_seconds", 0.5, 2, _BUCKETS),
            **histogram("sglang:queue_time_seconds", 0.25, 2, _BUCKETS),
        },
        {
            "running": 3, "waiting": 2, "kv_last_share": Fraction(1, 2), "prompt_tokens": 40, "generation_tokens": 7,
            "prefix_hits": 10, "prefix_queries": 40, "completed": 4, "preemptions": 1, "aborted": 2, "ttft": 2,
            "queue": 2,
        },
    ),
    "tgi": (
        {
            "tgi_batch_current_size": 3, "tgi_queue_size": 2, "tgi_request_success": 4,
            **histogram("tgi_request_generated_tokens", 7, 2, {"10": 2}),
            **histogram("tgi_request_input_length", 40, 2, {"100": 2}),
            **histogram("tgi_request_mean_time_per_token_duration", 0.05, 2, _BUCKETS),
            **histogram("tgi_request_queue_duration", 0.25, 2, _BUCKETS),
        },
        {
            "running": 3, "waiting": 2, "generation_tokens": 7, "prompt_tokens": 40, "completed": 4, "prompt_size": 2,
            "generation_size": 2, "tpot": 2, "queue": 2,
        },
    ),
    "triton": (
        {
            'nv_trt_llm_request_metrics{request_type="scheduled"}': 3,
            'nv_trt_llm_request_metrics{request_type="waiting"}': 2,
            'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"}': 0.5,
            "nv_inference_request_success": 4, "nv_inference_request_failure": 2,
        },
        {"running": 3, "waiting": 2, "kv_last_share": Fraction(1, 2), "completed": 4, "aborted": 2},
    ),
    "llama_cpp": (
        {
            "llamacpp:requests_processing": 3, "llamacpp:requests_deferred": 2, "llamacpp:kv_cache_usage_ratio": 0.5,
            "llamacpp:tokens_predicted_total": 7, "llamacpp:prompt_tokens_total": 40,
        },
        {"running": 3, "waiting": 2, "kv_last_share": Fraction(1, 2), "generation_tokens": 7, "prompt_tokens": 40},
    ),
}  # fmt: skip
"""What each engine exports after a second in which everything began at 0, and what is read from it; of a histogram its
count."""


@pytest.mark.parametrize("kind", sorted(GROWN))
def test_what_other_engines_tell(kind: str) -> None:
    values, expected = GROWN[kind]
    (window,) = EngineScene(kind=kind).scrape(0, dict.fromkeys(values, 0)).scrape(1, values).run().windows
    told = {name: getattr(window, name) for name in expected}
    assert {name: getattr(value, "count", value) for name, value in told.items()} == expected


def test_no_name_tells_two_meanings_of_state() -> None:
    """A metric may count for several meanings only where a label tells them apart or the table says why."""
    for kind, table in KINDS.items():
        assert set(table) <= set(MEANINGS), kind
        seen: dict[str, str] = {}
        for meaning in COUNTERS:
            for option in table.get(meaning, ()):
                for metric in option.metrics:
                    other = seen.setdefault(plain(metric), meaning)
                    assert other == meaning or option.only or option.without or option.doubt, (kind, metric)


def test_an_engine_that_was_not_scraped_says_why() -> None:
    scene = EngineScene()
    scene.rows("engines", [{
        "start_ns": 10**12, "duration_ns": None, "engine": 1, "op": "unknown", "url": "http://10.0.0.9:8000/metrics",
        "pid": None, "found_by": "--engine", "remote": 0, "state": "refused", "reason": "not loopback",
    }])  # fmt: skip
    scene.scrape(0, {"vllm:num_requests_running": 1}).scrape(1, {"vllm:num_requests_running": 1})
    first, second = scene.context().engine_runs
    assert first.windows
    assert (second.windows, second.reason, second.ceiling_reason) == ((), "not loopback", "no scrape succeeded")


def test_one_scrape_is_a_window_that_cannot_be_evaluated() -> None:
    run = _run({"vllm:generation_tokens_total": 7})
    (window,) = run.windows
    assert (window.duration_s, window.evaluable, window.running) == (None, False, 1)
    assert run.totals.evaluable == 0
    assert run.totals.counters["generation_tokens"] == 7


def test_an_engine_that_stopped_answering_shows_a_gap() -> None:
    scene = EngineScene()
    for second in (0, 1, 2):
        scene.scrape(second, {"vllm:num_requests_running": 1})
    for second in (3, 50, 90):
        scene.fail(second, "refused")
    assert scene.run().longest_gap_s == 88


def test_a_forged_time_makes_no_million_windows() -> None:
    """Two answers a century apart: the windows that have one, and nothing between."""
    scene = EngineScene()
    for second in (0, 1, 3_200_000_000):
        scene.scrape(second, {"vllm:num_requests_running": 1, "vllm:generation_tokens_total": second})
    run = scene.run()
    assert [w.scrapes for w in run.windows] == [2, 1]
    assert [w.generation_tokens for w in run.windows] == [1, None]
