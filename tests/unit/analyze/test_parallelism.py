"""Tensor parallelism from its collectives: passes of equal all-reduces, and what only looks like them."""

from __future__ import annotations

from typing import Any

import pytest

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.inference.model import EngineRun, Setting
from gpuaudit.analyze.parallelism import Fingerprint, read_fingerprints, read_verdicts
from gpuaudit.analyze.sections import residency as section
from tests.scenes import COMM, MS, T0, S, Scene

HIDDEN = 4096
LAYERS = 32


def reduce(scene: Scene, number: int, count: int, op: str = "ncclAllReduce", ranks: int = 2, **more: Any) -> None:
    for rank in range(ranks):
        scene.add(
            "nccl_calls", start_ns=T0 + number * MS, duration_ns=10_000, pid=100 + rank, tid=100 + rank, op=op,
            return_code=0, comm_handle=7, comm_id=COMM, rank=rank, nranks=ranks, datatype=9, reduce_op=0, count=count,
            size_bytes=2 * count, stream=1, **more,
        )  # fmt: skip


def passes(tokens: list[int], layers: int = LAYERS, hidden: int = HIDDEN, extra: int = 0, gather: bool = True) -> Scene:
    """One forward pass per entry of ``tokens``; ``extra`` all-reduces for a split embedding, a gather of the logits."""
    scene = Scene().clock()
    number = 0
    for n in tokens:
        for _ in range(2 * layers + extra):
            reduce(scene, number, n * hidden)
            number += 1
        if gather:
            reduce(scene, number, n * 1000, "ncclAllGather")
            number += 1
    return scene


TOKENS = [512, 1, 2, 3, 3, 3, 2, 2, 1, 1]


def only(scene: Scene, **known: int) -> Fingerprint:
    (found,) = read_fingerprints(scene.context(), **known)
    return found


@pytest.mark.parametrize("extra", [0, 1])
def test_two_all_reduces_per_layer_are_tensor_parallelism(extra: int) -> None:
    found = only(passes(TOKENS, extra=extra))
    assert (found.degree, found.passes, found.per_pass, found.layers) == (2, 10, 64 + extra, 32)
    assert found.pids == (100, 101)
    assert "64 equal" in found.reason if not extra else "65 equal" in found.reason


def test_passes_that_follow_each_other_are_multiples() -> None:
    """Without a gather between them, three passes of three tokens are one run of 3 × 64."""
    found = only(passes(TOKENS, gather=False), layers=LAYERS, hidden=HIDDEN)
    assert (found.degree, found.passes, found.layers) == (2, 10, 32)


def test_the_model_has_to_fit() -> None:
    found = only(passes(TOKENS), layers=28, hidden=HIDDEN)
    assert found.degree is None
    assert found.reason == "0 of 640 all-reduces come as 2 per layer of 28 layers"
    assert only(passes(TOKENS), layers=LAYERS, hidden=5000).degree is None


def test_buckets_of_gradients_are_not() -> None:
    """25-MiB buckets: nine of one size and a smaller one, the same in every step."""
    scene = Scene().clock()
    for step in range(12):
        for bucket in range(10):
            reduce(scene, step * 10 + bucket, 13_107_200 if bucket < 9 else 4_000_001)
    found = only(scene)
    assert found.degree is None
    assert "every run has the same size" in found.reason


def test_too_few_or_none_or_odd_sizes_are_unknown() -> None:
    assert "only 3 forward passes" in only(passes([4, 5, 6])).reason
    scene = Scene().clock()
    reduce(scene, 0, 10, "ncclAllGather")
    assert only(scene).reason == "no all-reduce that sums was recorded on it"
    odd = only(passes([3, 5, 7, 11, 13, 17, 19, 23], hidden=7))
    assert (odd.degree, "share no factor" in odd.reason) == (None, True)
    scene = Scene().clock()
    reduce(scene, 0, 10, ranks=1)
    assert only(scene).reason == "a communicator of one rank"


def test_lost_records_cut_runs() -> None:
    scene = passes(TOKENS)
    scene.lost["nccl_calls"] = 2
    assert "2 records" in only(scene).reason


def engine(context: Context, flag: str | None) -> None:
    config = {} if flag is None else {"tensor_parallel_size": Setting(flag, "command line", "--tensor-parallel-size")}
    context.engine_runs = [EngineRun(0, "vllm", config=config, gpus=("GPU-0", "GPU-1"))]


@pytest.mark.parametrize(
    ("flag", "result"), [("2", "agreement"), ("4", "conflict"), (None, "unknown"), ("auto", "unknown")]
)  # fmt: skip
def test_the_setting_is_checked_against_the_collectives(flag: str | None, result: str) -> None:
    context = passes(TOKENS).samples(T0, T0 + S, 0, [100]).samples(T0, T0 + S, 1, [101]).context()
    engine(context, flag)
    (verdict,) = read_verdicts(context)
    assert (verdict.result, verdict.fingerprint and verdict.fingerprint.degree) == (result, 2)
    made = section.evaluate(context)
    assert made.state == "evaluated"
    assert [t.id for t in made.tables] == ["phases", "splits", "checks"]
    assert bool(made.statements) == (result == "conflict")


def test_an_engine_whose_processes_have_no_communicator_is_unknown() -> None:
    context = passes(TOKENS).samples(T0, T0 + S, 0, [55]).context()
    engine(context, "2")
    (verdict,) = read_verdicts(context)
    assert verdict.reason == "no communicator of processes on its GPUs was recorded"


def test_without_calls_the_section_is_not_evaluated() -> None:
    made = section.evaluate(Scene().clock().context())
    assert (made.state, made.tables) == ("not evaluated", ())
