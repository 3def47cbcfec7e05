"""The reference of rules holds what every rule declares, and ``--check`` says when the file does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpuaudit.analyze import reference
from gpuaudit.analyze.registry import declarations


def test_every_rule_with_each_threshold_and_what_it_never_claims() -> None:
    text = reference.markdown()
    parts = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert list(parts) == [d.id for d in declarations()]
    for d in declarations():
        part = parts[d.id]
        assert d.never_claims in part
        assert d.question in part
        for t in d.thresholds:
            assert f"| `{t.name}` |" in part
            assert t.source.replace("|", "\\|") in part


def test_check_compares_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "rules.md"
    monkeypatch.setattr(reference, "TARGET", target)
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 1
    assert not target.exists()
    monkeypatch.setattr(sys, "argv", ["reference"])
    assert reference.main() == 0
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 0
    target.write_text(target.read_text(encoding="utf-8").replace("never", "ever"), encoding="utf-8")
    assert reference.main() == 1
    assert "out of step" in capsys.readouterr().err
