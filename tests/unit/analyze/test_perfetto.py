"""The trace read back with Perfetto's own definitions: every row a slice, every slice closed, chains as flows."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.analyze.perfetto import slices, wire
from gpuaudit.analyze.perfetto.slices import Slice, lanes, read
from gpuaudit.analyze.perfetto.trace import CHAINS, Exported, export
from gpuaudit.analyze.run import AnalyzeOptions, examine
from tests.chain_scenes import MALLOC_PID, SLOW_AT, two_chains
from tests.scenes import MS, T0, US, S, Scene
from tests.verifications import SEALED

CALLED = {
    "cuda_calls": "op",
    "nccl_calls": "op",
    "off_cpu": "op",
    "gpu_activities": "name",
    "user_ranges": "name",
}


def scene() -> Scene:
    """The two chains, with two streams of a GPU of which one overlaps itself, a call that never returned, a range of
    a process whose id Perfetto cannot hold, and NVML samples."""
    made = two_chains()
    for i in range(20):
        for stream in (7, 9):
            made.add(
                "gpu_activities", start_ns=T0 + 20 * S + i * MS, duration_ns=MS + (stream == 9) * US, pid=MALLOC_PID,
                op="kernel", name=f"gemm_{stream}", device=0, stream=stream, size_bytes=2**63 + 1,
            )  # fmt: skip
    made.cuda(MALLOC_PID, "cudaDeviceSynchronize", T0 + 50 * S, None)
    made.add("user_ranges", start_ns=T0 + S, duration_ns=S, pid=2**32 - 1, tid=0, op="nvtx", name="step \x1b[31m")
    return made.samples(T0, T0 + S, pids=[MALLOC_PID])


@pytest.fixture(scope="module")
def exported() -> Exported:
    return export(*examine(scene().store(), SEALED, AnalyzeOptions()))


@dataclass
class Drawn:
    """A slice as a reader of the trace has it."""

    track: tuple[str, ...]
    name: str
    start: int
    end: int | None = None
    out: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


class Reader:
    """Perfetto's rules, as its documentation of track events gives them: sorted by time, a stack per track."""

    def __init__(self, data: bytes) -> None:
        definitions = pytest.importorskip(
            "perfetto.protos.perfetto.trace.perfetto_trace_pb2", reason="the PyPI package perfetto is for developers"
        )
        self.trace = definitions.Trace.FromString(data)
        self.tracks: dict[int, Any] = {}
        self.slices: list[Drawn] = []
        self.counters: Counter[str] = Counter()
        self._open: dict[int, list[Drawn]] = {}
        for packet in self.trace.packet:
            if packet.HasField("track_descriptor"):
                d = packet.track_descriptor
                assert d.uuid not in self.tracks
                assert not d.parent_uuid or d.parent_uuid in self.tracks
                self.tracks[d.uuid] = d
        events = [p for p in self.trace.packet if p.HasField("track_event")]
        for packet in sorted(events, key=lambda p: p.timestamp):
            self._event(packet.timestamp, packet.track_event)
        assert not any(self._open.values()), "a slice was never closed"

    def _event(self, at: int, e: Any) -> None:
        stack = self._open.setdefault(e.track_uuid, [])
        if e.type == wire.COUNTER:
            assert self.tracks[e.track_uuid].HasField("counter")
            self.counters[self.tracks[e.track_uuid].name] += 1
        elif e.type == wire.END:
            stack.pop().end = at
        else:
            notes = {n.name: n.string_value or n.int_value or n.uint_value for n in e.debug_annotations}
            path = tuple(self.path(e.track_uuid))
            self.slices.append(Drawn(path, e.name, at, None, list(e.flow_ids), list(e.terminating_flow_ids), notes))
            if e.type == wire.BEGIN:
                stack.append(self.slices[-1])

    def path(self, uuid: int) -> Iterator[str]:
        d = self.tracks[uuid]
        if d.parent_uuid:
            yield from self.path(d.parent_uuid)
        yield d.process.process_name or d.thread.thread_name or d.name


@pytest.fixture(scope="module")
def reader(exported: Exported) -> Reader:
    return Reader(exported.data)


def test_values_at_the_ends_of_their_types() -> None:
    definitions = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    notes: list[tuple[str, int | str]] = [("a", -1), ("b", 2**64 - 1), ("c", "\x1b[2J")]
    data = wire.track(5, 1, "clock", unit="MHz") + wire.counter(5, 10, -3)
    data += wire.begin(5, 2**62, "n", "c", notes=notes, flows=[1], ends=[2**64 - 1])
    track, counter, slice = definitions.Trace.FromString(data).packet
    assert (track.track_descriptor.parent_uuid, track.track_descriptor.counter.unit_name) == (1, "MHz")
    assert counter.track_event.counter_value == -3
    event = slice.track_event
    assert (slice.timestamp, list(event.flow_ids), list(event.terminating_flow_ids)) == (2**62, [1], [2**64 - 1])
    assert [n.int_value or n.uint_value or n.string_value for n in event.debug_annotations] == [
        -1, 2**64 - 1, "\\u{1b}[2J",
    ]  # fmt: skip


