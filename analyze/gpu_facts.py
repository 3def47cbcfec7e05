"""What the recorder noted of each GPU once: the artefact ``gpus`` (``capture/nvml_facts.py``), read as hostile input.

A fact is a value, "not supported", or an error with NVML's code; what is not of that shape is as if it were not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuaudit.analyze.nvml_values import RETURN_CODES
from gpuaudit.analyze.store import Store
from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import BundleInvalid

ARTEFACT = "gpus"

MAX_TEXT = 128
"""Characters of a fact that are kept; names and serial numbers are shorter."""


@dataclass(frozen=True)
class Fact:
    """``value`` is a text or an integer, or None with the ``reason``."""

    value: str | int | None
    reason: str = ""


NOT_NOTED = Fact(None, "not noted by this recorder")


def read_facts(store: Store) -> dict[str, dict[str, Fact]]:
    """Facts by GPU UUID and name; empty for a recording that has none."""
    artefact = store.artefact(ARTEFACT)
    try:
        body: Any = canonical.loads(artefact.body) if artefact else None
    except BundleInvalid:
        body = None
    gpus = body.get("gpus") if isinstance(body, dict) else None
    out: dict[str, dict[str, Fact]] = {}
    for gpu in gpus if isinstance(gpus, list) else []:
        if isinstance(gpu, dict) and isinstance(gpu.get("uuid"), str) and isinstance(gpu.get("facts"), dict):
            out[gpu["uuid"]] = {str(name): _fact(told) for name, told in gpu["facts"].items()}
    return out


def _fact(told: Any) -> Fact:
    if not isinstance(told, dict):
        return NOT_NOTED
    value, code = told.get("value"), told.get("error")
    if isinstance(value, str):
        return Fact(value[:MAX_TEXT])
    if isinstance(value, int) and not isinstance(value, bool):
        return Fact(value)
    if told.get("not_supported") is True:
        return Fact(None, RETURN_CODES[3])
    if isinstance(code, int):
        return Fact(None, f"{RETURN_CODES.get(code, 'refused')} (NVML code {code})")
    return NOT_NOTED
