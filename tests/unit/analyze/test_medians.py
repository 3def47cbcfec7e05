"""The median: one of the values, the lower of the two in the middle, and never made up."""

from __future__ import annotations

import numpy as np
import pytest

from gpuaudit.analyze.medians import median


@pytest.mark.parametrize(
    ("values", "middle"),
    [([7], 7), ([9, 1], 1), ([5, 1, 9], 5), ([4, 1, 3, 2], 2), ([2**63 - 1, 0, 2**62], 2**62)],
)
def test_it_is_the_value_at_rank_half_of_n(values: list[int], middle: int) -> None:
    told = median(np.array(values, dtype=np.int64), "ns", ("E1",), "how")
    assert (told.value, told.unit, told.provenance, told.evidence, told.formula) == (
        middle, "ns", "derived", ("E1",), "how"
    )  # fmt: skip


def test_of_nothing_there_is_none_and_it_is_said() -> None:
    told = median(np.array([], dtype=np.int64), "MHz", (), "how", "NVML told no SM clock")
    assert (told.value, told.reason) == (None, "NVML told no SM clock")
