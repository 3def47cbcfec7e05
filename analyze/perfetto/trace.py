"""The whole trace of a capture: ``audit export --format perfetto``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Chain, Document
from gpuaudit.analyze.lanes import Drawing, drawing
from gpuaudit.analyze.perfetto import wire
from gpuaudit.analyze.perfetto.flows import Explained, Flows, Key
from gpuaudit.analyze.perfetto.slices import CALLS, GPU, SOURCES, Slice, lanes, read
from gpuaudit.analyze.words import amount

COUNTERS = (
    ("gpu_utilization_percent", "%"), ("clock_sm_mhz", "MHz"), ("power_mw", "mW"), ("memory_used_bytes", "bytes"),
)  # fmt: skip
"""Columns of ``nvml_samples`` that are drawn, and their units."""

CATEGORIES = {s.kind: s.kind.replace(" ", "_") for s in SOURCES}
CHAINS = "Causal chains"


@dataclass
class Exported:
    """The bytes, and what is in them. ``omitted`` tells what was left out and why."""

    data: bytes = b""
    slices: int = 0
    flows: int = 0
    chains: int = 0
    omitted: list[str] = field(default_factory=list)


class _Trace:
    """Tracks and packets, in the order in which they are written: what a flow ends in comes after its beginning."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ids = count(1)
        self._processes: dict[int, int] = {}
        self._threads: dict[tuple[int, int], int] = {}
        self._parents: dict[str, int] = {}
        self.packets: list[bytes] = []
        self.made = Exported()

    def track(self, name: str, parent: int = 0, unit: str = "") -> int:
        """A new track below another."""
        uuid = next(self._ids)
        self.packets.append(wire.track(uuid, parent, name, unit=unit))
        return uuid

    def shared(self, name: str) -> int:
        """The one track of that name at the top."""
        if name not in self._parents:
            self._parents[name] = self.track(name)
        return self._parents[name]

    def process(self, pid: int) -> int:
        """The track of a process."""
        if pid not in self._processes:
            name = self._context.process_name(pid)
            if 0 < pid <= wire.MOST_I32:
                self._processes[pid] = next(self._ids)
                self.packets.append(wire.process_track(self._processes[pid], pid, name))
            else:
                self._processes[pid] = self.track(f"{name} {pid}" if pid > 0 else "process not recorded")
        return self._processes[pid]

    def thread(self, pid: int, tid: int) -> int:
        """The track of a thread, below its process."""
        if (pid, tid) not in self._threads:
            parent = self.process(pid)
            if 0 < pid <= wire.MOST_I32 and 0 < tid <= wire.MOST_I32:
                self._threads[pid, tid] = next(self._ids)
                name = self._context.process_name(pid) if pid == tid else f"thread {tid}"
                self.packets.append(wire.thread_track(self._threads[pid, tid], parent, pid, tid, name))
            else:
                self._threads[pid, tid] = self.track(f"thread {tid}" if tid > 0 else "thread not recorded", parent)
        return self._threads[pid, tid]

    def slices(self, key: Key, slices: Sequence[Slice], flows: Flows) -> None:
        """All slices of one place, on as many lanes as they need."""
        kind, place = key
        laid, left = lanes(slices)
        for n, lane in enumerate(laid):
            track = self._lane(kind, place, n)
            self._write(track, kind, [(slices[i], flows.out.get((key, i), ())) for i in lane])
            self.made.slices += len(lane)
        if left:
            self.made.omitted.append(f"{left} rows overlap too many others on one track ({kind} of {place[0]})")

    def _lane(self, kind: str, place: tuple[int, int], n: int) -> int:
        if kind == GPU:
            device = f"GPU {place[0]}" if place[0] >= 0 else "GPU not recorded"
            stream = f"stream {place[1]}" if place[1] >= 0 else "all streams"
            return self.track(stream, self.shared(device))
        thread = self.thread(*place)
        return thread if kind == CALLS and n == 0 else self.track(kind, thread)

    def _write(self, track: int, kind: str, told: Iterable[tuple[Slice, Sequence[int]]]) -> None:
        ends: list[int] = []
        for s, flows in told:
            while ends and ends[-1] <= s.start_ns:
                self.packets.append(wire.end(track, ends.pop()))
            kind_of = wire.BEGIN if s.end_ns is not None else wire.INSTANT
            name = s.name if s.end_ns is not None else f"{s.name} (its end was not recorded)"
            self.packets.append(
                wire.begin(track, s.start_ns, name, CATEGORIES[kind], notes=s.notes, flows=flows, kind=kind_of)
            )
            if s.end_ns is not None:
                ends.append(s.end_ns)
        while ends:
            self.packets.append(wire.end(track, ends.pop()))

    def chain(self, chain: Chain, title: str, drawn: Drawing, explained: list[list[Explained]]) -> None:
        """A track per link, below that of the chain."""
        parent = self.track(f"{chain.id} {title}: {amount(chain.impact)}", self.shared(CHAINS))
        for step, intervals in zip(drawn.steps, explained, strict=True):
            track = self.track(f"{step.cause.label} → {step.effect.label}", parent)
            notes = (("chain", chain.id), ("effect", step.effect.label), ("cause", step.cause.label))
            for x in intervals:
                self.packets.append(
                    wire.begin(track, x.start_ns, step.cause.label, "chain", notes=notes, flows=x.flows, ends=x.ends)
                )
                self.packets.append(wire.end(track, x.end_ns))
            self.made.slices += len(intervals)
        if not drawn.steps:
            for lane in drawn.lanes:
                track = self.track(lane.label, parent)
                for a, b in lane.time.tolist():
                    self.packets += [wire.begin(track, a, lane.label, "chain"), wire.end(track, b)]
                self.made.slices += len(lane.time)
        self.made.chains += 1

    def counters(self) -> None:
        """What NVML told of each GPU."""
        sql = self._context.store.sql
        for index, uuid in sql("SELECT DISTINCT gpu_index, gpu_uuid FROM nvml_samples ORDER BY ALL"):
            parent = self.shared(f"GPU {index}")
            for column, unit in COUNTERS:
                values = sql(
                    f"SELECT start_ns::BIGINT, TRY_CAST({column} AS BIGINT) AS value FROM nvml_samples "
                    "WHERE gpu_uuid = ? AND value IS NOT NULL ORDER BY start_ns, leaf, row", [uuid],
                )  # fmt: skip
                if values:
                    track = self.track(f"{column} of {uuid}", parent, unit)
                    self.packets += (wire.counter(track, at, value) for at, value in values)


