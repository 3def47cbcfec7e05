"""Values at the ends of their types: a stranger's bundle may hold any, and none of them may end in a traceback."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from gpuaudit.analyze import lateness
from gpuaudit.analyze.explain import explain_document
from gpuaudit.analyze.finding import Document
from gpuaudit.analyze.load import load_document
from gpuaudit.analyze.run import document_bytes
from gpuaudit.analyze.store import MAX_TIME_NS
from gpuaudit.bundle.errors import InputUnusable, UsageError
from gpuaudit.bundle.tables import TABLES
from tests.scenes import MS, T0, S, Scene, outcome

U64 = 2**64 - 1
LONGEST = MAX_TIME_NS - 1


def through(scene: Scene, tmp_path: Path) -> Document:
    """The document, after it was written, loaded as a stranger's and put into words."""
    document = scene.document()
    path = tmp_path / "x.findings.json"
    path.write_bytes(document_bytes(document))
    load_document(path)
    assert explain_document(document, 100)
    ledger = sum(amount(r["gpu_time"]["value"]) for r in document.waste["rows"])
    assert ledger == amount(document.waste["observed"]["value"] or "0")
    return document


def amount(value: str | dict[str, str]) -> Fraction:
    """A number of a findings document: a whole one as text, any other as two."""
    return Fraction(int(value["num"]), int(value["den"])) if isinstance(value, dict) else Fraction(int(value))


def some_calls() -> Scene:
    return Scene().clock().process(5).cuda(5, "cudaMalloc", T0, 5)


def test_loss_counters_at_the_end_of_their_type(tmp_path: Path) -> None:
    scene = some_calls()
    for cpu in range(3):
        scene.add("losses", start_ns=T0, duration_ns=0, table_name="cuda_calls", cpu=cpu, seen=U64, written=0, lost=U64)
    document = through(scene, tmp_path)
    table = next(t for t in document.quality["tables"] if t["table"] == "cuda_calls")
    assert table["lost"] == str(3 * U64)
    assert document.quality["grade"] == "D"


def test_loss_counters_that_shrink(tmp_path: Path) -> None:
    scene = some_calls()
    for at, lost in ((T0, 9), (T0 + S, 3)):
        scene.add("losses", start_ns=at, duration_ns=0, table_name="cuda_calls", cpu=0, seen=9, written=0, lost=lost)
    assert through(scene, tmp_path).quality["grade"] == "D"


def test_gaps_probes_and_threads_whose_sums_pass_int64(tmp_path: Path) -> None:
    scene = some_calls()
    for i in range(4):
        scene.add("gaps", start_ns=T0, duration_ns=LONGEST, source="cuda", reason="away")
        scene.add("off_cpu", start_ns=T0, duration_ns=LONGEST, pid=4, tid=4, op="preempted", comm="a", prev_state=0,
                  next_pid=0, next_tid=0, next_comm="b", cpu_out=0)  # fmt: skip
        scene.add("probes", start_ns=T0, op=f"f{i}", library="cudart", path="/x", offset=U64, mechanism="perf uprobe",
                  hits=U64, unmatched=U64, misses=U64)  # fmt: skip
    assert through(scene, tmp_path).quality["grade"] == "B"


def test_calls_and_samples_with_the_largest_values(tmp_path: Path) -> None:
    scene = some_calls()
    scene.cuda(2**32 - 1, "cudaMalloc", T0, LONGEST - T0, size_bytes=U64, stream=U64, device_pointer=U64)
    scene.cuda(0, "", T0, 0, return_code=-(2**31))
    for rank in range(4):
        for step in range(4):
            at = T0 + step * S + rank * 500 * MS
            scene.add("nccl_calls", start_ns=at, duration_ns=1 << 61, pid=rank + 1, tid=rank + 1, op="ncclAllReduce",
                      return_code=0, comm_handle=U64, comm_id=U64, rank=rank, nranks=4, count=U64, size_bytes=U64,
                      stream=U64)  # fmt: skip
    most = {"power_mw": 2**32 - 1, "event_reasons": U64, "memory_used_bytes": U64, "clock_sm_mhz": 2**32 - 1}
    scene.sample(T0, 250 * MS, 0, [1], **most, clock_sm_max_mhz=0).sample(T0 + S, LONGEST - T0 - S, 0, [1])
    through(scene, tmp_path)


def test_clocks_at_the_ends_of_time(tmp_path: Path) -> None:
    scene = Scene().add("clock", start_ns=0, duration_ns=0, realtime_ns=-LONGEST, monotonic_ns=LONGEST)
    scene.add("clock", start_ns=LONGEST, duration_ns=LONGEST, realtime_ns=LONGEST, monotonic_ns=0)
    through(scene, tmp_path)


def test_no_rows_in_any_table_is_said_in_one_line() -> None:
    scene = Scene()
    scene.rows = {name: [] for name in TABLES}
    with pytest.raises(InputUnusable, match="no event and no sample"):
        scene.document()


def test_a_rank_that_is_not_recorded_is_named_as_that() -> None:
    scene = Scene().clock()
    for rank in range(3):
        scene.add("nccl_calls", start_ns=T0 + rank, duration_ns=1, pid=rank + 1, tid=rank + 1, op="ncclAllReduce",
                  return_code=0, comm_handle=1, comm_id=1, rank=rank if rank else None, nranks=3)  # fmt: skip
    assert "1 of its calls carry no rank" in outcome(scene.document(), "late_rank").reason


@pytest.mark.parametrize("rate", ["0", "-1", "NaN", "1e30", "Infinity", "1e-10", "1e-999999"])
def test_a_rate_that_is_no_price_is_refused(rate: str) -> None:
    with pytest.raises(UsageError, match="rate"):
        Scene().clock().samples(T0, T0 + S).document(rate=Decimal(rate))


def test_a_spread_of_decades_does_not_wrap_around() -> None:
    arrival = np.array([[0] * 9, [1 << 61] * 9, [3 << 60] * 9, [1 << 62] * 9], dtype=np.int64)
    judged = lateness.judge(arrival, lateness.Limits())
    assert (judged.threshold > 1 << 60).all()
