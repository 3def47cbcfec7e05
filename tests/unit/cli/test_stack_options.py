"""What ``audit capture`` makes of its options on stacks."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from gpuaudit.capture.options import CaptureOptions
from gpuaudit.capture.source import SELECTABLE_SOURCES
from gpuaudit.cli.capture import command


class Asked(Exception):
    """The capture would begin now, with these options."""

    def __init__(self, options: CaptureOptions) -> None:
        super().__init__()
        self.options = options


def asked(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> CaptureOptions:
    def capture(options: CaptureOptions, **_: object) -> None:
        raise Asked(options)

    monkeypatch.setattr("gpuaudit.capture.session.run_capture", capture)
    error = CliRunner().invoke(command, [*arguments, "--synthetic", "late-rank"]).exception
    assert isinstance(error, Asked)
    return error.options


def test_without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    options = asked(monkeypatch)
    assert options.sources == SELECTABLE_SOURCES
    assert "stacks" in options.sources
    assert (options.stack_threshold_ms, options.stack_sample) == (1.0, 0)


def test_threshold_and_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    options = asked(monkeypatch, "--stack-threshold", "0.25", "--stack-sample", "100")
    assert (options.stack_threshold_ms, options.stack_sample) == (0.25, 100)


def test_no_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(SELECTABLE_SOURCES) - set(asked(monkeypatch, "--no-stacks").sources) == {"stacks"}
    chosen = asked(monkeypatch, "--source", "cuda", "--source", "stacks", "--no-stacks").sources
    assert chosen == ("cuda",)
