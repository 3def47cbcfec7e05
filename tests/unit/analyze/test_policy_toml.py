"""The same thresholds in TOML, in one file with the site's rules for captures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuaudit.analyze.policy import Policy
from gpuaudit.bundle.errors import InputUnusable

BOTH = """
[thresholds]
"idle_allocation.idle_ns" = "20 s"
throttling.throttled_share = "5 %"
late_rank.k = 4

[capture]
stacks = false
"""


def load(folder: Path, text: str, name: str = "policy.toml") -> Policy:
    (folder / name).write_text(text, encoding="utf-8")
    return Policy.load(folder / name)


def test_quoted_dotted_and_bare_are_one(tmp_path: Path) -> None:
    toml = load(tmp_path, BOTH)
    same = {"idle_allocation.idle_ns": "20 s", "throttling.throttled_share": "5 %", "late_rank.k": "4"}
    assert toml.overrides == load(tmp_path, json.dumps({"thresholds": same}), "policy.json").overrides
    assert len(toml.overrides) == 3


def test_a_file_for_captures_alone_sets_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "[capture]\nstacks = false\n").overrides == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected an object"),
        ("[threshold]\n", "no member of that name; expected thresholds or capture"),
        ("[thresholds]\nidle_allocation.nothing = 3\n", "no threshold of that name"),
        ("[thresholds]\nlate_rank.k.more = 3\n", "expected a number"),
        ("[thresholds]\nlate_rank.k = true\n", "expected a number"),
        ("[thresholds]\nlate_rank.k = 1e3\n", "got the unit 'e3'"),
        ("[thresholds]\nlate_rank.k = nan\n", "expected a decimal number"),
        ("[thresholds]\nlate_rank.k = [4]\n", "expected a number"),
        ("[thresholds\n", "is not TOML"),
        ('{"thresholds": {}}', "is not TOML"),
        ("thresholds = 3\n", "expected an object"),
        ("[capture]\nx = " + "[" * 100_000, "policy.toml"),
        ("[thresholds]\nlate_rank.k = " + "9" * 100_000, "policy.toml"),
    ],
)
def test_what_is_not_wholly_understood_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputUnusable) as caught:
        load(tmp_path, text)
    assert says in caught.value.message
    assert caught.value.message.startswith("policy.toml")
    assert len(caught.value.message) < 600


def test_json_has_no_section_for_captures(tmp_path: Path) -> None:
    with pytest.raises(InputUnusable, match="no member of that name"):
        load(tmp_path, '{"thresholds": {}, "capture": {}}', "policy.json")
