"""A bundle written to nowhere, before the recorder gives up its privileges.

Python imports some modules only when they are first needed (text encodings, parts of numpy). After the drop the files
of an installation under a closed home directory cannot be read any more. Writing, sealing and removing a tiny bundle
with a throw-away key loads all of them, and shows a broken installation before anything is recorded.
"""

from __future__ import annotations

import tempfile
import traceback
import uuid
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuaudit.bundle.keys import FileSigner
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.writer import BundleWriter
from gpuaudit.capture.channel import Channel
from gpuaudit.capture.clock_source import read_pair
from gpuaudit.capture.output import REHEARSAL_PREFIX
from gpuaudit.capture.recorder import Recorder
from gpuaudit.capture.ring import to_rows


def rehearse(directory: Path, channel: Channel) -> None:
    """Do once, under ``directory``, everything a capture does."""
    with tempfile.TemporaryDirectory(prefix=REHEARSAL_PREFIX, dir=directory) as folder:
        writer = BundleWriter.create(
            Path(folder) / "bundle.db",
            site="rehearsal",
            host_id="none",
            capture_uuid=str(uuid.uuid4()),
            open_body={"é": 1.5},
            identity=FileSigner(Ed25519PrivateKey.generate()),
        )
        recorder = Recorder(writer)
        recorder.add_records("clock", [read_pair()])
        recorder.gap("recorder", "rehearsal", 0, None)
        for table in (t for t in TABLES.values() if t.ring):
            recorder.add_drained(table.name, to_rows(table.name, np.zeros(2, table.record_dtype())))
            recorder.ring_counters(table.name, {0: 2}, {0: 0})
        recorder.flush()
        writer.append_artefact("rehearsal", [{"a": "b"}])
        writer.seal({"tables": recorder.totals()})
        writer.close()
    channel.receive(0)
    try:
        raise ValueError("rehearsal")
    except ValueError as e:
        traceback.format_exception(e)
