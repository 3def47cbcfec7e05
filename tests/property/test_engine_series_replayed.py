"""Whatever a server exports: written out and read again it is the same, and the rows give back every scrape exactly."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.bundle.canonical import dumps
from gpuaudit.capture.engine_names import BY_NAME, is_recorded
from gpuaudit.capture.engine_series import FULL_INTERVAL_NS, SeriesTracker
from gpuaudit.capture.exposition import MalformedExposition, Parser, parse

LABEL_VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SERIES = st.tuples(
    st.sampled_from(["vllm:a", "vllm:b_total", "vllm:c_created", "process_start_time_seconds", "other"]),
    st.dictionaries(st.sampled_from(["engine", "model_name", "x_1"]), LABEL_VALUES, max_size=3),
)
VALUES = st.floats() | st.integers(0, 5).map(float)
Samples = list[tuple[tuple[str, dict[str, str]], float]]
TEXTS = st.lists(st.tuples(SERIES, VALUES), max_size=8, unique_by=lambda p: (p[0][0], tuple(sorted(p[0][1].items()))))
SCRAPES = st.lists(st.none() | TEXTS, min_size=1, max_size=8)
TYPES = "# TYPE vllm:a gauge\n# TYPE vllm:b_total counter\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN")


def _text(samples: Samples) -> str:
    lines = []
    for (metric, labels), value in samples:
        inner = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels.items())
        lines.append(f"{metric}{{{inner}}} {_number(value)}\n")
    return TYPES + "".join(lines)


@given(TEXTS)
def test_a_text_read_is_what_was_written(samples: Samples) -> None:
    found = parse(_text(samples)).samples
    assert [(s.metric, dict(s.labels), repr(s.value)) for s in found] == [(m, lb, repr(v)) for (m, lb), v in samples]


@given(st.text(max_size=60) | st.binary(max_size=60) | st.text(alphabet='m{}a="\\,1 \n#', max_size=40))
def test_any_bytes_are_read_or_refused(anything: str | bytes) -> None:
    """Nothing but a MalformedExposition comes out; what is read once is read the same again."""
    parser = Parser()
    try:
        first = parser.parse(anything).samples
    except MalformedExposition:
        return
    assert [(s.series.key, repr(s.value)) for s in parser.parse(anything).samples] == [
        (s.series.key, repr(s.value)) for s in first
    ]


@given(SCRAPES, st.integers(1, FULL_INTERVAL_NS))
def test_the_rows_give_back_every_scrape(scrapes: list[Samples | None], step: int) -> None:
    """A reader that knows only the rows: the value of a series is that of its last row, gone where that is null."""
    parser, tracker = Parser(), SeriesTracker(0, kind=BY_NAME["vllm"])
    names: dict[int, tuple[str, str | None, str]] = {}
    current: dict[int, float] = {}
    for turn, samples in enumerate(scrapes):
        if samples is None:
            rows = tracker.failed(turn * step, 1, "timeout", "none")
            assert not rows.samples
            continue
        rows = tracker.scrape(turn * step, 1, parser.parse(_text(samples)).samples)
        names |= {s["series"]: (s["metric"], s["engine_index"], s["labels"]) for s in rows.series}
        for number, value in rows.samples:
            if value is None:
                del current[number]
            else:
                current[number] = value
        expected = {_name(m, lb): repr(v + 0.0) for (m, lb), v in samples if is_recorded(m, tracker.kind)}
        assert {names[n]: repr(v + 0.0) for n, v in current.items()} == expected
        assert (rows.scrape["series"], rows.scrape["skipped"]) == (len(expected), len(samples) - len(expected))
        if rows.scrape["full"]:
            assert {n for n, v in rows.samples if v is not None} == current.keys()
    assert len(names) == len(set(names.values()))


def _name(metric: str, labels: dict[str, str]) -> tuple[str, str | None, str]:
    others = {k: v for k, v in labels.items() if k != "engine"}
    return metric, labels.get("engine"), dumps(dict(others)).decode()
