"""Worked examples of before and after, and the whole table of directions."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from gpuaudit.analyze.inference import compare
from tests.inference_cases import Case, cases, exact


def _number(case: Case, key: str, scale: int = 1) -> Fraction | None:
    value = case.inputs.get(key)
    return None if value is None else exact(value) / scale


@pytest.mark.parametrize("case", cases("dlt"), ids=str)
def test_before_and_after(case: Case) -> None:
    if "before" in case.inputs:
        got = compare.change_share(_number(case, "before"), _number(case, "after"))
        assert case.agrees(None if got is None else got * 100, case.expected)
        return
    found = compare.direction(
        _number(case, "eff_pp"), _number(case, "tput_pct", 100), _number(case, "ttft_p99_before"),
        _number(case, "ttft_p99_after"),
    )  # fmt: skip
    assert found.verdict == case.expected["direction"]
    assert found.reason == (case.expected["reason"] or "")


@pytest.mark.parametrize("case", cases("wrs"), ids=str)
def test_the_worse_labels(case: Case) -> None:
    match = re.fullmatch(r"(drop|rise) ([0-9.]+)(%| USD)", case.inputs["change"])
    assert match
    amount = Fraction(match[2]) * (-1 if match[1] == "drop" else 1)
    before = Fraction(100) if match[3] == "%" else Fraction(3)
    assert compare.worse(case.inputs["metric"], before, before + amount) is case.expected
