"""A trace of the PyTorch profiler of any size: a real one, put end to end as often as asked, written as a stream."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).resolve().parent.parent / "tests" / "data" / "kineto" / "a100-world8-rank3.json.gz"
"""109,123 events of one of eight ranks on A100s, 0.48 s."""

STEP_US = 500_000
"""From one copy to the next, in µs: longer than the recorded trace, so that copies do not overlap."""

NUMBERS = 10_000_000
"""Added to the numbers that tie events together, from one copy to the next: more than the recorded trace has."""


def write_trace(path: Path, copies: int) -> int:
    """Write the trace; returns the number of events."""
    with gzip.open(RECORDED) as f:
        recorded = json.load(f)
    events = recorded.pop("traceEvents")
    with path.open("w", encoding="utf-8") as f:
        f.write(json.dumps(recorded)[:-1] + ', "traceEvents": [\n')
        for copy in range(copies):
            f.writelines(
                (",\n" if copy or i else "") + json.dumps(event) for i, event in enumerate(_shifted(events, copy))
            )
        f.write("\n]}\n")
    return copies * len(events)


def _shifted(events: list[dict[str, Any]], copy: int) -> Iterator[dict[str, Any]]:
    """The events of one copy: later, and tied to each other alone."""
    for event in events:
        moved = {**event, "ts": event["ts"] + copy * STEP_US} if "ts" in event else dict(event)
        if "id" in event:
            moved["id"] = event["id"] + copy * NUMBERS
        args = event.get("args")
        if isinstance(args, dict) and ("correlation" in args or "External id" in args):
            moved["args"] = {
                k: v + copy * NUMBERS if k in {"correlation", "External id"} else v for k, v in args.items()
            }
        yield moved
