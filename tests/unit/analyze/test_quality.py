"""The quality grade: each way of lacking something lowers it, and says which."""

from __future__ import annotations

import pytest

from gpuaudit.analyze.quality import Quality, read_quality
from gpuaudit.analyze.window import read_window
from tests.scenes import MS, T0, S, Scene


def graded(scene: Scene, status: str = "SEALED") -> Quality:
    store = scene.store()
    return read_quality(store, read_window(store), status)


def whole() -> Scene:
    scene = Scene().clock().process(7)
    for at in range(T0, T0 + 5 * S, S):
        scene.cuda(7, "cudaMalloc", at, MS)
    return scene


def test_nothing_missing_is_an_a() -> None:
    quality = graded(whole())
    assert (quality.grade, quality.reasons) == ("A", ())


@pytest.mark.parametrize("status", ["UNSEALED", "UNKNOWN-SIGNER", "SEALED-BY-EPOCH", "WITHHELD"])
def test_a_seal_that_does_not_prove_the_whole_caps_at_c(status: str) -> None:
    quality = graded(whole(), status)
    assert quality.grade == "C"
    assert quality.grade_of(("cuda_calls",)) == "C"
    assert status in quality.reasons[0].text


def test_what_others_recorded_is_a_b_at_best() -> None:
    scene = whole()
    scene.open_body["imported"] = {"files": 1}
    quality = graded(scene)
    assert (quality.grade, quality.grade_of(("cuda_calls",))) == ("B", "B")
    assert [r.text.partition(":")[0] for r in quality.reasons] == ["imported recordings, made by other tools"]


@pytest.mark.parametrize(("lost", "grade"), [(1, "D"), (0, "A")])
def test_losses_by_their_share(lost: int, grade: str) -> None:
    scene = whole()
    scene.lost = {"cuda_calls": lost}
    assert graded(scene).grade == grade


@pytest.mark.parametrize(("lost", "grade"), [(1, "B"), (2, "B"), (3, "C"), (200, "C"), (300, "D")])
def test_losses_past_one_in_a_thousand_and_a_tenth(lost: int, grade: str) -> None:
    scene = Scene().clock().process(7)
    for i in range(2_000):
        scene.cuda(7, "cudaMalloc", T0 + i, 1)
    scene.lost = {"cuda_calls": lost}
    quality = graded(scene)
    assert quality.grade == grade
    assert f"cuda_calls: {lost} of {2_000 + lost} records were lost" in [r.text for r in quality.reasons]


def test_a_finding_inherits_only_what_concerns_it() -> None:
    scene = whole()
    scene.lost = {"cuda_calls": 1}
    quality = graded(scene)
    assert quality.grade_of(("cuda_calls", "nvml_samples")) == "D"
    assert quality.grade_of(("nvml_samples",)) == "A"


def test_the_counters_of_the_rings_count_too() -> None:
    scene = whole()
    for cpu, lost in ((0, 2), (1, 3)):
        for at, n in ((T0, 0), (T0 + S, lost)):
            scene.add("losses", start_ns=at, duration_ns=0, table_name="cuda_calls", cpu=cpu, seen=9, written=9, lost=n)
    assert graded(scene).lost("cuda_calls") == 5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.add("gaps", start_ns=T0, duration_ns=S, source="nvml", reason="it hung"), "it hung"),
        (lambda s: s.add("gaps", start_ns=T0, duration_ns=None, source="nvml", reason="absent"), "1 without an end"),
        (lambda s: s.open_body.update(sources=[{"source": "nvml", "state": "not available", "reason": "no "
        "driver"}]), "no driver"),
        (
            lambda s: s.add(
                "libraries", start_ns=T0, pid=7, op="not observable", library="cudart", path="/a", device=1,
                inode=1, probes=0,
                not_observed="", reason="static",
            ),
            "static",
        ),
        (
            lambda s: s.add(
                "probes", start_ns=T0, duration_ns=S, op="cudaMalloc", library="cudart", path="/a",
                mechanism="perf uprobe",
                hits=9, unmatched=2, misses=1,
            ),
            "2 unmatched entries or returns and 1 misses of 9 hits",
        ),
        (
            lambda s: s.process(8, start_ns=T0 + S).add(
                "libraries", start_ns=T0 + 2 * S, duration_ns=MS, pid=8, op="attached", library="cudart",
                path="/a", device=1,
                inode=1, probes=7, not_observed="",
            ),
            "cudart was probed 1.00 s after the process started",
        ),
        (lambda s: s.add("clock", start_ns=T0 + 61 * S, duration_ns=9, realtime_ns=10**18 + T0 + 71 * S,
        monotonic_ns=T0 + 61 * S),
         "stepped by 10.0 s"),
        (lambda s: s.add("clock", start_ns=T0 + 61 * S, duration_ns=9, realtime_ns=10**18 + T0 + 61 * S,
        monotonic_ns=T0 + 40 * S),
         "suspended for 21.0 s"),
        (lambda s: s.rows.pop("clock"), "no clock pair"),
    ],
)  # fmt: skip
def test_each_lack_is_named_and_costs_the_a(change: object, word: str) -> None:
    scene = whole()
    change(scene)  # type: ignore[operator]
    quality = graded(scene)
    assert quality.grade == "B"
    assert any(word in r.text for r in quality.reasons), quality.reasons


def test_a_clock_that_is_slewed_has_not_stepped() -> None:
    scene = whole()
    for i, row in enumerate(scene.rows["clock"]):
        row["realtime_ns"] += i * 5 * S * 400 // 1_000_000
    assert graded(scene).grade == "A"


def test_nothing_recorded_cannot_support_a_conclusion() -> None:
    assert graded(Scene().clock()).grade == "D"


def test_many_reasons_of_one_kind_are_counted() -> None:
    scene = whole()
    for pid in range(20, 40):
        scene.add("libraries", start_ns=T0, pid=pid, op="not observable", library="cudart", path="/a",
        device=1, inode=1,
                  probes=0, not_observed="", reason="static")  # fmt: skip
    texts = [r.text for r in graded(scene).reasons]
    assert len(texts) == 6
    assert "and 15 more libraries not observable" in texts


def test_a_gap_without_an_end_is_not_told_as_no_time() -> None:
    scene = Scene().clock().add("gaps", start_ns=T0, source="nvml", reason="no driver")
    (reason,) = [r for r in scene.document().quality["reasons"] if "could not see" in r]
    assert reason == "source nvml could not see (1 gaps, 1 without an end): no driver"
