"""The engine rules on servers whose traffic is known by hand: values, absent input, policies, fixes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.analyze.context import Context, Found, NotEvaluated
from gpuaudit.analyze.finding import Finding, Quantity
from gpuaudit.analyze.inference import persistence, physics, seats
from gpuaudit.analyze.policy import Policy
from gpuaudit.analyze.registry import plugins
from gpuaudit.analyze.rules import r1_under_batching, r4_oom_risk, r5_concurrency_saturation
from tests.engine_scene import histogram
from tests.served import VRAM_BYTES, Traffic

RULES = {p.declaration.id: p.evaluate for p in plugins()}
R1, R2, R2B, R3 = "r1_under_batching", "r2_kv_pressure", "r2b_admission_backlog", "r3_prefix_reuse"
R4, R5, R6, R7 = "r4_oom_risk", "r5_concurrency_saturation", "r6_prefill_bound", "r7_configured_limit"
SEATS = {"max_num_seqs": "256"}


def found(traffic: Traffic, rule: str) -> Finding | None:
    outcome = RULES[rule](traffic.scene().context())
    assert isinstance(outcome, Found), outcome.reason
    (item,) = outcome.items or (None,)
    assert item is None or isinstance(item, Finding)
    return item


def the(traffic: Traffic, rule: str) -> Finding:
    item = found(traffic, rule)
    assert item is not None
    return item


def refused(traffic: Traffic, rule: str) -> str:
    outcome = RULES[rule](traffic.scene().context())
    assert isinstance(outcome, NotEvaluated), outcome
    return outcome.reason


def value(finding: Finding, name: str) -> int | Fraction | None:
    q = finding.values[name]
    assert isinstance(q, Quantity)
    return q.value


def settings(finding: Finding) -> dict[str, tuple[str, str]]:
    return {x.setting: (x.current, x.new) for x in finding.fixes}


def test_r1_names_the_wall_and_the_empty_seats() -> None:
    finding = the(Traffic(settings=SEATS), R1)
    assert (value(finding, "effective"), value(finding, "idle")) == (256, 248)
    assert value(finding, "occupancy") == Fraction(8, 256)
    assert finding.values["wall"] == "max_num_seqs"
    assert finding.score == 4 * Fraction(80, 100)
    # 400 tokens/s of 256 sequences at 3350e9 · 8 / (8e9 · 16) tokens/s each
    assert value(finding, "efficiency") == Fraction(400) / (256 * Fraction(3350 * 10**9 * 8, 8 * 10**9 * 16))


def test_r1_without_a_known_gpu_is_less_sure_and_needs_a_smaller_batch() -> None:
    assert the(Traffic(settings=SEATS, gpu=None), R1).score == 4 * Fraction(50, 100)
    assert found(Traffic(settings={"max_num_seqs": "32"}, gpu=None), R1) is None  # exactly a quarter
    assert found(Traffic(settings={"max_num_seqs": "32"}), R1) is not None


def test_of_equal_walls_r1_names_memory_then_the_ridge() -> None:
    """What cannot be configured away comes first."""
    assert r1_under_batching.lowest_wall(64, Fraction(64), Fraction(129, 2)) == (64, "memory")
    assert r1_under_batching.lowest_wall(64, Fraction(64), 65) == (64, "ridge")
    assert r1_under_batching.lowest_wall(64, 65, 65) == (64, "config")
    assert r1_under_batching.lowest_wall(64, None, None) == (64, "config")
    assert r1_under_batching.lowest_wall(None, 64, 64) is None


def test_r1_takes_the_cache_for_the_wall_where_it_is_lowest() -> None:
    finding = the(Traffic(settings={**SEATS, "kv_cache_max_concurrency": "35.9"}), R1)
    assert (value(finding, "effective"), value(finding, "idle")) == (35, 27)
    assert "KV cache" in str(finding.values["wall"])


@pytest.mark.parametrize(
    ("rule", "traffic", "why"),
    [
        (R1, Traffic(), "max_num_seqs is not known"),
        (R1, Traffic(settings=SEATS, waiting=None), "was not exported"),
        (R1, Traffic(settings={"max_num_seqs": "auto"}), "max_num_seqs is not known"),
        (R1, Traffic(settings=SEATS, running=0, requests=0), "0 of 6 windows with traffic"),
        (R2, Traffic(kv=None, preemptions=1, waiting=9), "KV use was not exported"),
        (R2, Traffic(kv=95, preemptions=1, waiting=9), "never told a share from 0 to 1"),
        (R2, Traffic(running=0, requests=0), "no traffic"),
        (R2B, Traffic(kv=0.95, waiting=20, settings=SEATS), "num_gpu_blocks, block_size"),
        (R2B, Traffic(kv=0.95, waiting=20, settings={"num_gpu_blocks": "9", "block_size": "16"}), "max_num_seqs"),
        (R3, Traffic(), "no hit rate"),
        (R3, Traffic(settings={"enable_prefix_caching": "True"}), "no hit rate"),
        (R4, Traffic(gpu=None), "the engine's GPU is not known"),
        (R4, Traffic(model="nobody/unheard-of"), "model"),
        (R5, Traffic(waiting=10), "no plateau"),
        (R6, Traffic(gpu=None), "no ceiling"),
        (R7, Traffic(gpu=None, settings=SEATS), "no wall is known"),
        (R7, Traffic(), "max_num_seqs is not known"),
    ],
)
def test_without_its_input_a_rule_is_not_evaluated_and_says_why(rule: str, traffic: Traffic, why: str) -> None:
    assert why in refused(traffic, rule)


@pytest.mark.parametrize("rule", [R1, R2, R2B, R3, R4, R5, R6, R7])
def test_without_an_engine_no_rule_is_evaluated(rule: str) -> None:
    scene = Traffic().scene()
    context = scene.context()
    context.__dict__["engine_runs"] = []
    assert isinstance(RULES[rule](context), NotEvaluated)
    (run,) = scene.context().engine_runs
    context.__dict__["engine_runs"] = [replace(run, state="refused", reason="not loopback")]
    outcome = RULES[rule](context)
    assert isinstance(outcome, NotEvaluated)
    assert "not loopback" in outcome.reason


@pytest.mark.parametrize("gauge", ["kv", "running", "waiting"])
def test_nan_and_infinity_are_missing(gauge: str) -> None:
    for bad in (float("nan"), float("inf")):
        full = Traffic(**{"kv": 0.95, "waiting": 9, "preemptions": 0, gauge: bad})  # type: ignore[arg-type]
        outcome = RULES[R2](full.scene().context())
        assert isinstance(outcome, NotEvaluated) or not outcome.items


def test_r2_needs_harm_beside_a_full_cache() -> None:
    assert found(Traffic(kv=0.95, preemptions=0, waiting=2), R2) is None
    assert found(Traffic(kv=0.95, preemptions=0, waiting=3), R2) is not None
    assert found(Traffic(kv=0.95, preemptions=1, waiting=0), R2) is not None
    assert found(Traffic(kv=0.5, preemptions=1, waiting=9), R2) is None


def test_r2_offers_only_levers_whose_prerequisites_were_recorded() -> None:
    bare = the(Traffic(kv=0.95, preemptions=1), R2)
    assert [x.setting for x in bare.fixes] == [""]
    assert "replica" in bare.fixes[0].action
    told = {
        "max_num_seqs": "8", "kv_cache_dtype": "auto", "enable_prefix_caching": "False",
        "gpu_memory_utilization": "0.5", "max_model_len": "8192",
    }  # fmt: skip
    levers = settings(the(Traffic(kv=0.95, preemptions=1, settings=told, memory_used=45 * 10**9), R2))
    assert levers["enable_prefix_caching"] == ("False", "True")
    assert levers["gpu_memory_utilization"] == ("0.5", "0.55")
    assert levers["kv_cache_dtype"] == ("auto", "fp8")
    assert levers["max_num_seqs"] == ("8", "6")  # floor(0.8 · 8 / 0.95)
    used = Traffic(
        kv=0.95, preemptions=1, settings={**told, "kv_cache_dtype": "fp8_e4m3"}, memory_used=VRAM_BYTES - 10**9
    )
    full = settings(the(used, R2))
    assert not {"kv_cache_dtype", "gpu_memory_utilization"} & set(full), "no memory is free, and the cache is FP8"
    short = settings(the(Traffic(kv=0.95, preemptions=1, prompt=100, settings=told), R2))
    assert "enable_prefix_caching" not in short, "prompts of 100 tokens share little"


def test_r2_suggests_a_shorter_length_only_from_enough_requests() -> None:
    told = {"max_model_len": "8192"}
    many = settings(the(Traffic(kv=0.95, preemptions=1, requests=40, settings=told), R2))
    few = settings(the(Traffic(kv=0.95, preemptions=1, requests=4, settings=told), R2))
    assert "max_model_len" not in few
    assert many["max_model_len"][0] == "8192"
    assert int(many["max_model_len"][1]) <= 600


def test_r2b_tells_tokens_free_and_needed() -> None:
    told = {**SEATS, "num_gpu_blocks": "100", "block_size": "16"}
    finding = the(Traffic(kv=0.95, waiting=20, settings=told), R2B)
    assert value(finding, "free") == 1600 * Fraction(5, 100)
    assert value(finding, "demand") == 20 * 500
    assert value(finding, "queue_share") == Fraction(20, 28)
    assert found(Traffic(kv=0.5, waiting=20, settings=told), R2B) is None
    taken = Traffic(kv=0.95, waiting=20, settings={**told, "max_num_seqs": "8"})
    assert found(taken, R2B) is None, "seats are taken: R5's"
    assert found(replace(taken, settings={**told, "max_num_seqs": "9"}), R2B) is not None


def test_r3_is_graver_where_caching_is_off() -> None:
    off = the(Traffic(settings={"enable_prefix_caching": "False"}), R3)
    low = the(Traffic(hits=0.1), R3)
    assert (off.score, low.score) == (3 * Fraction(95, 100), 2 * Fraction(90, 100))
    assert settings(off) == {"enable_prefix_caching": ("False", "True")}
    assert settings(low) == {"prompt layout": ("", "")}
    assert value(low, "volume") == 2000
    assert found(Traffic(hits=0.35), R3) is None
    assert found(Traffic(hits=0.1, prompt=249), R3) is None  # 996 tokens/s


def test_r4_says_how_many_gpus_the_weights_need() -> None:
    big = Traffic(model="meta-llama/Llama-3.1-70B-Instruct", settings={"dtype": "bfloat16"})
    finding = the(big, R4)
    assert settings(finding) == {"tensor_parallel_size": ("1", "2")}
    assert value(finding, "weights") == 140 * 10**9
    assert finding.score == 5 * Fraction(95, 100)
    assert finding.severity == "critical"
    assert finding.impact.value == 12 * 10**9, "all evaluable windows: a configuration holds all the time"
    enough = replace(big, settings={"dtype": "bfloat16", "tensor_parallel_size": "2"})
    assert found(enough, R4) is None


def test_r4_is_silent_where_the_size_of_a_weight_is_a_guess() -> None:
    context = Traffic(model="meta-llama/Llama-3.1-70B-Instruct", settings={"dtype": "bfloat16"}).scene().context()
    (run,) = context.engine_runs
    assert run.ceiling is not None
    guess = replace(run.ceiling.facts.weight_type, fallback=True, source="fallback")
    facts = replace(run.ceiling.facts, weight_type=guess)
    context.__dict__["engine_runs"] = [replace(run, ceiling=replace(run.ceiling, facts=facts))]
    outcome = RULES[R4](context)
    assert isinstance(outcome, NotEvaluated)
    assert "assuming bf16" in outcome.reason


def test_r4_finds_one_request_that_does_not_fit_and_what_would() -> None:
    told = {"dtype": "bfloat16", "gpu_memory_utilization": "0.24", "max_model_len": "131072"}
    finding = the(Traffic(settings=told), R4)
    assert str(finding.values["what"]).startswith("one request")
    levers = settings(finding)
    current, new = levers["gpu_memory_utilization"]
    room = Fraction(new) * Fraction(85_899_345_920, 10**9) - 3 - 16
    assert current == "0.24"
    assert room * 10**9 >= Fraction(value(finding, "request") or 0)
    assert int(levers["max_model_len"][1]) < 131072


@pytest.mark.parametrize(("tp", "kind"), [(1, "request"), (2, None), (None, None)])
def test_r4_prices_one_request_on_one_gpu_only(tp: int | None, kind: str | None) -> None:
    """How a request's cache is sharded over several GPUs is not computed: nothing is claimed of it."""
    assert r4_oom_risk.gate(10, "told", 11 * 10**9, tp).kind == kind
    assert r4_oom_risk.gate(10, "told", 10 * 10**9, tp).kind is None