def test_perfetto_knows_every_field(reader: Reader) -> None:
    unknown_fields = pytest.importorskip("google.protobuf.unknown_fields")
    seen = 0

    def walk(message: Any) -> None:
        nonlocal seen
        seen += 1
        assert len(unknown_fields.UnknownFieldSet(message)) == 0
        for descriptor, value in message.ListFields():
            if descriptor.message_type is not None:
                for one in value if descriptor.is_repeated else [value]:
                    walk(one)

    walk(reader.trace)
    assert seen > 3_000
    assert all(p.trusted_packet_sequence_id == wire.SEQUENCE for p in reader.trace.packet)


def test_every_row_is_one_slice_of_its_length(reader: Reader) -> None:
    expected = Counter(
        (row[name].replace("\x1b", "\\u{1b}"), row["start_ns"], row["start_ns"] + row["duration_ns"])
        for table, name in CALLED.items() for row in scene().rows[table] if row["duration_ns"] is not None
    )  # fmt: skip
    drawn = Counter((s.name, s.start, s.end) for s in reader.slices if s.track[0] != CHAINS and s.end is not None)
    assert drawn == expected
    (instant,) = [s for s in reader.slices if s.end is None]
    assert instant.name == "cudaDeviceSynchronize (its end was not recorded)"
    (gemm, *_) = [s for s in reader.slices if s.name == "gemm_9"]
    assert gemm.track == ("GPU 0", "stream 9")
    assert gemm.notes["size_bytes"] == 2**63 + 1
    assert {s.track[:2] for s in reader.slices if s.name == "preempted"} == {("python3", "python3")}, (
        "off-CPU states stand below their thread"
    )
    assert reader.counters["gpu_utilization_percent of GPU-0"] == 4


def test_flows_lead_from_cause_and_effect_to_what_is_explained(reader: Reader, exported: Exported) -> None:
    out = {f: s for s in reader.slices for f in s.out}
    ends = {f: s for s in reader.slices for f in s.ends}
    assert len(out) == len(ends) == exported.flows > 100
    assert set(out) == set(ends)
    for f, target in ends.items():
        assert target.track[0] == CHAINS
        assert out[f].start <= target.start, "a flow goes forward in time"
    explained = [s for s in reader.slices if s.track[0] == CHAINS and str(MALLOC_PID) in s.track[2]]
    assert [(s.start, s.end) for s in explained] == [(at + 5 * MS, at + 20 * MS) for at in SLOW_AT]
    for s, at in zip(explained, SLOW_AT, strict=True):
        assert {(out[f].name, out[f].start) for f in s.ends} == {("cudaMalloc", at), ("preempted", at + 5 * MS)}
    told = [s for s in reader.slices if s.track[0] == CHAINS and "Late rank:" in s.track[1]]
    late = [s for s in told if s.name.startswith("the 10 late arrivals")]
    assert len(late) == 30, "three peers wait ten times"
    assert {out[f].name for s in late for f in s.ends} == {"cudaStreamSynchronize", "stress-ng (812)"}


def test_equal_evidence_gives_equal_bytes(exported: Exported) -> None:
    assert export(*examine(scene().store(segments=3), SEALED, AnalyzeOptions())).data == exported.data


def test_of_too_many_rows_the_longest_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    store = two_chains().store()
    found = read(store, most=4)
    calls = [s for (kind, _), of in found.slices.items() for s in of if kind == slices.CALLS and s.name == "cudaMalloc"]
    assert found.omitted["cuda_calls"] == store.row_count("cuda_calls") - 4
    assert all(s.end_ns is not None and s.end_ns - s.start_ns == 20 * MS for s in calls)
    monkeypatch.setattr(slices, "MOST_LANES", 2)
    crossing = [Slice(i, 100 + i, (1, 1), "x", ()) for i in range(5)]
    assert lanes(crossing) == ([[0], [1]], 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30) | st.none()), max_size=40))
def test_slices_of_a_lane_are_apart_or_one_inside_the_other(rows: list[tuple[int, int | None]]) -> None:
    made = [Slice(a, None if b is None else a + b, (1, 1), "x", ()) for a, b in rows]
    made.sort(key=lambda x: (x.start_ns, -(x.end_ns or x.start_ns)))
    laid, left = lanes(made)
    assert sorted(i for lane in laid for i in lane) == list(range(len(made))) or left
    for lane in laid:
        spans = [(made[i].start_ns, made[i].end_ns) for i in lane]
        spans = [(a, b) for a, b in spans if b is not None]
        for n, (a, b) in enumerate(spans):
            assert all(c >= (b or 0) or ((d or 0) <= (b or 0) and c >= a) for c, d in spans[n + 1 :])


def test_trace_processor_finds_the_same_flows(exported: Exported, tmp_path: Path) -> None:
    """Perfetto's own program, where a developer has it: no package index that this project uses carries it."""
    program = shutil.which("trace_processor_shell") or shutil.which("trace_processor")
    if program is None:
        pytest.skip("no trace_processor on this machine")
    trace, query = tmp_path / "t.pftrace", tmp_path / "q.sql"
    trace.write_bytes(exported.data)
    query.write_text("SELECT (SELECT count(*) FROM flow), (SELECT count(*) FROM slice);")
    done = subprocess.run([program, "-q", query, trace], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1].replace('"', "").split(",") == [str(exported.flows), str(exported.slices)]
