"""Launch-bound streams: gaps in which the host did nothing but launch, and gaps of other kinds."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.quality import read_quality
from gpuaudit.analyze.window import read_window
from tests import kineto_traces
from tests.rule_scenes.launch_bound import stream
from tests.scenes import MS, US
from tests.unit.analyze.test_causes_of_calls import chains, number


def test_gaps_between_short_kernels_are_the_hosts_and_the_pause_is_not() -> None:
    (chain,) = chains(stream(), "launch_bound")
    assert number(chain, "gaps") == 2 * 399
    assert number(chain, "explained") == 2 * 399 * 15 * US
    assert number(chain, "effect_time") == 2 * 399 * 15 * US + 10 * MS + 15 * US
    assert number(chain, "kernel") == 5 * US
    assert number(chain, "pace") == 20 * US
    assert "CUDA graph" in chain.experiment


def test_a_gpu_that_is_behind_its_host_has_no_such_gap() -> None:
    assert chains(stream(kernel=30 * US), "launch_bound") == []


def test_a_host_that_does_something_else_between_launches_is_not_bound_by_them() -> None:
    assert chains(stream(pace=200 * US), "launch_bound") == []


def test_work_whose_call_is_not_in_the_recording_is_not_judged() -> None:
    scene = stream()
    for row in scene.rows["cuda_calls"]:
        row["correlation"] = None
    assert chains(scene, "launch_bound") == []


def test_work_that_was_queued_before_the_gap_did_not_wait_for_its_host() -> None:
    scene = stream()
    for row in scene.rows["cuda_calls"]:
        row["start_ns"] -= 25 * US
    assert chains(scene, "launch_bound") == []


def test_a_real_training_step_is_half_bound_by_its_launches(tmp_path: Path) -> None:
    """Rank 3 of a public trace of eight A100: 76,007 µs of its 464,594 are idle, as its README has it."""
    store, _ = kineto_traces.imported([kineto_traces.recorded("a100-world8-rank3")], tmp_path / "bundle.db")
    window = read_window(store)
    context = Context(store, window, read_quality(store, window, "SEALED"), EvidenceBook(store))
    (effect,) = [e for e in context.causal.effects if e.kind == "gpu_idle"]
    assert effect.length_ns // US == 76_007
    assert effect.of_ns // US == 464_594
    (chain,) = [c for c in context.causal.chains if c.detector == "launch_bound"]
    assert Fraction(1, 2) < number(chain, "share") < Fraction(2, 3)
    assert number(chain, "kernel") < number(chain, "pace"), "its median kernel is over before the next is launched"
