"""What leaf 0 and the artefacts say of the host and of what the recording cost it.

A bundle whose signer is unknown may hold anything here: every value is taken as text of bounded length or as an
integer, and what is neither is "not recorded".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.finding import Json, Quantity
from gpuaudit.analyze.store import Store
from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import BundleInvalid

MAX_TEXT = 1_024
"""Characters of one fact; a kernel or GPU name has less than a hundred."""

MAX_GPUS = 256
MAX_COST_ROWS = 256

_DECIMAL = re.compile(r"-?[0-9]{1,30}\Z")
_UNITS = ("ns", "count", "bytes", "share", "ratio")


def host(open_body: Mapping[str, Any]) -> dict[str, Json]:
    """Section ``host`` of the document."""
    told = open_body.get("host")
    facts: Mapping[str, Any] = told if isinstance(told, dict) else {}
    gpus = open_body.get("gpus")
    return {
        "hostname": _text(facts.get("hostname")), "kernel": _text(facts.get("kernel")),
        "machine": _text(facts.get("machine")), "cpus": _integer(facts.get("cpus")),
        "gpus": [_gpu(g) for g in (gpus if isinstance(gpus, list) else [])[:MAX_GPUS] if isinstance(g, dict)],
    }  # fmt: skip


def cost(store: Store, book: EvidenceBook) -> list[Json]:
    """Rows of section ``cost``: what the recording cost the host, as the recorder measured it."""
    artefact = store.artefact("cost")
    if artefact is None:
        return []
    try:
        told = canonical.loads(artefact.body)
    except BundleInvalid:
        told = None
    rows = told.get("rows") if isinstance(told, dict) else told
    evidence = (book.where("artefacts", "name = 'cost'"),)
    return [
        {
            "name": _text(r.get("name")),
            "quantity": _quantity(r, evidence).to_json(),
            "definition": _text(r.get("definition")),
        }
        for r in (rows if isinstance(rows, list) else [])[:MAX_COST_ROWS]
        if isinstance(r, dict)
    ]


def _quantity(row: Mapping[str, Any], evidence: tuple[str, ...]) -> Quantity:
    unit = row.get("unit") if row.get("unit") in _UNITS else "count"
    value = row.get("value")
    formula = "as the recorder wrote it into the artefact cost"
    if isinstance(value, str) and _DECIMAL.match(value) and unit == row.get("unit"):
        provenance = "measured" if row.get("provenance") == "measured" else "derived"
        return Quantity(int(value), str(unit), provenance, evidence, formula)  # type: ignore[arg-type]
    return Quantity(None, str(unit), "measured", evidence, formula, "the recorder gave no number")


def _gpu(told: Mapping[str, Any]) -> Json:
    return {
        "index": _integer(told.get("index")), "uuid": _text(told.get("uuid")), "name": _text(told.get("name")),
        "driver": _text(told.get("driver")),
    }  # fmt: skip


def _text(value: object) -> str:
    if not isinstance(value, str):
        return "not recorded"
    return value[:MAX_TEXT]


def _integer(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0
