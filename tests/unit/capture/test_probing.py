"""Rows on their way to the recorder: whatever names others choose, every batch fits a message."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

from gpuaudit.capture.channel import LINE_LIMIT_BYTES, TO_RECORDER, Channel
from gpuaudit.capture.options import CaptureOptions
from gpuaudit.capture.probing import Probing


def test_long_names_of_many_processes_fit_messages() -> None:
    """Names of bytes that are no text take six characters each; 64 such rows were too long for one message once."""
    probing = Probing(CaptureOptions(), [])
    name = "\udcff" * 4096
    rows: list[dict[str, Any]] = [{"pid": n, "command_line": name, "exe": name} for n in range(200)]
    for row in rows:
        probing._take("processes", row)
        probing._take("libraries", {"pid": row["pid"]})
    batches = list(probing.take_rows())
    assert [r for table, batch in batches if table == "processes" for r in batch] == rows
    assert sum(len(batch) for table, batch in batches if table == "libraries") == len(rows)
    assert max(len(json.dumps(batch)) for _, batch in batches) < LINE_LIMIT_BYTES
    ours, theirs = (Channel(s, TO_RECORDER) for s in socket.socketpair())
    for table, batch in batches:
        sender = threading.Thread(target=ours.send, args=("rows",), kwargs={"table": table, "rows": batch})
        sender.start()
        message = theirs.wait_for("rows", 10)
        sender.join()
        assert (message["table"], message["rows"]) == (table, batch)