def test_r5_raises_the_seats_to_the_target_while_the_cache_has_room() -> None:
    told = {"max_num_seqs": "8", "max_model_len": "8192"}
    finding = the(Traffic(waiting=10, settings=told), R5)
    assert settings(finding) == {"max_num_seqs": ("8", "43")}  # floor(0.8 · 54 sequences of 8,192 tokens)
    assert finding.score == 4 * Fraction(90, 100)
    assert value(finding, "queue") == Fraction(10, 18)
    full = the(Traffic(waiting=10, kv=0.8, settings=told), R5)
    assert [x.setting for x in full.fixes] == [""]
    assert "never raise" in full.fixes[0].action
    blind = the(Traffic(waiting=10, kv=None, settings=told), R5)
    assert blind.score == 4 * Fraction(60, 100)
    assert "replica" in blind.fixes[0].action


@pytest.mark.parametrize(
    ("seats", "completed_per_s", "slack"),
    [
        (32, None, 1),
        (32, 0, 1),
        (32, 400, 1),  # a hundred ended in a quarter of a second, 1 % of the seats is less than one
        (1024, 0, 1),
        (1024, 20, 5),
        (1024, 4000, Fraction(1024, 100)),
    ],
)
def test_seats_that_just_ended_requests_left_empty_still_count(
    seats: int, completed_per_s: int | None, slack: int | Fraction
) -> None:
    """One seat at least, as many as end in a quarter of a second, at most 1 % of the seats."""
    assert r5_concurrency_saturation.slack_of(seats, completed_per_s) == slack
    two = np.array([2.0])

    def flag(running: float) -> bool | None:
        return r5_concurrency_saturation.scrape_flag(np.array([running]), two, seats, completed_per_s)

    assert flag(float(seats - slack)) is True
    assert flag(float(seats - slack) - 0.01) is False
    assert flag(seats + 0.5) is True
    assert flag(seats + 0.51) is False
    assert r5_concurrency_saturation.scrape_flag(np.array([float(seats)]), np.array([1.0]), seats, 0) is False
    assert flag(float("nan")) is None


