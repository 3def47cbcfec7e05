"""Two captures side by side, and several as regimes: what changed, what is chance, and what is not compared."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze import diff
from gpuaudit.analyze.comparison import operations
from gpuaudit.analyze.finding import number_from_json
from gpuaudit.analyze.run import AnalyzeOptions, examine
from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import UsageError
from tests.scenes import MS, T0, US, Row, S, Scene
from tests.verifications import SEALED

PID = 3_000


def training(
    *, sync: int = 900 * US, slow: int = 0, calls: int = 400, pid: int = PID, size: int = 1 << 20, copies: int = 1,
    name: str = "python3",
) -> Scene:  # fmt: skip
    """A loop of launch, copy and wait; every fortieth launch is ``slow`` ns longer, preempted by a hog."""
    scene = Scene().clock().process(pid, name)
    scene.add(  # of somebody else: that nobody preempted the program is seen, not a source that was not there
        "off_cpu", start_ns=T0, duration_ns=US, pid=1, tid=1, op="blocked", comm="init", prev_state=1, next_pid=0,
        next_tid=0, next_comm="swapper/0", cpu_out=1, runqueue_ns=0,
    )  # fmt: skip
    at = T0 + S
    for i in range(calls):
        lost = slow if i % 40 == 39 else 0
        scene.cuda(pid, "cudaLaunchKernel", at, 6 * US + i % 7 * 100 + lost, stream=7)
        if lost:
            scene.add(
                "off_cpu", start_ns=at + US, duration_ns=lost, pid=pid, tid=pid, op="preempted", comm=name,
                prev_state=0, next_pid=900 + pid % 7, next_tid=900, next_comm="hog", cpu_out=1, runqueue_ns=lost,
            )  # fmt: skip
        at += 20 * US + lost
        for _ in range(copies):
            scene.cuda(pid, "cudaMemcpyAsync", at, 9 * US + i % 5 * 100, stream=7, size_bytes=size, direction=1)
            at += 20 * US
        scene.cuda(pid, "cudaStreamSynchronize", at, sync + i * 7919 % 90_000, stream=7)
        at += sync + 200 * US
    return scene.samples(T0, at, 0, [pid])


def side(scene: Scene) -> diff.Side:
    document, context = examine(scene.store(), SEALED, AnalyzeOptions())
    return diff.Side(SEALED, context, document)


@pytest.fixture(scope="module")
def base() -> diff.Side:
    return side(training())


@pytest.fixture(scope="module")
def preempted() -> diff.Side:
    return side(training(slow=30 * MS))


def operation(document: dict[str, Any], op: str) -> dict[str, Any]:
    (found,) = (o for o in document["operations"] if o["op"] == op)
    return dict(found)


def value(quantity: dict[str, Any]) -> Fraction:
    return Fraction(number_from_json(quantity["value"]) or 0)


def test_the_same_capture_shows_no_difference(base: diff.Side) -> None:
    document = diff.compare(base, base)
    assert {o["verdict"] for o in document["operations"]} == {"no difference shown"}
    assert {value(o["test"]["delta"]) for o in document["operations"]} == {0}
    assert {value(o["test"]["p"]) for o in document["operations"]} == {1}
    assert {r["change"] for r in document["rules"]} <= {"same", "not comparable"}
    assert document["configuration"]["rows"] == []
    assert {value(w["change"]) for w in document["waste"]["rows"]} == {0}


def test_what_takes_longer_is_slower_and_the_rest_is_not(base: diff.Side) -> None:
    document = diff.compare(base, side(training(sync=1_200 * US, pid=PID + 90)))
    sync = operation(document, "cudaStreamSynchronize")
    assert sync["verdict"] == "slower, longer tail"
    assert sync["test"]["size"] == "large"
    assert value(sync["test"]["delta"]) == 1, "every call after took longer than every one before"
    assert value(sync["test"]["p"]) == Fraction(2, 601_080_390)
    assert operation(document, "cudaMemcpyAsync")["verdict"] == "no difference shown"
    back = operation(diff.compare(side(training(sync=1_200 * US)), base), "cudaStreamSynchronize")
    assert back["verdict"] == "faster, shorter tail"


def test_a_tail_that_grew_is_told_apart_and_its_chain_appeared(base: diff.Side, preempted: diff.Side) -> None:
    document = diff.compare(base, preempted)
    launch = operation(document, "cudaLaunchKernel")
    assert launch["verdict"] == "longer tail"
    assert launch["test"]["size"] == "negligible"
    (chain,) = document["chains"]
    assert (chain["detector"], chain["program"], chain["change"]) == ("preempted", "python3", "appeared")
    assert chain["about"].endswith("by hog"), "ids differ between captures"
    assert value(chain["before"]["time"]) == 0 < value(chain["after"]["time"])
    (rule,) = (r for r in document["rules"] if r["id"] == "preempted")
    assert (rule["before"]["findings"], rule["after"]["findings"]) == (0, 1)


def test_a_chain_of_the_same_culprit_in_another_process_is_the_same(preempted: diff.Side) -> None:
    document = diff.compare(preempted, side(training(slow=30 * MS, pid=PID + 700)))
    (chain,) = document["chains"]
    assert chain["change"] == "same"
    assert chain["before"]["chains"] == chain["after"]["chains"] == 1


def test_a_detector_that_one_side_could_not_run_is_not_comparable(preempted: diff.Side) -> None:
    """Nothing was recorded off the CPU before: the chain after did not appear, it was not looked for."""
    blind = side(training(slow=30 * MS).mapped(lambda table, rows: [] if table == "off_cpu" else rows))
    document = diff.compare(blind, preempted)
    (rule,) = (r for r in document["rules"] if r["id"] == "preempted")
    assert rule["change"] == "not comparable"
    assert rule["reason"].startswith("not evaluated before: ")
    (chain,) = document["chains"]
    assert chain["change"] == "not comparable"
    assert chain["before"]["time"]["value"] is None, "nobody looked: that is not the same as no time"
    assert value(chain["after"]["time"]) > 0


def without(op: str) -> Callable[[str, list[Row]], list[Row]]:
    return lambda _, rows: [r for r in rows if r.get("op") != op]


@pytest.mark.parametrize(
    ("after", "op", "why"),
    [
        (training().mapped(without("cudaMemcpyAsync")), "cudaMemcpyAsync", "only before made such calls"),
        (training(copies=3), "cudaMemcpyAsync", "another mix of work: 400 of 1200 calls of the program before"),
        (training(size=1 << 24), "cudaMemcpyAsync", "calls of another size: 1048576 bytes on average before"),
        (training(calls=2), "cudaLaunchKernel", "calls after lie in 2 blocks of time, at least 4 are needed"),
        (training(name="other"), "cudaLaunchKernel", "only "),
    ],
)
def test_what_is_not_comparable_is_not_compared(base: diff.Side, after: Scene, op: str, why: str) -> None:
    for found in (o for o in operations.compare(base.context, after.context()) if o["op"] == op):
        assert found["verdict"] == "not comparable"
        assert found["reason"].startswith(why)
        assert found["test"] is None
        assert found["tail_test"] is None


def test_evidence_of_grade_d_supports_no_comparison(base: diff.Side) -> None:
    lossy = training()
    lossy.lost["cuda_calls"] = 10_000
    found = operations.compare(base.context, lossy.context())
    assert {o["reason"] for o in found} == {"the evidence after is of grade D"}


def test_a_scene_without_gpu_time_has_no_waste_to_compare(base: diff.Side) -> None:
    bare = training().mapped(lambda table, rows: [] if table.startswith("nvml") else rows)
    waste = diff.compare(base, side(bare))["waste"]
    assert waste["rows"] == []
    assert waste["reason"].startswith("after: ")


def test_settings_that_differ_are_told(base: diff.Side) -> None:
    other = training()
    other.open_body |= {"host": {"hostname": "b", "cpus": 64, "kernel": "6.12"}, "options": {"stacks": True}}
    other.process(4_000, "sibling", command_line="sibling --many")
    found = diff.compare(base, side(other))["configuration"]
    rows = {r["key"]: (r["before"], r["after"]) for r in found["rows"]}
    assert rows["host: hostname"] == ("not recorded", "b")
    assert rows["capture: stacks"] == ("not recorded", "True")
    assert rows["program sibling: command line"] == ("not recorded", "sibling --many")
    assert any("another host" in note for note in found["notes"])


def test_several_captures_are_regimes_beside_the_first(base: diff.Side) -> None:
    others = [side(training(sync=ns)) for ns in (1_000 * US, 1_500 * US)]
    document = diff.regimes(("isolated", "+1", "+3"), [diff.compare(base, o) for o in others])
    assert document["captures"] == ["isolated", "+1", "+3"]
    p50 = [
        value(f["after"])
        for r in document["regimes"]
        for f in operation(r["diff"], "cudaStreamSynchronize")["figures"]
        if f["name"] == "p50"
    ]
    assert p50 == sorted(p50)
    back = canonical.loads_canonical(diff.document_bytes(document))
    assert [r["name"] for r in back["regimes"]] == ["+1", "+3"]
    for r in back["regimes"]:
        for name in ("before", "after"):
            known = {e["id"] for e in r["diff"]["evidence"][name]}
            used = {i for o in r["diff"]["operations"] for f in o["figures"] for i in f[name].get("evidence", [])}
            assert used
            assert used <= known


def test_one_capture_or_names_that_do_not_fit_are_refused() -> None:
    from pathlib import Path

    with pytest.raises(UsageError, match="1 capture to compare"):
        diff.diff([Path("a.db")])
    with pytest.raises(UsageError, match="names"):
        diff.diff([Path("a.db"), Path("b.db")], names=["one"])
    with pytest.raises(UsageError, match="names"):
        diff.diff([Path("a.db"), Path("b.db")], names=["one", "one"])
