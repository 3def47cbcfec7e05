"""Captures that end in a way that is not the usual one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.recording import recording

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]


def test_closing_twice_hides_no_error(doubles: Path) -> None:
    """A capture that fails while its command runs is closed, waits for the command, and is closed once more."""
    with recording() as r:
        assert r.capture.prepare([str(doubles / "libcudart.so.13")]) == []
        r.capture.close()
