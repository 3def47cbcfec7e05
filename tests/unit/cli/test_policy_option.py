"""``audit analyze --policy``: a file that is refused ends the command before the bundle is read."""

from __future__ import annotations

from pathlib import Path

from tests.commands import audit, check_refused, environment


def test_a_wrong_policy_ends_the_command_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "ours.json").write_text('{"thresholds": {\n"throttling.throttled_share": "200 %"}}')
    done = audit("analyze", "none.db", "--policy", "ours.json", env=environment(tmp_path / "keys"), cwd=tmp_path)
    check_refused(done, 3, "ours.json:2: throttling.throttled_share: got '200 %', expected 0 to 1 share")
    assert not list(tmp_path.glob("*.findings.json"))
