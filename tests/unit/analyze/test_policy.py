"""A policy file: what it sets, that it is said, and that anything not wholly understood is refused with its place."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import pytest

from gpuaudit.analyze.context import Context, Found
from gpuaudit.analyze.finding import Declaration, Threshold
from gpuaudit.analyze.load import parse_document
from gpuaudit.analyze.policy import MAX_FILE_BYTES, Policy
from gpuaudit.analyze.registry import plugins
from gpuaudit.analyze.run import AnalyzeOptions, analyze_store, document_bytes
from gpuaudit.bundle.errors import InputUnusable
from tests.scenes import MS, T0, S, Scene, collectives, outcome
from tests.verifications import SEALED

RULES = {p.declaration.id: p.evaluate for p in plugins()}


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "ours.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def load(folder: Path, **thresholds: object) -> Policy:
    named = {k.replace("__", "."): v for k, v in thresholds.items()}
    return Policy.load(write(folder, json.dumps({"thresholds": named})))


def refused(folder: Path, text: str | bytes) -> str:
    with pytest.raises(InputUnusable) as caught:
        Policy.load(write(folder, text))
    assert "\n" not in str(caught.value)
    assert "ours.json" in str(caught.value)
    return str(caught.value)


def idle_for(seconds: int) -> Scene:
    scene = Scene().clock().process(7)
    scene.samples(T0, T0 + 10 * S, pids=[7])
    scene.samples(T0 + 10 * S, T0 + (10 + seconds) * S, pids=[7], gpu_utilization_percent=0)
    return scene.samples(T0 + (10 + seconds) * S, T0 + 60 * S, pids=[7])


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("7 s", 7 * S), ("7s", 7 * S), ("7000 ms", 7 * S), ("7.5 s", 7_500 * MS), ("0.1 min", 6 * S), ("5 ns", 5),
        ("12 µs", 12_000), ("7/2 s", 3_500 * MS), ("0 ns", 0),
    ],
)  # fmt: skip
def test_a_time_is_read_exactly_in_any_of_its_units(tmp_path: Path, written: str, value: int) -> None:
    policy = load(tmp_path, idle_allocation__idle_ns=written)
    assert policy.overrides == {("idle_allocation", "idle_ns"): value}


@pytest.mark.parametrize(
    ("written", "value"),
    [("5 %", Fraction(1, 20)), (0.3, Fraction(3, 10)), ("1/3", Fraction(1, 3)), (1, 1), (0, 0), ("0.25 share", 0.25)],
)
def test_a_share_is_read_exactly(tmp_path: Path, written: object, value: Fraction) -> None:
    policy = load(tmp_path, throttling__throttled_share=written)
    assert policy.overrides == {("throttling", "throttled_share"): value}


def test_the_file_decides_at_the_threshold_itself(tmp_path: Path) -> None:
    """6 s of idleness: found at 6 s, not at 6 s and a nanosecond; the finding names the threshold that was used."""
    for limit, count in (("6 s", 1), ("6000000001 ns", 0)):
        policy = load(tmp_path, idle_allocation__idle_ns=limit)
        document = analyze_store(idle_for(6).store(), SEALED, AnalyzeOptions(policy=policy))
        found = [f for f in document.findings if f.rule == "idle_allocation"]
        assert len(found) == count
        if found:
            assert found[0].values["threshold"].value == 6 * S  # type: ignore[union-attr]


def test_the_document_names_the_file_and_what_it_set(tmp_path: Path) -> None:
    path = write(tmp_path, '{"thresholds": {"idle_allocation.idle_ns": "1 s"}}')
    document = analyze_store(idle_for(6).store(), SEALED, AnalyzeOptions(policy=Policy.load(path)))
    assert document.options["policy_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    read = parse_document(document_bytes(document))
    told = {d["id"]: {t["name"]: t for t in d["thresholds"]} for d in read.appendix["declarations"]}
    changed = told["idle_allocation"]["idle_ns"]
    assert changed["value"] == str(S)
    assert changed["source"].startswith("policy file; the default is 5000000000 ns, chosen: five times")
    others = [t for rule in told.values() for t in rule.values() if t["source"].startswith("policy file")]
    assert others == [changed]


def test_without_a_file_nothing_is_said(tmp_path: Path) -> None:
    document = idle_for(6).document()
    assert document.options["policy_sha256"] == ""
    assert "policy file" not in json.dumps(document.appendix["declarations"])
    assert Policy.default().value(Threshold("x", 3, "ns", "y"), "idle_allocation") == 3


def test_severity_and_coverage_are_thresholds_of_their_rule(tmp_path: Path) -> None:
    scene = idle_for(6)  # 6 of 60 s: a warning by default
    graver = load(tmp_path, idle_allocation__critical_share="10 %")
    other = load(tmp_path, throttling__critical_share="10 %")
    found = {
        name: next(f for f in document.findings if f.rule == "idle_allocation").severity
        for name, document in (
            ("default", scene.document()),
            ("graver", analyze_store(scene.store(), SEALED, AnalyzeOptions(policy=graver))),
            ("other", analyze_store(scene.store(), SEALED, AnalyzeOptions(policy=other))),
        )
    }
    assert found == {"default": "warning", "graver": "critical", "other": "warning"}
    unjudged = load(tmp_path, throttling__judged_share=1)
    half = Scene().clock().samples(T0, T0 + 30 * S)
    assert outcome(half.document(), "throttling").state == "clear"
    document = analyze_store(half.store(), SEALED, AnalyzeOptions(policy=unjudged))
    assert outcome(document, "throttling").state == "not evaluated"


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("late_rank.lateness_floor_ns", "31 ms", 0), ("late_rank.lateness_floor_ns", "29 ms", 1),
        ("late_rank.min_cohort", "5", None), ("late_rank.quorum", "100 %", 1), ("late_rank.k", "100000", 0),
        ("late_rank.min_compared", "100", 1), ("late_rank.seen_share", "1", None),
    ],
)  # fmt: skip
def test_the_late_rank_detector_reads_its_thresholds_from_the_policy(
    tmp_path: Path, key: str, value: str, found: int | None
) -> None:
    scene = collectives("blocking", late={2: 30 * MS}, late_steps=range(0, 50, 2))
    policy = Policy.load(write(tmp_path, json.dumps({"thresholds": {key: value}})))
    c = scene.context()
    result = RULES["late_rank"](Context(c.store, c.window, c.quality, c.book, policy))
    if found is None:
        assert not isinstance(result, Found)
    else:
        assert isinstance(result, Found)
        assert len(result.items) == found


def test_what_is_unknown_is_refused_with_what_is_known(tmp_path: Path) -> None:
    said = refused(tmp_path, '{"thresholds": {\n"idle_allocation.idel_ns": "1 s"}}')
    assert "ours.json:2: idle_allocation.idel_ns: idle_allocation has no threshold of that name; it has" in said
    assert "critical_share, idle_ns, judged_share, warning_share" in said
    said = refused(tmp_path, '{"thresholds": {"idle.idle_ns": "1 s"}}')
    assert "no rule or detector 'idle'" in said
    assert "idle_allocation" in said
    assert "no rule or detector 'quality'" in refused(tmp_path, '{"thresholds": {"quality.lost_share_c": "1"}}')
    assert "part of a definition" in refused(tmp_path, '{"thresholds": {"late_rank.mad_scale": "2"}}')


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('"5"', "got the unit 'nothing', expected one of ns, us, µs, ms, s, min"),
        ('"5 %"', "got the unit '%'"), ('"5 MB"', "got the unit 'MB'"), ('"5 h"', "got the unit 'h'"),
        ('"1.5 ns"', "expected a whole number of ns"), ('"1/3 s"', "expected a whole number of ns"),
        ('"-1 s"', "expected 0 to"), ('"9999999999 s"', "expected 0 to"), ('"1/0 s"', "denominator is 0"),
        ("NaN", "got 'NaN', expected a decimal number"), ("Infinity", "expected a decimal number"),
        ("-Infinity", "expected a decimal number"), ('"nan s"', "expected a decimal number"),
        ("1e3", "got the unit 'e3'"), ("1e999999999", "got the unit 'e999999999'"),
        ('"١ s"', "expected a decimal number"), ('"1 s\\n"', "expected"), ('"1  s"', "expected a decimal number"),
        ('""', "expected a decimal number"), ("null", "got None, expected a number, or text"),
        ("true", "got True, expected a number, or text"), ("[1]", "expected a number, or text"),
        ('{"value": 1}', "expected a number, or text"), ("9" * 5000, "expected a decimal number"),
    ],
)  # fmt: skip
def test_a_wrong_time_is_refused_with_its_place(tmp_path: Path, value: str, says: str) -> None:
    said = refused(tmp_path, f'{{\n"thresholds": {{\n"idle_allocation.idle_ns": {value}}}}}')
    assert "ours.json:3: idle_allocation.idle_ns: " in said
    assert says in said
    assert len(said) < 400


@pytest.mark.parametrize("value", ["1.01", "101 %", "-0.1", "2/1"])
def test_a_share_lies_between_0_and_1(tmp_path: Path, value: str) -> None:
    said = refused(tmp_path, json.dumps({"thresholds": {"throttling.throttled_share": value}}))
    assert "expected 0 to 1 share" in said


def test_two_ranks_are_never_a_cohort(tmp_path: Path) -> None:
    assert "expected 3 to" in refused(tmp_path, '{"thresholds": {"late_rank.min_cohort": 2}}')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"), ("{", "ours.json:1: is not JSON"), ("\n\n{,}", "ours.json:3: is not JSON"),
        ("[]", "something else than an object"), ("{}", 'an object as the member "thresholds"'),
        ('{"thresholds": []}', "an object as the member"), ('{"thresholds": {}, "rules": {}}', "rules: no member"),
        ('{"thresholds": {"idle_allocation.idle_ns": "1 s", "idle_allocation.idle_ns": "2 s"}}', "stands twice"),
        ('{"thresholds": {}, "thresholds": {}}', "stands twice"), ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe{}", "is not UTF-8"), (b" " * (MAX_FILE_BYTES + 1), "is larger than"),
        ('{"thresholds": {"\\u001b[31m\\n": "1"}}', "no rule or detector '?[31m?'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, text: str | bytes, says: str) -> None:
    assert says in refused(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputUnusable, match=r"cannot be read: No such file"):
        Policy.load(tmp_path / "none.json")
    with pytest.raises(InputUnusable, match=r"cannot be read"):
        Policy.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b'\xef\xbb\xbf{"thresholds": {}}', b'{"thresholds": {"\\ud800.x": 1}}',
        b'{"thresholds": {"xid.min_events": true}}',
        b'{"thresholds": {"xid.min_events": "1\\u0000"}}', '{"thresholds": {"xid.min_events": "\u0661"}}'.encode(),
        b'{"thresholds": {"xid.min_events": ' + b"9" * 5_000 + b"}}", b'{"a":' * 100_000,
        b'{"thresholds": {"pcie_link.busy_percent": "101"}}', b'{"thresholds": {"nvlink.crc_growth": "201/2"}}',
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, text: bytes) -> None:
    """A byte order mark, a lone surrogate, digits of another script, numbers without end, and 101 percent."""
    assert refused(tmp_path, text).isprintable()


def test_a_threshold_that_may_be_negative_may_stay_so() -> None:
    d = Declaration("r", "rule", "t", "q?", (), (Threshold("floor", -3, "points", "source"),), {}, "n")
    assert Policy.parse(b'{"thresholds": {"r.floor": "-5 points"}}', "p", [d]).overrides == {("r", "floor"): -5}


def test_an_empty_policy_still_has_its_digest(tmp_path: Path) -> None:
    policy = Policy.load(write(tmp_path, '{"thresholds": {}}'))
    assert not policy.overrides
    assert len(policy.sha256) == 64
