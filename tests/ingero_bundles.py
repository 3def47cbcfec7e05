"""The four Ingero databases of ``tests/data/ingero`` and databases made by tests, imported and analysed once each."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from backports import zstd

from gpuaudit.analyze.finding import Document
from gpuaudit.analyze.run import analyze
from gpuaudit.analyze.store import Store
from gpuaudit.bundle.reader import Bundle
from gpuaudit.capture.importers.run import ImportOptions, ImportResult, run_import

DATA = Path(__file__).parent / "data" / "ingero"
STARVATION = "pytorch-dataloader-starvation.db"
EMPTY_CACHE = "pytorch-173382-empty-cache.db"
NODE_1, NODE_2 = "sample-gpu-node-01.db", "sample-gpu-node-02.db"
NAMES = (STARVATION, EMPTY_CACHE, NODE_1, NODE_2)


@cache
def folder() -> Path:
    """Where databases and bundles lie until the tests end."""
    made = Path(tempfile.mkdtemp(prefix="ingero-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@cache
def original(name: str) -> Path:
    """One of the four databases as it was published."""
    path = folder() / name
    path.write_bytes(zstd.decompress((DATA / f"{name}.zst").read_bytes()))
    return path


@contextmanager
def _keys() -> Iterator[None]:
    before = os.environ.get("GPU_AUDIT_KEYS")
    os.environ["GPU_AUDIT_KEYS"] = str(folder() / "keys")
    try:
        yield
    finally:
        if before is None:
            del os.environ["GPU_AUDIT_KEYS"]
        else:
            os.environ["GPU_AUDIT_KEYS"] = before


@cache
def imported(path: Path) -> ImportResult:
    """A database sealed into a bundle."""
    with _keys():
        return run_import(ImportOptions((path,), folder() / f"{path.stem}.bundle.db"))


@cache
def store(path: Path) -> Store:
    """The rows of its bundle."""
    with Bundle.open(imported(path).path) as bundle:
        return Store.from_bundle(bundle)


@cache
def document(path: Path) -> Document:
    """What the analysis says of its bundle."""
    with _keys():
        return analyze(imported(path).path)
