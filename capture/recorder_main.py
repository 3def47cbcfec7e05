"""The recorder process: drains, seals, and talks to nobody but the attacher that started it.

``python -m gpuaudit.capture.recorder_main FD``, where FD is its end of the channel and the working directory is the
capture's ``.partial`` directory. It gives up every privilege before it looks at a single event. When the attacher is
gone without a word the end of the capture is unknown (open calls, probe totals, the workload's exit), so what has come
is written, with a gap, and the bundle stays UNSEALED.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from gpuaudit.bundle.errors import AuditError, HostUnfit
from gpuaudit.bundle.harden import harden_process
from gpuaudit.bundle.writer import BundleWriter
from gpuaudit.capture import privileges
from gpuaudit.capture.allocator import keep_freed_memory
from gpuaudit.capture.channel import TO_RECORDER, Channel, ChannelBroken, Message
from gpuaudit.capture.clock_source import ClockSource
from gpuaudit.capture.cost import CostRow, cost_row, usage_rows
from gpuaudit.capture.engine_dial import DialClient
from gpuaudit.capture.engine_source import Engine, EngineSource
from gpuaudit.capture.nvml_source import NvmlSource
from gpuaudit.capture.output import BUNDLE_NAME, RESERVE_NAME
from gpuaudit.capture.recorder import Recorder
from gpuaudit.capture.rehearsal import rehearse
from gpuaudit.capture.ring_source import RingSource
from gpuaudit.capture.room import Room
from gpuaudit.capture.scenario import ScenarioSource, VirtualClock, load_scenario
from gpuaudit.capture.signing import ChannelSigner
from gpuaudit.capture.source import TABLES_OF_SOURCE, Capability, Source, boottime_ns
from gpuaudit.capture.start import StartMessage

START_DEADLINE_S = 60.0
STATUS_INTERVAL_S = 0.5
"""The live line is for people: twice a second."""

SLEEP_MIN_S, SLEEP_MAX_S = 0.002, 0.020
"""The pause between drains doubles from the first to the second while little comes (design/capture.md, Rings)."""

BUSY_RECORDS = 4096
"""A drain that brings this many is followed by a short pause."""


class RecorderProcess:
    """One capture, from leaf 0 to the seal."""

    def __init__(self, channel: Channel, start: StartMessage, rings: RingSource | None, directory: Path) -> None:
        self._channel = channel
        self._start = start
        self._rings = rings
        self._virtual = VirtualClock() if start.synthetic else None
        self._path = directory / BUNDLE_NAME
        self._room = Room(directory / RESERVE_NAME)
        self._capabilities = [Capability(**c) for c in start.capabilities]
        self._sources: list[Source] = []
        self._scenario: ScenarioSource | None = None
        self._engines: EngineSource | None = None
        self._gpus: list[dict[str, object]] = start.gpus
        self._writer: BundleWriter
        self._recorder: Recorder
        self._sealed = False

    def open(self) -> None:
        """Prepare the sources, write leaf 0 and send the receipt."""
        self._prepare_sources()
        self._room.reserve()
        body = {**self._start.open_body, "gpus": self._gpus, "sources": [c.to_json() for c in self._capabilities]}
        signer = ChannelSigner(self._channel, bytes.fromhex(self._start.public_key))
        self._writer = BundleWriter.create(
            self._path, site=self._start.site, host_id=self._start.host_id, capture_uuid=self._start.capture_uuid,
            open_body=body, identity=signer, challenge=self._start.challenge, clock=self._virtual,
        )  # fmt: skip
        if self._rings is not None:
            self._writer.between_columns = self._rings.relieve
        now_ns = self._virtual.boot_ns if self._virtual else boottime_ns
        self._recorder = Recorder(self._writer, now_ns=now_ns)
        self._begin_ns = now_ns()
        self._channel.send(
            "receipt", text=self._writer.receipt.to_text(), capabilities=[c.__dict__ for c in self._capabilities]
        )
        if self._start.site_policy is not None:
            self._writer.append_artefact("site_policy", self._start.site_policy)
        for source in self._sources:
            source.start(self._recorder)
        for c in self._capabilities:
            if not c.available:
                tables = TABLES_OF_SOURCE.get(c.source, ())
                for table in tables:
                    self._recorder.gap(c.source, c.reason, self._begin_ns, None, table=table)

    def run(self) -> None:
        """Drain and seal until the attacher says that it is over, is gone, or the disk is full."""
        pause, next_status = SLEEP_MIN_S, 0.0
        while not self._sealed:
            taken = sum(source.poll(self._recorder) for source in self._sources)
            try:
                self._recorder.tick()
                full = self._room.is_short(self._recorder.held_bytes)
            except HostUnfit:
                full = True
            if full:
                self._end_full()
                return
            pause = SLEEP_MIN_S if taken >= BUSY_RECORDS else min(SLEEP_MAX_S, pause * 2)
            try:
                if time.monotonic() >= next_status:
                    next_status = time.monotonic() + STATUS_INTERVAL_S
                    self._send_status()
                messages = self._channel.receive(0 if self._playing else pause)
            except ChannelBroken as e:
                self._end_orphaned(str(e))
                return
            for message in messages:
                self._handle(message)

    @property
    def _playing(self) -> bool | None:
        """Whether a scenario still has rows; None in a real capture."""
        return None if self._scenario is None else not self._scenario.ended

    def _prepare_sources(self) -> None:
        """Which sources run; those of the attacher have been judged by it."""
        if self._virtual is not None:
            self._scenario = ScenarioSource(load_scenario(str(self._start.synthetic)), self._start.seed, self._virtual)
            self._sources = [ClockSource(self._virtual.pair, self._virtual.boot_ns), self._scenario]
            self._capabilities = [Capability(s, True) for s in TABLES_OF_SOURCE if s != "engines"]
            return
        self._sources = [ClockSource()]
        if self._rings is not None:
            self._sources.append(self._rings)
        if "nvml" in self._start.sources:
            nvml = NvmlSource()
            capability = nvml.probe()
            self._capabilities.append(capability)
            self._gpus = [gpu.to_json() for gpu in nvml.gpus]
            if capability.available:
                self._sources.append(nvml)
        if self._start.dial_fd >= 0:
            self._engines = EngineSource(DialClient(self._start.dial_fd), DialClient(self._start.files_fd))
            self._capabilities.append(self._engines.probe())
            self._sources.append(self._engines)
        self._capabilities.append(Capability("clock", True))

    def _handle(self, message: Message) -> None:
        if message["type"] == "rows":
            table, rows = message.get("table"), message.get("rows")
            if table in self._recorder.counts and isinstance(rows, list) and all(isinstance(r, dict) for r in rows):
                self._recorder.add_records(str(table), rows)
            else:
                now = boottime_ns()
                self._recorder.gap("attacher", f"rows for {table!r:.60} were not understood", now, now)
        elif message["type"] == "engine" and self._engines is not None:
            self._engines.add(Engine.from_message(message))
        elif message["type"] == "finish":
            self._end(message)

    def _send_status(self) -> None:
        if not self._channel.can_send():
            return
        self._channel.send(
            "status", rows=self._recorder.rows_taken(), lost=self._recorder.lost(), size_bytes=self._size_bytes(),
            elapsed_ns=self._elapsed_ns(), ended=self._playing is False,
        )  # fmt: skip

    def _end(self, message: Message) -> None:
        """The ordinary end: everything drained, the last counters, cost, state of the sources, seal."""
        self._stop_sources()
        try:
            self._recorder.flush()
            self._seal(message)
        except HostUnfit:
            if self._sealed:
                raise
            self._end_full(message)

    def _end_full(self, message: Message | None = None) -> None:
        """No room is left: seal what there is, in the room that was kept for it."""
        self._room.release()
        self._stop_sources()
        now = self._begin_ns + self._elapsed_ns()
        safe_ns = now
        try:
            self._recorder.flush()
        except HostUnfit:
            dropped, safe_ns = self._recorder.drop_held()
            self._recorder.gap("recorder", f"the disk is full: rows were dropped ({dropped})", safe_ns, None)
        self._recorder.gap("recorder", "the disk is full: the capture ended early", now, None)
        self._recorder.flush()
        self._seal(message or {}, full_after_ns=max(0, safe_ns - self._begin_ns))

    def _end_orphaned(self, why: str) -> None:
        now = self._begin_ns + self._elapsed_ns()
        self._recorder.gap(
            "attacher", f"the attacher ended without a word ({why}); the rest is not recorded", now, None
        )
        self._stop_sources()
        self._recorder.flush()
        self._room.release()
        self._writer.close()

    def _stop_sources(self) -> None:
        for source in self._sources:
            source.stop(self._recorder)
        if self._sources:
            self._recorder.settle()
        self._sources = []

    def _seal(self, message: Message, full_after_ns: int | None = None) -> None:
        states = self._source_states()
        self._writer.append_artefact("sources", states)
        self._writer.append_artefact("cost", [*message.get("cost", []), *self._own_cost()])
        totals = self._recorder.totals()
        sealed = self._writer.seal({"tables": totals})
        self._sealed = True
        self._room.release()
        self._channel.send(
            "sealed", root_b64=sealed.root_b64, size=sealed.size, file_sha256=sealed.file_sha256,
            by_identity=sealed.by_identity, totals=totals, sources=states, elapsed_ns=self._elapsed_ns(),
            full_after_ns=full_after_ns,
        )  # fmt: skip
        self._writer.close()

    def _source_states(self) -> list[dict[str, str]]:
        """Recorded, partly recorded or not recorded, per source, with the reason."""
        out = []
        for c in self._capabilities:
            reasons = list(dict.fromkeys(self._recorder.gap_reasons.get(c.source, [])))
            lost = sum(self._recorder.counts[t].lost for t in TABLES_OF_SOURCE.get(c.source, ()))
            if lost:
                reasons.append(f"events lost: {lost}")
            state = "not recorded" if not c.available else "partly recorded" if reasons else "recorded"
            reason = "; ".join(reasons[:4]) if c.available and reasons else c.reason
            out.append({"source": c.source, "state": state, "reason": reason})
        return out

    def _own_cost(self) -> list[CostRow]:
        definition = "size of the bundle, write-ahead log included, just before the seal"
        return [
            *usage_rows("recorder", resource.getrusage(resource.RUSAGE_SELF)),
            cost_row("bytes_written", self._size_bytes(), "bytes", "measured", definition),
        ]

    def _size_bytes(self) -> int:
        files = (self._path, self._path.with_name(f"{BUNDLE_NAME}-wal"))
        return sum(f.stat().st_size for f in files if f.exists())

    def _elapsed_ns(self) -> int:
        return (self._virtual.boot_ns() if self._virtual else boottime_ns()) - self._begin_ns


def main(argv: list[str]) -> int:
    """Run one capture; 0 when it was sealed or the attacher went away, else the exit code of the error sent to it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the attacher decides when it ends; a Ctrl-C reaches the whole group
    channel = Channel(socket.socket(fileno=int(argv[1])), TO_RECORDER)
    outside = directory = Path.cwd()
    try:
        start = StartMessage.from_message(channel.wait_for("start", START_DEADLINE_S))
        harden_process()
        keep_freed_memory()
        rings = RingSource(start.rings, start.counters_fd) if start.rings else None
        rehearse(directory, channel)
        directory = privileges.private_view(outside)
        credentials = None if start.uid is None or start.gid is None else privileges.Credentials(start.uid, start.gid)
        privileges.drop(credentials)
        process = RecorderProcess(channel, start, rings, directory)
        process.open()
        process.run()
    except ChannelBroken:
        return 0
    except AuditError as e:
        e.message = e.message.replace(str(directory), str(outside))  # the name it has for everybody else
        return _tell(channel, e)
    except Exception as e:  # the last line of defence: the attacher must learn what went wrong
        traceback.print_exc()
        return _tell(channel, AuditError(f"the recorder failed: {type(e).__name__}: {e}"))
    return 0


def _tell(channel: Channel, error: AuditError) -> int:
    with contextlib.suppress(ChannelBroken):
        channel.send("failed", exit_code=error.exit_code, message=error.message, hint=error.hint)
    return error.exit_code


if __name__ == "__main__":
    code = main(sys.argv)
    sys.stderr.flush()
    os._exit(code)  # a thread that hangs in NVML must not hold up the end
