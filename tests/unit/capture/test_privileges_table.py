"""The table of what needs which capability, and its page."""

from __future__ import annotations

from pathlib import Path

from gpuaudit.capture.capabilities import NAMES, NONE
from gpuaudit.capture.capability_needs import NEEDS, at_start, kept, reference, without

REQUIRED = frozenset(need.capability for need in NEEDS if need.required)


def test_every_row_of_the_table_is_a_capability() -> None:
    assert {need.capability for need in NEEDS} <= set(NAMES)
    assert kept([]) == NONE
    assert kept(["start"]) < at_start()
    assert kept(["bpf"]) >= REQUIRED
    assert not {"CAP_SYS_ADMIN", "CAP_SETPCAP", "CAP_SYS_RESOURCE"} & kept(["bpf", "engines", "output", "other user"])


def test_the_reference_is_this_table() -> None:
    text = (Path(__file__).parents[3] / "docs/reference/privileges.md").read_text("utf-8")
    assert reference() in text


def test_what_is_lacking_is_told_one_by_one() -> None:
    assert without(at_start()) == []
    told = without(at_start() - {"CAP_SYS_RESOURCE", "CAP_KILL"})
    assert [t.split()[1] for t in told] == ["CAP_SYS_RESOURCE", "CAP_KILL"]
    assert all(len(t.split()) > 3 for t in told)