def test_r5_is_silent_above_the_seats_and_with_a_short_queue() -> None:
    assert found(Traffic(running=12, waiting=10, settings={"max_num_seqs": "8"}), R5) is None
    assert found(Traffic(waiting=3, settings={"max_num_seqs": "8"}), R5) is None  # 27 % of the load
    assert found(Traffic(running=1, waiting=1, settings={"max_num_seqs": "1"}), R5) is None


def test_r5_infers_no_seats_where_the_cache_was_full_or_little_was_seen() -> None:
    assert "no plateau" in refused(Traffic(waiting=10, kv=0.85), R5)
    assert "no plateau" in refused(Traffic(waiting=10, seconds=30), R5)
    inferred = the(Traffic(waiting=10, seconds=60), R5)
    assert value(inferred, "seats") == 8
    assert inferred.score == 4 * Fraction(50, 100)


def test_r6_is_muted_near_the_floor_and_less_sure_without_it() -> None:
    long = Traffic(requests=10, prompt=2000, generated=20)
    finding = the(replace(long, tpot=0.1), R6)
    assert value(finding, "ratio") == 100
    assert finding.values["grade"] == "severe"
    assert finding.score == 5 * Fraction(85, 100)
    assert found(replace(long, tpot=0.019), R6) is None  # the floor is 4.8 ms
    assert the(replace(long, tpot=None), R6).score == 5 * Fraction(50, 100)
    assert found(replace(long, prompt=99), R6) is None  # 4.95 prompt tokens per generated one
    assert found(replace(long, tpot=0.1, hits=0.96), R6) is None


