"""How the processes of a capture are started: the same Python, the same package, nothing from the working directory."""

from __future__ import annotations

import os
import signal
import site
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gpuaudit

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a capture cleanly. The attacher decides what follows, so they must not kill its children first."""


def child_command(module: str, *arguments: str) -> list[str]:
    """Command line that runs ``module``; ``-P``: root must not import a ``numpy.py`` of the working directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """Our environment, with the package's folder on PYTHONPATH where it is not installed, and no BLAS threads."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    root = str(Path(gpuaudit.__file__).parent.parent)
    if root not in {*site.getsitepackages(), site.getusersitepackages()}:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return environment


@contextmanager
def end_signals_blocked() -> Iterator[None]:
    """A child that is started here waits with :data:`END_SIGNALS` until it has decided what they mean to it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
