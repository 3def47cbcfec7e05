"""The Prometheus text format: what is read, and what is refused with its line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gpuaudit.capture.exposition import Limits, MalformedExposition, Parser, parse
from tests.engine_server import recorded

DATA = Path(__file__).parents[2] / "data" / "vllm"


def test_types_follow_their_families() -> None:
    text = """# HELP h A histogram, with "quotes" and a \\\\ in its help.
# TYPE h histogram
h_bucket{le="0.5"} 1
h_bucket{le="+Inf"} 2
h_sum 3.5
h_count 2
# TYPE iteration_total histogram
iteration_total_bucket{le="1.0"} 4
# TYPE s summary
s{quantile="0.5"} 1
s_sum 2
s_count 3
# TYPE c_total counter
c_total 7
# TYPE old counter
old_total 8
# TYPE g gauge
g 9
g_sum 10
lonely 11
"""
    assert [(s.metric, s.type) for s in parse(text).samples] == [
        ("h_bucket", "histogram_bucket"), ("h_bucket", "histogram_bucket"), ("h_sum", "histogram_sum"),
        ("h_count", "histogram_count"), ("iteration_total_bucket", "histogram_bucket"), ("s", "summary"),
        ("s_sum", "summary"), ("s_count", "summary"), ("c_total", "counter"), ("old_total", "counter"),
        ("g", "gauge"), ("g_sum", "untyped"), ("lonely", "untyped"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "labels", "value"),
    [
        ("m 1", {}, 1.0), ("m{} 1", {}, 1.0), ("m{ } 1", {}, 1.0), ("\tm \t 1 \t", {}, 1.0),
        ('m{a="b"} 1.5e3', {"a": "b"}, 1500.0), ('m { a = "b" , c="d", } -1', {"a": "b", "c": "d"}, -1.0),
        (r'm{a="x\"y\\z\n"} .5', {"a": 'x"y\\z\n'}, 0.5), ('m{a="} 1"} 2', {"a": "} 1"}, 2.0),
        ("m 1 1795306119000", {}, 1.0), ("m 1 -5", {}, 1.0), ("m +Inf", {}, math.inf), ("m -inf", {}, -math.inf),
        ('m{a="ü日"} 1', {"a": "ü日"}, 1.0), ("m 5.", {}, 5.0), ("m 1e-400", {}, 0.0),
    ],
)  # fmt: skip
def test_a_line(line: str, labels: dict[str, str], value: float) -> None:
    (sample,) = parse(line + "\n").samples
    assert (sample.metric, dict(sample.labels), sample.value) == ("m", labels, value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("m\n", "no value"), ("m one\n", "no number"), ("m 1_0\n", "no number"), ("m 0x10\n", "no number"),
        ("m 1 2 3\n", "more than a value"), ("m 1 2.5\n", "more than a value"), ("1m 1\n", "no metric name"),
        ('{a="b"} 1\n', "no metric name"), ('m{a="b" 1\n', "pairs"), ('m{a=b} 1\n', "pairs"),
        ('m{a="b"c="d"} 1\n', "pairs"), (r'm{a="\x"} 1' + "\n", "pairs"), ('m{a="1",a="2"} 1\n', "stands twice"),
        ('m{,} 1\n', "pairs"), ("m 1", "cut off"), ("m 1\nm 2\n", "stands twice"), ("m 1e999\n", "64 bits"),
        ('m{a="1",b="2"} 1\nm{b="2",a="1"} 2\n', "stands twice"), ("# TYPE m gouge\n", "expected # TYPE"),
        ("# TYPE m\n", "expected # TYPE"), ("# TYPE m gauge\n# TYPE m counter\n", "declared gauge and counter"),
        ("# TYPE m histogram\nm_bucket 1\n", "le="), ('# TYPE m histogram\nm_bucket{le="x"} 1\n', "le="),
        ('# TYPE m histogram\nm_bucket{le="NaN"} 1\n', "le="), ("m 1\r\n", "no number"), ("m " + "1" * 65 + "\n", "65"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(MalformedExposition, match=why):
        parse(text)


def test_the_line_is_named() -> None:
    with pytest.raises(MalformedExposition, match="line 3: "):
        parse("# a comment\nm 1\nm{ 2\n")


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("m 1\n" * 2, Limits(bytes=7)), ("# a\n" * 4, Limits(lines=3)), ("# " + "a" * 50 + "\n", Limits(line_chars=50)),
        ('m{a="1",b="2",c="3"} 1\n', Limits(labels=2)),
    ],
)  # fmt: skip
def test_limits(text: str, limits: Limits) -> None:
    parse(text if "m 1" not in text else "m 1\n")
    with pytest.raises(MalformedExposition, match="more than"):
        parse(text, limits)


def test_bytes_that_are_not_utf8() -> None:
    with pytest.raises(MalformedExposition, match="byte 2 is not UTF-8"):
        parse(b"m \xff\n")


def test_nothing_is_a_text() -> None:
    assert parse(b"").samples == []
    assert parse("\n\n# only words\n").samples == []


def test_a_type_that_changes_is_seen() -> None:
    parser = Parser()
    assert parser.parse("# TYPE m gauge\nm 1\n").samples[0].type == "gauge"
    assert parser.parse("# TYPE m counter\nm 1\n").samples[0].type == "counter"
    assert parser.parse("m 1\n").samples[0].type == "untyped"


def test_one_parser_reads_a_recorded_series_as_many_do() -> None:
    """Every fifth poll of a real server, through the cache and without it; unchanged lines are the same objects."""
    parser = Parser()
    before: set[int] = set()
    shared = 0
    for text in recorded(DATA / "light.jsonl.gz")[::20]:
        cached, fresh = parser.parse(text).samples, parse(text).samples
        assert [(s.series.key, s.type, dict(s.labels), s.value) for s in cached] == [
            (s.series.key, s.type, dict(s.labels), s.value) for s in fresh
        ]
        shared += len(before & {id(s) for s in cached})
        before = {id(s) for s in cached}
    assert shared > 1000