def test_r6_does_not_take_unknown_hits_for_none() -> None:
    """With caching on and no counter of hits, nobody knows how many prompt tokens were computed."""
    long = Traffic(requests=10, prompt=2000, generated=20, tpot=0.1)
    assert found(replace(long, settings={"enable_prefix_caching": "True"}), R6) is None
    assert found(replace(long, settings={"enable_prefix_caching": "False"}), R6) is not None


@dataclass
class Skewed(Traffic):
    """Of ten prompts nine have 100 tokens and one has 20,000."""

    def at(self, t: int) -> dict[str, float]:
        done = 10 * t
        few = histogram("vllm:request_prompt_tokens", done * 2090, done, {"100": 9 * t, "20000": done})
        return {k: v for k, v in super().at(t).items() if "request_prompt_tokens" not in k} | few


def test_r6_says_whether_a_few_prompts_are_much_longer() -> None:
    told = {"requests": 10, "prompt": 2090, "generated": 20, "tpot": 0.1}
    alike, skewed = the(Traffic(**told), R6), the(Skewed(**told), R6)  # type: ignore[arg-type]
    assert alike.values["skew"] == "of like length, or unknown"
    assert skewed.values["skew"] == "a few are much longer than the mean"


def test_r6_fires_where_nothing_is_generated_at_all() -> None:
    """Prompt tokens by the thousand and no generated one: the ratio is without bound, and not a number."""
    finding = the(Traffic(requests=10, prompt=2000, generated=0, tpot=None), R6)
    assert value(finding, "ratio") is None
    assert finding.values["grade"] == "severe"


