"""Small captures made by hand: rows whose truth is known, turned into a store without a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.finding import Document, RuleOutcome
from gpuaudit.analyze.quality import read_quality
from gpuaudit.analyze.run import AnalyzeOptions, analyze_store
from gpuaudit.analyze.store import Store
from gpuaudit.analyze.window import read_window
from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.tables import TABLES
from tests.verifications import SEALED

T0 = 1_000_000_000_000
US, MS, S = 1_000, 1_000_000, 1_000_000_000
COMM = 0x5EED_0000_0000_0001
OF_RINGS = {name for name, table in TABLES.items() if {"cpu", "seq"} <= {c.name for c in table.columns}}
Mode = Literal["blocking", "asynchronous"]
Row = dict[str, Any]


class Scene:
    """Rows per table, added one by one."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {}
        self.lost: dict[str, int] = {}
        self.open_body: dict[str, Any] = {"synthetic": True}
        self.artefacts: list[tuple[str, bytes]] = []

    def add(self, table: str, **row: Any) -> Scene:
        """One row; what a ring adds (CPU, sequence) is filled in."""
        rows = self.rows.setdefault(table, [])
        ring = {"cpu": 0, "seq": len(rows)} if table in OF_RINGS else {}
        rows.append({**ring, **row})
        return self

    def clock(self, start: int = T0, end: int = T0 + 60 * S, every: int = 5 * S) -> Scene:
        """Clock pairs that neither drift nor step."""
        for at in range(start, end + 1, every):
            self.add("clock", start_ns=at, duration_ns=1_000, realtime_ns=at + 10**18, monotonic_ns=at)
        return self

    def process(self, pid: int, comm: str = "python3", role: str = "traced", **more: Any) -> Scene:
        """A process found at the start, alive unless ``more`` says otherwise."""
        base = {"start_ns": T0 - S, "pid": pid, "op": "found", "role": role, "comm": comm, "seen_ns": T0}
        return self.add("processes", **{**base, **more})

    def cuda(self, pid: int, op: str, at: int, duration: int | None, **more: Any) -> Scene:
        """A CUDA call of the main thread."""
        base = {"start_ns": at, "duration_ns": duration, "pid": pid, "tid": pid, "op": op}
        return self.add("cuda_calls", **{**base, "return_code": None if duration is None else 0, **more})

    def sample(self, at: int, duration: int, gpu: int = 0, pids: Sequence[int] = (), **more: Any) -> Scene:
        """An NVML sample of one GPU and the processes listed with it."""
        place = {"start_ns": at, "duration_ns": duration, "gpu_index": gpu, "gpu_uuid": f"GPU-{gpu}"}
        self.add(
            "nvml_samples", **{**place, "gpu_utilization_percent": 90, "event_reasons": 0, "unavailable": "", **more}
        )
        for pid in pids:
            self.add("nvml_processes", **place, pid=pid, op="compute", memory_used_bytes=1 << 30)
        return self

    def samples(self, start: int, end: int, gpu: int = 0, pids: Sequence[int] = (), **more: Any) -> Scene:
        """Samples every 250 ms."""
        for at in range(start, end, 250 * MS):
            self.sample(at, 250 * MS, gpu, pids, **more)
        return self

    def store(self, segments: int = 1) -> Store:
        """The scene as a store, every table cut into ``segments`` leaves."""
        tables = {}
        for name, rows in self.rows.items():
            size = max(1, -(-len(rows) // segments))
            cuts = [rows[i : i + size] for i in range(0, len(rows), size)]
            tables[name] = [from_records(TABLES[name], cut) for cut in cuts]
        return Store.from_tables(tables, open_body=self.open_body, lost=self.lost, artefacts=self.artefacts)

    def context(self, segments: int = 1) -> Context:
        """What a rule gets."""
        store = self.store(segments)
        window = read_window(store)
        return Context(store, window, read_quality(store, window, "SEALED"), EvidenceBook(store))

    def document(self, segments: int = 1, rate: Decimal | None = None) -> Document:
        """The whole analysis."""
        return analyze_store(self.store(segments), SEALED, AnalyzeOptions(rate=rate))

    def mapped(self, change: Callable[[str, list[Row]], list[Row]]) -> Scene:
        """A new scene whose rows are ``change(table, rows)``."""
        other = Scene()
        other.rows = {t: change(t, [dict(r) for r in rows]) for t, rows in self.rows.items()}
        other.lost, other.open_body = dict(self.lost), dict(self.open_body)
        other.artefacts = list(self.artefacts)
        return other


def outcome(document: Document, id: str) -> RuleOutcome:
    """What became of one rule."""
    return next(o for o in document.outcomes if o.id == id)


def collectives(
    mode: Mode, *, ranks: int = 4, steps: int = 50, late: Mapping[int, int] | None = None,
    late_steps: Sequence[int] | None = None, comm_id: int | None = COMM, scene: Scene | None = None, gap: int = 50 * MS,
    nranks: int | None = None,
) -> Scene:  # fmt: skip
    """``steps`` all-reduces of processes 100 + rank; ``late`` gives the ns by which a rank is late in ``late_steps``.

    Arrivals scatter by rank·20 µs and a few µs by step. A collective is done 200 µs after the last arrival; the wait
    lies in the call (blocking) or in the synchronisation that follows (asynchronous).
    """
    scene = scene or Scene().clock()
    chosen = set(range(steps) if late_steps is None else late_steps)
    for step in range(steps):
        base = T0 + S + step * gap
        arrival = [
            base + r * 20 * US + (step * 7919 * (r + 1)) % 5_000 + ((late or {}).get(r, 0) if step in chosen else 0)
            for r in range(ranks)
        ]
        done = max(arrival) + 200 * US
        for r, at in enumerate(arrival):
            inside = done - at if mode == "blocking" else 9 * US
            scene.add(
                "nccl_calls", start_ns=at, duration_ns=inside, pid=100 + r, tid=100 + r, op="ncclAllReduce",
                return_code=0,
                comm_handle=7_000 + r, comm_id=comm_id, rank=r if comm_id else None, nranks=nranks or ranks, datatype=7,
                reduce_op=0, count=1_000, size_bytes=4_000, stream=1 + r,
            )  # fmt: skip
            scene.cuda(
                100 + r, "cudaStreamSynchronize", at + inside + 3 * US, max(done - at - inside, 2 * US), stream=1 + r
            )
    return scene
