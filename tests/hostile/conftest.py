"""One sealed bundle and one crashed prefix, made once; every attack works on its own copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundles import MemorySigner, make_bundle


@pytest.fixture(scope="session")
def signer() -> MemorySigner:
    return MemorySigner()


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory, signer: MemorySigner) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "bundle.db"
    make_bundle(path, signer)
    return path


@pytest.fixture
def crashed(tmp_path: Path, signer: MemorySigner) -> Iterator[Path]:
    path = tmp_path / "crashed" / "bundle.db"
    path.parent.mkdir()
    writer = make_bundle(path, signer, seal=False)
    yield path
    writer.close()
