"""What the programs are told: the layout of struct config, and budgets that are never nothing by rounding."""

from __future__ import annotations

import struct

from gpuaudit.capture.settings import (
    CONFIG_BYTES,
    CONFIG_NO_ENTRIES,
    CONFIG_NO_RETURNS,
    CONFIG_STACKS,
    Settings,
    silenced,
)


def fields(settings: Settings, *, selected_only: bool = False) -> tuple[int, ...]:
    """selected_only, flags, slow_ns, sample_every, budget: capture/bpf/shared.h."""
    return struct.unpack("<IIQII", settings.pack(selected_only=selected_only))


def test_layout() -> None:
    told = Settings(slow_ns=1 << 40, sample_every=7, budget_per_s=1000, stacks=True)
    assert fields(told, selected_only=True) == (1, CONFIG_STACKS, 1 << 40, 7, 67)
    assert len(told.pack(selected_only=False)) == CONFIG_BYTES


def test_a_budget_is_at_least_a_row_and_none_is_none() -> None:
    assert [fields(Settings(budget_per_s=n))[4] for n in (0, 1, 14, 30, 200_000, 1 << 31)] == [
        0, 1, 1, 2, 13_421, 144_115_188,
    ]  # fmt: skip


def test_silence_changes_nothing_else() -> None:
    told = Settings(slow_ns=5, stacks=True)
    quiet = silenced(silenced(told.pack(selected_only=True), at_return=False), at_return=True)
    selected_only, flags, *rest = struct.unpack("<IIQII", quiet)
    assert (selected_only, flags) == (1, CONFIG_STACKS | CONFIG_NO_ENTRIES | CONFIG_NO_RETURNS)
    assert tuple(rest) == fields(told)[2:]