def export(document: Document, context: Context) -> Exported:
    """The trace of one analysed capture; equal evidence gives equal bytes."""
    trace = _Trace(context)
    found = read(context.store)
    flows = Flows(found.slices)
    titles = {d["id"]: str(d["title"]) for d in document.appendix["declarations"]}
    drawn = [(c, drawing(context, c)) for c in document.chains]
    links = [flows.links(d) for _, d in drawn]
    trace.packets += _clock(context)
    for key in sorted(found.slices):
        trace.slices(key, found.slices[key], flows)
    trace.counters()
    for (chain, d), explained in zip(drawn, links, strict=True):
        trace.chain(chain, titles.get(chain.detector, chain.detector), d, explained)
    trace.made.data = b"".join(trace.packets)
    trace.made.flows = flows.count
    trace.made.omitted += [f"{n} rows of {table}: the longest are drawn" for table, n in sorted(found.omitted.items())]
    return trace.made


def _clock(context: Context) -> Iterator[bytes]:
    """The first pair of clock readings that Perfetto can hold."""
    rows = context.store.sql(
        "SELECT start_ns::BIGINT, realtime_ns, monotonic_ns FROM clock WHERE realtime_ns >= 0 ORDER BY start_ns LIMIT 1"
    )
    for at, realtime, monotonic in rows:
        yield wire.clocks(int(at), int(realtime), int(monotonic))
