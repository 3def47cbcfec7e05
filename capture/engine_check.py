"""The engines of this host, for ``audit check``: each that is found is really asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpuaudit.capture.engine_desk import EngineDesk
from gpuaudit.capture.engine_dial import DialClient
from gpuaudit.capture.engine_names import UNKNOWN, identify, is_recorded
from gpuaudit.capture.exposition import MalformedExposition, parse
from gpuaudit.capture.http_local import Connection, ExchangeFailed

DEADLINE_S = 4.0


@dataclass(frozen=True)
class EngineAnswer:
    """One engine that was found, and what asking it brought."""

    where: str
    ok: bool
    detail: str


def ask_engines() -> Iterator[EngineAnswer]:
    """Every engine that runs now, asked once for its metrics."""
    desk = EngineDesk((), lambda: None)
    client = DialClient(os.dup(desk.dial.theirs.fileno()))
    try:
        desk.scan_when_due()
        for table, row in desk.take_rows():
            if table == "engines":
                yield EngineAnswer(f"process {row['pid']}, {row['op']}", False, str(row["reason"]))
        for engine in desk.take_messages():
            where = f"process {engine['pid']}, {engine['url']}"
            yield _ask(client, engine, where)
    finally:
        client.close()
        desk.close()


def _ask(client: DialClient, engine: Mapping[str, Any], where: str) -> EngineAnswer:
    number, addresses = int(engine["engine"]), int(engine["addresses"])
    connection = Connection(lambda left_s: client.connect(number, addresses, left_s), str(engine["host"]))
    try:
        samples = parse(connection.get(str(engine["path"]), DEADLINE_S).body).samples
    except ExchangeFailed as e:
        return EngineAnswer(where, False, e.reason)
    except MalformedExposition as e:
        return EngineAnswer(where, False, e.message)
    finally:
        connection.close()
    kind = identify(s.metric for s in samples)
    if kind is UNKNOWN:
        return EngineAnswer(where, False, "its metrics are of no known engine")
    recorded = sum(is_recorded(s.metric, kind) for s in samples)
    return EngineAnswer(where, True, f"{kind.name}, {recorded} series")
