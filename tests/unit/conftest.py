"""What tests of several folders share because it is costly to make."""

from __future__ import annotations

import pytest

from tests.kineto_traces import RecordedTraces


@pytest.fixture(scope="session")
def recorded_traces(tmp_path_factory: pytest.TempPathFactory) -> RecordedTraces:
    """The recorded traces of the PyTorch profiler, imported when they are asked for."""
    return RecordedTraces(tmp_path_factory.mktemp("kineto"))
