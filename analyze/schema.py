"""The shape of every section of a findings document (``docs/reference/findings.md``), with the sizes it may have."""

from __future__ import annotations

import re
from typing import Any, get_args

from gpuaudit.analyze.finding import SCHEMA, UNITS, Grade, Provenance, RuleState, Severity
from gpuaudit.analyze.shape import (
    Shape,
    array,
    boolean,
    decimal,
    either,
    fail,
    integer,
    mapping,
    number,
    one_of,
    optional,
    pattern,
    record,
    row,
    text,
)  # fmt: skip

MAX_ITEMS = 10_000
"""Findings, chains, operations, evidence entries, gaps: a document with more of one is not read by anybody."""

MAX_LEAVES = 1 << 22
"""Leaf numbers in one evidence entry; the format allows no more leaves in a bundle."""

NAME = pattern(r"[A-Za-z0-9_.-]{1,128}", "a name of letters, digits, _ . -")
ID = pattern(r"[A-Z][0-9]{1,7}", "an id such as F1, C1 or E1")
IDS = array(ID, MAX_ITEMS)
DIGEST = pattern(r"([0-9a-f]{64})?", "64 hexadecimal digits, or nothing")
TEXTS = array(text(), MAX_ITEMS)
UNIT = pattern("|".join([*map(re.escape, UNITS), "[A-Z]{3}(/(h|year|Mtoken))?", ""]), "a unit of the schema")
GRADE = one_of(*get_args(Grade))
QUANTITY = record(
    {"value": number, "unit": UNIT, "provenance": one_of(*get_args(Provenance))},
    {"evidence": IDS, "formula": text(), "reason": text()},
)
VALUES = mapping(either(text(4096), QUANTITY), 100)
SUBJECT = mapping(text(4096), 100)

_FINDING: dict[str, Shape] = {
    "id": ID, "severity": one_of(*get_args(Severity)), "text": NAME, "values": VALUES, "subject": SUBJECT,
    "impact": QUANTITY, "grade": GRADE, "evidence": IDS,
}  # fmt: skip
FIX = record(dict.fromkeys(("action", "setting", "current", "new", "side_effects"), text()) | {"values": VALUES})
FINDING = record({**_FINDING, "rule": NAME, "fixes": array(FIX, 32), "score": number})
GROUP = record(
    {
        "id": ID, "kind": NAME, "engine": text(4096), "primary": ID,
        "supporting": array(record({"finding": ID, "reason": text()}), 256),
    }
)  # fmt: skip
LINK = record(
    {
        "effect": text(),
        "cause": text(),
        "effect_ns": QUANTITY,
        "overlap_ns": QUANTITY,
        "explained": QUANTITY,
        "evidence": IDS,
    }
)
SHARE = record({"label": text(), "time": QUANTITY, "share": QUANTITY})
CHAIN = record(
    {
        **_FINDING, "detector": NAME, "links": array(LINK, 100), "confidence": one_of("high", "medium", "low"),
        "against": array(text(), 100), "refuted_by": text(), "next_step": text(), "experiment": text(),
        "gain": optional(record({"low": QUANTITY, "high": QUANTITY})), "shares": array(SHARE, 256), "code": TEXTS,
    }
)  # fmt: skip
OUTCOME = record({"id": NAME, "state": one_of(*get_args(RuleState)), "reason": text()})
EVIDENCE = record(
    {
        "id": ID, "table": pattern("[a-z_]{1,64}", "the name of a view"), "rows": integer(),
        "leaves": array(integer(0, MAX_LEAVES), MAX_LEAVES), "query": text(),
    }
)  # fmt: skip