def test_r6_refuses_a_server_that_is_faster_than_its_ceiling() -> None:
    fast = Traffic(requests=10, prompt=2000, generated=20, tpot=0.004)
    assert "speculative" in refused(fast, R6)
    (run,) = fast.scene().context().engine_runs
    assert physics.batch_efficiency(run) is None
    assert physics.config_efficiency(run, 400) is None


def test_r7_names_the_wall_of_its_target() -> None:
    told = {"max_num_seqs": "32", "max_model_len": "8192"}
    derived = the(Traffic(running=20, settings=told), R7)
    assert settings(derived) == {"max_num_seqs": ("32", "43")}
    assert derived.score == 3 * Fraction(60, 100)
    reported = the(Traffic(running=20, settings={**told, "kv_cache_max_concurrency": "120"}), R7)
    assert value(reported, "target") == 96
    assert reported.score == 3 * Fraction(80, 100)
    assert found(Traffic(running=15, settings=told), R7) is None  # fewer than half of the seats
    assert found(Traffic(running=20, waiting=2, settings=told), R7) is None


@dataclass
class Swelling(Traffic):
    """A cache that fills in the last two seconds."""

    def at(self, t: int) -> dict[str, float]:
        return super().at(t) | {"vllm:kv_cache_usage_perc": 0.1 if t <= 10 else 0.9}


