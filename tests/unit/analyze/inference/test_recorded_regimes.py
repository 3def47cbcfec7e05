"""Windows and totals of a real vLLM server's recordings against what its clients counted themselves."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gpuaudit.analyze.inference.quantiles import merge
from tests.recorded_engines import REGIMES, clients_truth, run, store

TOTALS = {
    "idle": {"completed": 0, "prompt_tokens": 0, "generation_tokens": 0},
    "light": {"completed": 33, "prompt_tokens": 2_686, "generation_tokens": 1_117},
    "heavy_queue": {"completed": 406, "prompt_tokens": 194_615, "generation_tokens": 44_492},
    "prefix_hits": {
        "completed": 364, "prompt_tokens": 582_400, "generation_tokens": 8_736, "prefix_hits": 557_568,
        "prefix_queries": 582_400,
    },
    "kv_pressure": {"completed": 46, "preemptions": 58},
}  # fmt: skip
"""What the server's counters gained over each file, as the people who recorded it wrote down."""

FINISHED_BEFORE_POLLING = ("light", "prefix_hits")
"""Recordings that went on until the last request was answered: the clients' sums are the server's."""


@pytest.mark.parametrize("regime", REGIMES)
def test_totals_are_those_written_down(regime: str) -> None:
    assert run(regime).totals.deltas.items() >= TOTALS[regime].items()
    assert run(regime).totals.deltas["aborted"] == 0


@pytest.mark.parametrize("regime", FINISHED_BEFORE_POLLING)
def test_totals_are_the_clients_own(regime: str) -> None:
    answered = [r for r in clients_truth(regime) if r["status"] == 200]
    usage = [r["usage"] for r in answered]
    totals = run(regime).totals.deltas
    assert totals["completed"] == len(answered)
    assert totals["prompt_tokens"] == sum(u["prompt_tokens"] for u in usage)  # type: ignore[index]
    assert totals["generation_tokens"] == sum(u["completion_tokens"] for u in usage)  # type: ignore[index]


@pytest.mark.parametrize("regime", ["heavy_queue", "kv_pressure"])
def test_totals_are_the_clients_own_until_the_last_poll(regime: str) -> None:
    """Polling ended before the load did: a prompt counts from its first token, an answer when it is whole."""
    end_s, totals = Fraction(run(regime).end_ns, 10**9), run(regime).totals.deltas
    answered = [r for r in clients_truth(regime) if r["status"] == 200]

    def until(moment: str, tokens: str) -> list[int]:
        return [r["usage"][tokens] for r in answered if Fraction(str(r[moment])) <= end_s]  # type: ignore[index]

    assert totals["completed"] == len(until("t_end", "prompt_tokens")) < len(answered)
    assert totals["prompt_tokens"] == sum(until("t_first", "prompt_tokens"))
    whole, begun = sum(until("t_end", "completion_tokens")), sum(until("t_first", "completion_tokens"))
    assert totals["generation_tokens"] is not None
    assert whole < totals["generation_tokens"] < begun, "answers under way count in part"


@pytest.mark.parametrize("regime", REGIMES)
def test_windows_add_up_to_the_totals(regime: str) -> None:
    """Nothing is counted twice and nothing between two windows is lost, slow polls or not."""
    found = run(regime)
    for meaning in ("completed", "prompt_tokens", "generation_tokens", "preemptions", "prefix_hits"):
        assert sum(getattr(w, meaning) for w in found.windows) == found.totals.deltas[meaning]
    assert sum(w.scrapes for w in found.windows) == found.scrapes
    assert sum((w.duration_s or Fraction(0) for w in found.windows), Fraction(0)) == Fraction(
        found.end_ns - found.start_ns, 10**9
    )


def test_idle_has_no_active_window() -> None:
    totals = run("idle").totals
    assert (totals.windows, totals.evaluable, totals.active, totals.idle) == (7, 7, 0, 7)
    assert totals.generation_tps is None


def test_a_queue_before_full_slots() -> None:
    totals = run("heavy_queue").totals
    assert totals.running_peak == 32
    assert totals.waiting_peak == 91
    assert totals.kv_peak_share is not None
    assert totals.kv_peak_share < Fraction(79, 1000)
    assert (totals.active, totals.idle) == (9, 0)


def test_queueing_is_nearly_all_of_the_first_token() -> None:
    """10,428 of 10,617 ms, and the first bucket past the edge is not what the mean says."""
    totals = run("heavy_queue").totals
    assert totals.queue.mean is not None
    assert totals.ttft.mean is not None
    assert round(totals.queue.mean * 1000) == 10_428
    assert round(totals.ttft.mean * 1000) == 10_617


def test_first_tokens_are_as_late_as_the_clients_saw() -> None:
    """The p99 of merged buckets lies in the bucket of the clients' own p99; the mean lacks only the way to and fro."""
    waits = sorted(Fraction(str(r["t_first"])) - Fraction(str(r["t_send"])) for r in clients_truth("prefix_hits"))
    ttft = run("prefix_hits").totals.ttft
    assert ttft.p99 is not None
    assert ttft.mean is not None
    own = waits[-(-len(waits) * 99 // 100) - 1]
    edges = [e for e in ttft.buckets.edges if e >= own]
    lower = max(e for e in ttft.buckets.edges if e < own)
    assert lower <= ttft.p99.value <= edges[0]
    clients_mean = sum(waits, Fraction(0)) / len(waits)
    assert clients_mean / 2 < ttft.mean < clients_mean


def test_prefix_hits() -> None:
    assert run("prefix_hits").totals.prefix_hit_share == Fraction(557_568, 582_400)


def test_pressure_shows_despite_slow_polls() -> None:
    found = run("kv_pressure")
    assert found.totals.kv_peak_share == 1
    assert found.longest_gap_s is not None
    assert found.longest_gap_s > Fraction(338, 100)
    assert found.failed == 0
    assert sum(w.preemptions or 0 for w in found.windows) == 58


@pytest.mark.parametrize("regime", REGIMES)
def test_merged_buckets_hold_every_observation(regime: str) -> None:
    """Over all windows, active or not, the buckets gained what the histogram's count did."""
    found = run(regime)
    merged = merge(w.ttft.buckets for w in found.windows)
    assert merged.counts[-1] == sum(w.ttft.count or 0 for w in found.windows)
    rows = store(regime).sql(
        "SELECT max(value) - min(value) FROM engine_samples JOIN engine_series USING (engine, series) "
        "WHERE metric = 'vllm:time_to_first_token_seconds_count'"
    )
    assert merged.counts[-1] == rows[0][0]


def test_settings_come_from_labels_and_say_so() -> None:
    found = run("kv_pressure")
    blocks = found.config["num_gpu_blocks"]
    assert (blocks.value, blocks.source) == ("40", "metric label")
    assert "vllm:cache_config_info" in blocks.detail
    assert found.model == "tiny-llama"
    assert found.switch("enable_prefix_caching") is True
    assert found.number("gpu_memory_utilization") == Fraction(92, 100)


def test_seats_are_not_invented() -> None:
    """vLLM 0.32 exports no max_num_seqs: without --setting there are no seats, never a default."""
    assert run("heavy_queue").max_num_seqs is None
    assert "max_num_seqs" in run("heavy_queue").absent
    given = run("heavy_queue", (("max_num_seqs", "32"),))
    assert given.max_num_seqs == 32
    assert given.config["max_num_seqs"].source == "given at import"


def test_no_gpu_is_no_ceiling() -> None:
    found = run("light")
    assert found.gpus == ()
    assert found.gpu_join == "no GPU was sampled"
    assert found.ceiling is None
    assert found.ceiling_reason