QUALITY = record(
    {
        "grade": GRADE,
        "reasons": TEXTS,
        "tables": array(
            record(dict.fromkeys(("seen", "written", "lost", "rows", "leaves"), decimal) | {"table": NAME},
            {"evidence": IDS}), 100
        ),
        "gaps": array(
            record({"source": text(256), "start_ns": decimal, "duration_ns": optional(decimal),
            "pid": optional(integer()),
                    "reason": text()}), MAX_ITEMS
        ),
        "sources": array(
            record({"source": text(256), "state": one_of("recorded", "partly recorded", "not "
            "recorded"), "reason": text()}), 1000
        ),
    }
)  # fmt: skip
_STATISTICS = ("count", "open", "errors", "total", "p50", "p99", "max")
OPERATION = record(
    {"table": NAME, "op": text(256), **dict.fromkeys(_STATISTICS, QUANTITY)},
    dict.fromkeys(("nested", "aggregated"), QUANTITY),
)
_WASTE_KEY = one_of(
    "useful", "waiting_for_peers", "host_blocked", "starved", "over_allocated", "idle_allocated", "idle_unallocated",
    "throttled", "memory_bound", "not_classified",
)  # fmt: skip
_AMOUNTS: dict[str, Shape] = {
    **dict.fromkeys(("gpu_time", "low", "high", "share"), QUANTITY),
    **dict.fromkeys(("money", "money_low", "money_high"), optional(QUANTITY)),
}  # fmt: skip
_CURRENCY = pattern("([A-Z]{3})?", "three capital letters, or nothing")
_RATE = optional(pattern(r"[0-9]{1,7}(\.[0-9]{1,30})?", "a decimal number"))
_PROJECTION = ("duty_cycle", "coverage", *(f"{t}{b}" for t in ("month", "year") for b in ("", "_low", "_high")))
WASTE = record(
    {
        "rows": array(
            record({**_AMOUNTS, "key": _WASTE_KEY, "gpu": optional(text(256)), "gpu_index": optional(integer()),
            "pid": optional(integer()),
                    "definition": text()}), MAX_ITEMS
        ),
        "by_key": array(record({**_AMOUNTS, "key": _WASTE_KEY}), 10), "total": record(_AMOUNTS), "prices": TEXTS,
        "projection": optional(record(dict.fromkeys(_PROJECTION, QUANTITY))),
        "observed": QUANTITY, "rate": _RATE, "currency": _CURRENCY, "notes": TEXTS,
    }
)  # fmt: skip

_CLASS = one_of("busy", "idle", "sync", "collective", "preempted", "throttled", "gap", "finding")
TIMELINE = record(
    {
        "start_ns": decimal, "end_ns": decimal,
        "lanes": array(
            record({"label": text(4096), "kind": one_of("gpu", "process", "thread", "rank", "gap"),
            "omitted": integer(),
                    "rule": text(), "intervals": array(row(decimal, decimal, _CLASS), 1000)}), 64
        ),
    },
    {"omitted": integer(), "omitted_lanes": integer(), "rule": text()},
)  # fmt: skip
HEAT = record(
    {
        "comm_id": NAME, "nranks": integer(1), "ranks": array(integer(), 64), "columns": array(row(integer(),
        integer()), 120),
        "lateness_ns": array(array(optional(decimal), 120), 64), "threshold_ns": decimal,
        "late": array(row(integer(), integer()), 64 * 120), "omitted": integer(),
    },
    {"omitted_ranks": integer(), "omitted_communicators": integer()},
)  # fmt: skip
_SERIES = array(optional(decimal), 300)
NVML = record(
    {
        "gpu_index": integer(), "gpu_uuid": text(256), "bin_ns": decimal, "times_ns": array(decimal, 300),
        "series": array(
            record({"name": text(64), "unit": text(16), "minimum": _SERIES, "mean": _SERIES, "maximum": _SERIES}), 32
        ),
    },
    {"omitted": integer()},
)  # fmt: skip
LATENCY = record({"table": NAME, "op": text(256), "bins": array(row(decimal, decimal, decimal), 64)})


def json_value(value: Any, path: str, depth: int = 0) -> None:
    """Data of a chart: objects, lists, texts, integers, booleans and nulls, bounded in depth and size."""
    if depth > 8:
        fail(path, "…", "at most 8 levels")
    if isinstance(value, dict):
        mapping(lambda v, p: json_value(v, p, depth + 1), 256)(value, path)
    elif isinstance(value, list):
        array(lambda v, p: json_value(v, p, depth + 1), MAX_ITEMS)(value, path)
    elif isinstance(value, str):
        text()(value, path)
    elif value is not None and not isinstance(value, bool):
        integer(-(2**53) + 1)(value, path)


