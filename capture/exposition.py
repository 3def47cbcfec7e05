"""The Prometheus text format, version 0.0.4, read strictly: what a server says of itself is hostile input.

Source of the grammar: prometheus.io/docs/instrumenting/exposition_formats. A text is taken whole or not at all: one
line that breaks the grammar, a series that stands twice, or a missing last line feed (an answer that was cut off) makes
it malformed, because half a scrape would look like counters that fell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gpuaudit.bundle.canonical import dumps
from gpuaudit.bundle.errors import InputUnusable

TYPES = frozenset({"counter", "gauge", "histogram", "summary", "untyped"})

_BLANKS = " \t"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*+")
_LABEL = re.compile(
    r'[ \t]*+([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"([^"\\]*+(?:\\[\\"n][^"\\]*+)*+)"[ \t]*+(,[ \t]*+\}|,|\})'
)
_EMPTY = re.compile(r"[ \t]*+\}")
_TAIL = re.compile(r"[ \t]++([^ \t]++)(?:[ \t]++-?[0-9]{1,19}+)?[ \t]*+\Z")
_NUMBER = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]{1,6}+)?\Z")
_ESCAPE = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n", '"': '"', "\\": "\\"}
_SPECIAL = {
    "nan": math.nan, "inf": math.inf, "+inf": math.inf, "-inf": -math.inf,
    "infinity": math.inf, "+infinity": math.inf, "-infinity": -math.inf,
}  # fmt: skip
"""What Go's ParseFloat, which the format refers to, takes besides decimal numbers, in any case of letters."""


class MalformedExposition(InputUnusable):
    """The text is not one of the format, or past a limit."""


@dataclass(frozen=True)
class Limits:
    """Sizes past which a text is refused. A real vLLM server has 55 KB, 620 lines and a label set of 1.5 KB."""

    bytes: int = 8 << 20
    lines: int = 100_000
    line_chars: int = 64 << 10
    labels: int = 128
    number_chars: int = 64


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class Series:
    """One series: ``metric`` is the sample's name, ``type`` the ``op`` of ``engine_series``.

    ``key`` is equal for equal series, however their labels were ordered or escaped.
    """

    metric: str
    type: str
    labels: Mapping[str, str]
    key: str


