"""The incremental JSON reader against :mod:`json`: any document, cut anywhere, gives what the whole gives."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpuaudit.capture.importers.json_stream import Skipped, members

SCALARS = (
    st.none() | st.booleans() | st.integers(-(1 << 80), 1 << 80) | st.text(max_size=12)
    | st.decimals(allow_nan=False, allow_infinity=False, places=3)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=4), v, max_size=4), max_leaves=8
)
EVENTS = st.lists(VALUES, max_size=5)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Exact(json.JSONEncoder):
    """Writes a Decimal as the number it is."""

    def default(self, o: Any) -> Any:
        assert isinstance(o, Decimal)
        return float(o)


def text_of(value: Any, indent: int | None) -> str:
    return json.dumps(value, cls=Exact, indent=indent, ensure_ascii=False)


@FEW
@given(EVENTS, st.dictionaries(st.text(max_size=6), VALUES, max_size=4), st.integers(1, 40),
       st.sampled_from([None, 0, 2]), st.booleans())  # fmt: skip
def test_any_cut_gives_the_same(
    events: list[Any], others: dict[str, Any], size: int, indent: int | None, before: bool
) -> None:
    document = {**others, "traceEvents": events} if before else {"traceEvents": events, **others}
    raw = text_of(document, indent).encode("utf-8", "surrogatepass")
    whole = json.loads(raw.decode("utf-8", "replace"), parse_float=Decimal)
    blocks = [raw[i : i + size] for i in range(0, len(raw), size)]
    got: list[Any] = []
    rest: dict[str, Any] = {}
    for key, value in members("t", blocks, "traceEvents", set(others)):
        if key == "traceEvents" and isinstance(whole[key], list) and not isinstance(value, Skipped):
            got.append(value)
        else:
            rest[key] = value
    if "traceEvents" not in others:
        assert got == whole.pop("traceEvents")
        assert rest == whole


@FEW
@given(EVENTS, st.integers(1, 40))
@example([Decimal("-0.001"), Decimal("1E+30"), "a b", {"0 ": [None]}], 1)
def test_an_array_alone_is_read_as_its_elements(events: list[Any], size: int) -> None:
    raw = text_of(events, None).encode()
    whole = json.loads(raw, parse_float=Decimal)
    blocks = [raw[i : i + size] for i in range(0, len(raw), size)]
    assert [v for _, v in members("t", blocks, "traceEvents", ())] == whole


@FEW
@given(VALUES, EVENTS, st.integers(1, 40))
def test_what_nobody_asked_for_is_passed_over(value: Any, events: list[Any], size: int) -> None:
    raw = text_of({"other": value, "traceEvents": events}, None).encode()
    blocks = [raw[i : i + size] for i in range(0, len(raw), size)]
    (first, *rest) = members("t", blocks, "traceEvents", ())
    assert first == ("other", Skipped())
    assert [v for _, v in rest] == json.loads(raw, parse_float=Decimal)["traceEvents"]