CELL = optional(either(text(4096), QUANTITY))
STATEMENT = record({"text": text(4096), "values": VALUES})
SECTION = record(
    {
        "id": NAME, "title": text(256), "question": text(4096), "state": one_of("evaluated", "not evaluated"),
        "reason": text(), "statements": array(STATEMENT, 256),
        "tables": array(
            record({"id": NAME, "title": text(256), "columns": array(row(NAME, text(256)), 32),
                    "rows": array(array(CELL, 32), MAX_ITEMS), "notes": TEXTS, "omitted": integer()}), 64
        ),
        "charts": array(
            record({"kind": one_of("roofline", "strips", "stack", "bands"), "id": NAME, "title": text(256),
                    "data": mapping(json_value, 64)}), 64
        ),
        "definitions": array(record({"term": text(256), "text": text()}), 256), "notes": TEXTS,
    }
)  # fmt: skip

DECLARATION = record(
    {
        "id": NAME, "kind": one_of("rule", "chain", "effect"), "title": text(), "question": text(), "window": text(),
        "inputs": array(record({"table": NAME, "columns": array(NAME, 100)}), 32),
        "thresholds": array(record({"name": NAME, "value": number, "unit": UNIT, "source": text()}), 64),
        "texts": mapping(text(), 64), "never_claims": text(), "assumptions": TEXTS, "controls": TEXTS,
    }
)  # fmt: skip


def loose(value: Any, path: str) -> None:
    """A value of an open-ended section: text, a quantity, a list of texts, or nothing."""
    if value is not None:
        either(either(text(), QUANTITY), array(text(), 1000))(value, path)


_LIST = record(
    {"rows": array(mapping(optional(text()), 64), MAX_ITEMS), "omitted": integer()}, {"evidence": either(ID, IDS)}
)
APPENDIX = record(
    {
        "declarations": array(DECLARATION, 256), "probes": _LIST, "libraries": _LIST,
        "definitions": array(record({"term": text(), "text": text()}), 256),
        "assumptions": array(record({"id": NAME, "text": text(), "value": loose}), 1000),
        "windows": mapping(loose, 64), "clock": mapping(loose, 64),
    }
)  # fmt: skip

DOCUMENT = record(
    {
        "schema": one_of(SCHEMA),
        "tool": record({"name": text(64), "version": text(64), "digest": DIGEST}),
        "options": record(
            {"rate": _RATE, "currency": _CURRENCY},
            {"duty_cycle": number, "policy_sha256": DIGEST, "prices_sha256": DIGEST,
             "catalogue_sha256": array(DIGEST, 100), "trusted_identities": array(DIGEST, 1000)},
        ),
        "bundle": record(
            {"origin": text(1024), "root": text(64), "size": integer(), "status": NAME, "file_sha256": DIGEST,
             "identity_sha256": DIGEST, "synthetic": boolean, "imported": boolean, "notices": TEXTS}
        ),
        "host": record(
            {"hostname": text(1024), "kernel": text(1024), "machine": text(1024), "cpus": integer(),
             "gpus": array(record({"index": integer(), "uuid": text(1024), "name": text(1024),
             "driver": text(1024)}), 256)}
        ),
        "window": record(
            {"start_ns": decimal, "end_ns": decimal, "start_utc_ns": optional(decimal), "end_utc_ns": optional(decimal),
             "utc_uncertainty_ns": optional(decimal)}
        ),
        "quality": QUALITY,
        "operations": array(OPERATION, MAX_ITEMS),
        "outcomes": array(OUTCOME, 256),
        "findings": array(FINDING, MAX_ITEMS),
        "chains": array(CHAIN, MAX_ITEMS),
        "waste": WASTE,
        "cost": record({"rows": array(record({"name": text(), "quantity": QUANTITY, "definition": text()}), 256)}),
        "charts": record(
            {"timeline": TIMELINE, "rank_heat": array(HEAT, 16), "nvml": array(NVML, 16),
            "latency": array(LATENCY, 1000)}
        ),
        "appendix": APPENDIX,
        "groups": array(GROUP, MAX_ITEMS),
        "sections": array(SECTION, 64),
        "evidence": array(EVIDENCE, MAX_ITEMS),
    }
)  # fmt: skip
"""The whole document."""