def test_r7_is_silent_where_the_run_allows_no_more_seats_than_there_are() -> None:
    """Early windows suggest twice the seats; the whole run shows that 20 sequences fill the cache."""
    told = {"max_num_seqs": "32"}
    early = the(Traffic(running=20, kv=0.1, settings=told), R7)
    assert (value(early, "target"), early.score) == (64, 3 * Fraction(50, 100))
    assert found(Swelling(running=20, settings=told), R7) is None


def test_data_parallel_engines_share_the_seats() -> None:
    target = seats.seat_target(ridge=Fraction(295), bound=None)
    (fix,) = r5_concurrency_saturation.fixes_of(Fraction(1, 10), seats.Seats(64, "setting"), target, engines=2)
    assert (fix.setting, fix.current, fix.new) == ("max_num_seqs", "32", "118")  # each of the two has half of 236


def test_without_a_ridge_seats_are_at_most_doubled_and_that_is_said() -> None:
    """The cache of a tiny model holds 2,048 sequences: nobody knows whether an unnamed GPU computes 1,638 of them."""
    told = {"max_num_seqs": "8", "kv_cache_max_concurrency": "2048"}
    tiny = Traffic(waiting=10, settings=told, gpu=None, model="nobody/tiny")
    finding = the(tiny, R5)
    assert value(finding, "target") == 16
    assert "at most twice the present ones" in str(finding.values["doubt"])
    assert "ridge of the GPU is not known" in finding.fixes[0].side_effects
    assert settings(finding) == {"max_num_seqs": ("8", "16")}
    low = the(replace(tiny, waiting=0), R7)
    assert (value(low, "target"), str(low.values["doubt"])[:15]) == (16, "; at most twice")
    known = the(Traffic(waiting=10, settings=told), R5)
    assert value(known, "target") == 236, "80 % of the ridge of an H100, 295"
    assert known.values["doubt"] == ""


@pytest.mark.parametrize(("kind", "setting"), [("sglang", "max_running_requests"), ("unknown", "")])
def test_seats_are_called_what_the_engine_calls_them(kind: str, setting: str) -> None:
    target = seats.seat_target(ridge=Fraction(295), bound=None)
    (fix,) = r5_concurrency_saturation.fixes_of(Fraction(1, 10), seats.Seats(64, "setting"), target, kind=kind)
    assert fix.setting == setting


@given(running=st.integers(0, 300), waiting=st.integers(0, 300), cap=st.integers(1, 256), flag=st.booleans())
def test_saturation_needs_a_queue_and_a_flag(running: int, waiting: int, cap: int, flag: bool) -> None:
    fired = r5_concurrency_saturation.gate(running=running, waiting=waiting, cap=cap, flag=flag).fired
    assert not fired or (flag and waiting >= 2)
    longer = r5_concurrency_saturation.gate(running=running, waiting=waiting + 1, cap=cap, flag=flag).fired
    assert longer or not fired, "a longer queue is no less of one"


@given(fired=st.integers(0, 50), active=st.integers(0, 50))
def test_persistence_grows_with_windows_that_fired(fired: int, active: int) -> None:
    assert not persistence.persistent(min(fired, 2), active)
    if fired < active and persistence.persistent(fired, active):
        assert persistence.persistent(fired + 1, active)


def test_a_bound_that_more_sequences_than_it_ran_refutes_is_not_used() -> None:
    told = {"max_num_seqs": "32", "max_model_len": "8192", "kv_cache_max_concurrency": "10"}
    assert value(the(Traffic(running=20, settings=told), R7), "target") == 43, "20 ran, so 10 is no bound; 54 is"


@cache
def _saturated() -> Context:
    return Traffic(waiting=10, settings={"max_num_seqs": "8"}).scene().context()


def test_a_policy_sets_thresholds_of_engine_rules() -> None:
    base = _saturated()
    assert isinstance(outcome := RULES[R5](base), Found)
    assert outcome.items
    policy = Policy({(R5, "queue_share"): Fraction(90, 100)}, "0" * 64)
    strict = Context(base.store, base.window, base.quality, base.book, policy)
    assert isinstance(outcome := RULES[R5](strict), Found)
    assert not outcome.items