class Sample(NamedTuple):
    """One line: a series and the value it had. The same line gives the same object again from one :class:`Parser`."""

    series: Series
    value: float

    @property
    def metric(self) -> str:
        """Name of the sample as exported (``vllm:prompt_tokens_total``)."""
        return self.series.metric

    @property
    def type(self) -> str:
        """gauge, counter, histogram_bucket, histogram_sum, histogram_count, summary or untyped."""
        return self.series.type

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels, ``le`` and ``engine`` among them."""
        return self.series.labels


@dataclass(frozen=True)
class Exposition:
    """One text, read: its samples in order."""

    samples: list[Sample]


def parse(text: bytes | str, limits: Limits = DEFAULT_LIMITS) -> Exposition:
    """Read one text. MalformedExposition where it is not one, with the line."""
    return Parser(limits).parse(text)


class Parser:
    """Reads the texts of one server one after the other; a line that did not change is not parsed again.

    It remembers no more than one text's lines. What it gives for a text does not depend on the ones before.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._lines: dict[str, Sample] = {}
        self._series: dict[str, Series] = {}
        self._type_lines: list[str] = []
        self._types: dict[str, str] = {}

    def parse(self, text: bytes | str) -> Exposition:
        """As :func:`parse`."""
        lines = self._split(text)
        comments = [line for line in lines if line.startswith("#")]
        type_lines = [c for c in comments if "TYPE" in c]
        if type_lines != self._type_lines:  # the type of a sample comes from another line
            self._lines, self._series = {}, {}
            self._types, self._type_lines = _types(type_lines), type_lines
        known, fresh = self._lines, {}
        samples: list[Sample] = []
        for number, line in enumerate(lines, 1):
            sample = known.get(line)
            if sample is None:
                if line.startswith("#") or not line.strip(_BLANKS):
                    continue
                sample = self._sample(line, number)
            fresh[line] = sample
            samples.append(sample)
        _refuse_twice(samples)
        self._lines = fresh
        if len(self._series) > 2 * len(samples) + 1024:
            used = {id(s.series) for s in samples}
            self._series = {text: s for text, s in self._series.items() if id(s) in used}
        return Exposition(samples)

    def _split(self, text: bytes | str) -> list[str]:
        limits = self._limits
        if len(text) > limits.bytes:
            raise MalformedExposition(f"the text has {len(text)} bytes, more than {limits.bytes}")
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError as e:
                raise MalformedExposition(f"byte {e.start} is not UTF-8: {e.reason}") from None
        if not text:
            return []
        lines = text.split("\n")
        if lines.pop():
            raise MalformedExposition("the last line does not end with a line feed: the text was cut off")
        if len(lines) > limits.lines:
            raise MalformedExposition(f"the text has {len(lines)} lines, more than {limits.lines}")
        longest = max(map(len, lines))
        if longest > limits.line_chars:
            raise MalformedExposition(f"a line has {longest} characters, more than {limits.line_chars}")
        return lines

    def _sample(self, line: str, number: int) -> Sample:
        head, _, tail = line.rpartition(" ")
        series = self._series.get(head)
        try:
            if series is not None:
                return Sample(series, self._value(tail))
            return self._slow(line)
        except ValueError as e:
            raise MalformedExposition(f"line {number}: {e}: {line[:80]!r}") from None

    def _slow(self, line: str) -> Sample:
        """Parse a whole line. ValueError where it breaks the grammar."""
        start = len(line) - len(line.lstrip(_BLANKS))
        name = _NAME.match(line, start)
        if name is None:
            raise ValueError("no metric name at its start")
        at = name.end()
        labels: dict[str, str] = {}
        brace = len(line) - len(line[at:].lstrip(_BLANKS))
        if line[brace : brace + 1] == "{":
            labels, at = self._labels(line, brace + 1)
        tail = _TAIL.match(line, at)
        if tail is None:
            raise ValueError("no value, or more than a value and a time")
        value = self._value(tail[1])
        series = _series(name[0], labels, self._types)
        if at < len(line) and line[at] == " ":
            self._series[line[:at]] = series
        return Sample(series, value)

    def _labels(self, line: str, at: int) -> tuple[dict[str, str], int]:
        labels: dict[str, str] = {}
        empty = _EMPTY.match(line, at)
        if empty:
            return labels, empty.end()
        while True:
            found = _LABEL.match(line, at)
            if found is None:
                raise ValueError('labels are not name="value" pairs')
            label, value, end = found.groups()
            if label in labels:
                raise ValueError(f"label {label:.60} stands twice")
            if len(labels) >= self._limits.labels:
                raise ValueError(f"more than {self._limits.labels} labels")
            labels[label] = _ESCAPE.sub(_unescape, value) if "\\" in value else value
            at = found.end()
            if end != ",":
                return labels, at

    def _value(self, text: str) -> float:
        if len(text) > self._limits.number_chars:
            raise ValueError(f"a number of {len(text)} characters")
        if _NUMBER.match(text) is None:
            special = _SPECIAL.get(text.lower())
            if special is None:
                raise ValueError(f"value {text!r:.60} is no number")
            return special
        value = float(text)
        if math.isinf(value):
            raise ValueError(f"value {text!r:.60} is past what 64 bits can hold")
        return value


def _unescape(found: re.Match[str]) -> str:
    return _UNESCAPED[found[1]]


def _types(lines: list[str]) -> dict[str, str]:
    """Family → type, from the comments that may declare one; they hold for the whole text, wherever they stand."""
    types: dict[str, str] = {}
    for line in lines:
        words = line[1:].split()
        if not words or words[0] != "TYPE":
            continue
        if len(words) != 3 or words[2] not in TYPES or not _NAME.fullmatch(words[1]):
            raise MalformedExposition(f"expected # TYPE, a name and a type: {line[:80]!r}")
        if types.setdefault(words[1], words[2]) != words[2]:
            raise MalformedExposition(f"{words[1]:.60} is declared {types[words[1]]} and {words[2]}")
    return types


def _series(metric: str, labels: dict[str, str], types: dict[str, str]) -> Series:
    kind = _kind(metric, types)
    if kind == "histogram_bucket":
        bound(labels)
    key = metric + dumps(dict(labels)).decode("utf-8")
    return Series(metric, kind, labels, key)


def bound(labels: Mapping[str, str]) -> float:
    """Upper edge of a histogram bucket, from its label; ValueError where it has none."""
    le = labels.get("le", "")
    value = _SPECIAL.get(le.lower()) if not _NUMBER.match(le) else float(le)
    if value is None or math.isnan(value):
        raise ValueError(f"a bucket with le={le!r:.40}, expected a number")
    return value


def _kind(metric: str, types: dict[str, str]) -> str:
    own = types.get(metric)
    if own is not None and own != "histogram":
        return own
    base, _, suffix = metric.rpartition("_")
    family = types.get(base)
    if family == "histogram" and suffix in ("bucket", "sum", "count"):
        return f"histogram_{suffix}"
    if family == "summary" and suffix in ("sum", "count"):
        return "summary"
    return "counter" if family == "counter" and suffix == "total" else "untyped"


def _refuse_twice(samples: list[Sample]) -> None:
    if len({s.series.key for s in samples}) == len(samples):
        return
    seen: set[str] = set()
    for s in samples:
        if s.series.key in seen:
            raise MalformedExposition(f"{s.series.key:.120} stands twice")
        seen.add(s.series.key)
