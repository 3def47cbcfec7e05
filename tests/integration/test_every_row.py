"""Every row of the probe table, once: doubles of all libraries export each of its functions, a program calls them all,
and each call is one row with the values that were passed and came back.

The doubles are compiled from the libraries' own headers (tests/doubles/generate.py), and the program says what it
passed by the names of the parameters: which register or stack place that is, is the compiler's doing.
"""

from __future__ import annotations

from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from struct import pack, unpack

import numpy as np
import pytest

from gpuaudit.bundle.table import NUMPY_DTYPE
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.attach import Mechanism
from gpuaudit.capture.probe_types import Flag, From, Mode, Probe
from gpuaudit.capture.probes import NCCL_DATATYPE_BYTES, PROBE_TABLE, RCCL
from gpuaudit.capture.selection import Selection
from gpuaudit.capture.settings import Settings
from tests.doubles.build import build
from tests.doubles.generate import build_doubles
from tests.doubles.interfaces import INTERFACES, Interface
from tests.integration.recording import Recording, Row, recording, start, truth, wait_for_line
from tests.integration.test_calls_exact import fold

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

CALL_TABLES = ("cuda_calls", "nccl_calls", "nccl_comms")
ORDER = ("libcuda.so.1", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libnccl.so.2", "librccl.so.1",
         "libamdhip64.so.6")  # fmt: skip
SUCCESS, FAILURE, NO_ARRAYS, NULL_POINTERS, NESTED = range(5)
"""Rounds of tests/doubles/workload/every_row.h."""


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Interface, Path]]:
    """Interface and compiled double of each library, by file name, in the order of :data:`ORDER`."""
    folder = tmp_path_factory.mktemp("generated")
    interfaces = {i.file: i for i in INTERFACES}
    try:
        paths = build_doubles([interfaces[name] for name in ORDER], folder)
    except PackageNotFoundError as e:
        pytest.skip(f"pip install {e.name}")
    build("every_row", folder)
    return {path.name: (interfaces[path.name], path) for path in paths}


def narrowed(value: int, column: str, table: str) -> int | float:
    """A value as a column of this type holds it."""
    c = TABLES[table].column(column)
    if c.ring == "f32":
        return float(unpack("<f", pack("<I", value))[0])
    dtype = np.dtype(NUMPY_DTYPE[c.type])
    return int(np.uint64(value).astype(f"<u{dtype.itemsize}").view(dtype))


def column_value(probe: Probe, column: str, interface: Interface, call: Row) -> int | float | None:
    """What the column must hold, from what the program said; None is null."""
    value: int | None = None
    returned = call["values"]["return_code"] in probe.success
    for name, place in probe.slots:
        if name != column:
            continue
        at_return = place.source in (From.POINTEE, From.POINTEE_ID)
        said = interface.header.expression(probe.op, place).text
        passed = call["values"].get(said, place.index if place.source is From.CONSTANT else None)
        if isinstance(passed, str):
            passed = fold(bytes.fromhex(passed))
        if passed is None or (at_return and not returned):
            return None
        if place.bytes:
            passed &= (1 << 8 * place.bytes) - 1
        if place.mode is Mode.UNLESS:
            if passed:
                return None
        else:
            value = passed if place.mode is Mode.SET else (value or 0) * passed
    return None if value is None else narrowed(value, column, probe.table)


def wanted_row(probe: Probe, interface: Interface, call: Row) -> Row:
    """The row that this call must be. What hangs on communicators is left to :mod:`test_communicators`."""
    row: Row = {"op": probe.op, "tid": call["tid"], "return_code": call["values"]["return_code"]}
    for column in dict.fromkeys(probe.places):
        row[column] = column_value(probe, column, interface, call)
    if probe.flags & Flag.SIZE:
        row["size_bytes"] = row["count"] * NCCL_DATATYPE_BYTES[row["datatype"]]
    return row


def check(interface: Interface, calls: list[Row], rows: dict[str, list[Row]], *, driver: bool) -> None:
    """Each call is one row, in order, with these values and no others; ``driver``: a runtime calls it inside."""
    probes = {p.op: p for p in interface.probes}
    free = {"pid", "start_ns", "duration_ns", "cpu", "seq", "probe"}
    for call in calls:
        probe = probes[call["op"]]
        got = rows[probe.table].pop(0)
        if probe.flags & (Flag.MAKE_ALL | Flag.SPLIT_COMM | Flag.FIND_COMM | Flag.PARENT_COMM | Flag.LEARN_COMM):
            free_here = free | ({"comm_id", "rank", "nranks", "parent_comm_id"} - probe.places.keys())
        else:
            free_here = free
        want = wanted_row(probe, interface, call)
        assert {k: v for k, v in got.items() if k not in free_here} == {
            k: want.get(k) for k in got if k not in free_here
        }, (interface.file, call)
        assert call["values"]["before_ns"] <= got["start_ns"]
        assert got["start_ns"] + got["duration_ns"] <= call["values"]["after_ns"]
        if call["round"] == NESTED and driver:
            inner = rows["cuda_calls"].pop(0)
            assert (inner["op"], inner["stream"]) == ("cuStreamSynchronize", 0x77)
            assert (inner["parent_ns"], inner["parent_op"]) == (got["start_ns"], call["op"])
            assert got["start_ns"] <= inner["start_ns"]
            assert inner["start_ns"] + inner["duration_ns"] <= got["start_ns"] + got["duration_ns"]


def check_recording(
    libraries: list[tuple[Interface, Path]], folder: Path, mechanism: Mechanism | None = None
) -> tuple[Recording, Counter[str]]:
    """Record a run with these libraries, and check every row of it; how often each function was called."""
    paths = [path for _, path in libraries]
    driver = paths[0].name == "libcuda.so.1"
    process = start(paths[0].parent / "every_row", folder, *paths)
    wait_for_line(process, "at start")
    selection = Selection(frozenset({process.pid}))  # the host may have others, and perf events take long to close
    with recording(selection, mechanism=mechanism, settings=Settings(budget_per_s=0)) as r:
        assert r.capture.prepare([str(path) for path in paths]) == []
        (folder / "go").touch()
        r.run(process)
        r.finish()
    assert r.lost() == 0
    rows = {table: r.of(table, pid=process.pid) for table in CALL_TABLES}
    recorded = Counter(row["op"] for table in CALL_TABLES for row in rows[table])
    called: Counter[str] = Counter()
    for interface, path in libraries:
        calls = truth(folder / f"{path.name}.jsonl")
        check(interface, calls, rows, driver=driver)
        called.update(call["op"] for call in calls)
        if driver:
            called["cuStreamSynchronize"] += sum(call["round"] == NESTED for call in calls)
    assert rows == {table: [] for table in CALL_TABLES}  # nothing was left over
    assert recorded == called
    totals = [p for p in r.of("probes") if p["hits"] is not None and p["path"] in {str(path) for path in paths}]
    hits: Counter[str] = Counter()
    for p in totals:
        hits[p["op"]] += p["hits"]
    assert +hits == recorded
    assert sum(p["unmatched"] for p in totals) == 0
    return r, called


def test_every_row(generated: dict[str, tuple[Interface, Path]], tmp_path: Path) -> None:
    _, called = check_recording(list(generated.values()), tmp_path)
    assert set(called) == {p.op for p in PROBE_TABLE if p.table}


def test_rows_through_perf_events(generated: dict[str, tuple[Interface, Path]], tmp_path: Path) -> None:
    """The same program by the other way of attaching: values on the stack, ids, structures. Of all rows would keep the
    kernel closing events for minutes, beside the tests that come after."""
    libraries = [generated[name] for name in ("libnccl.so.2", "librccl.so.1", "libcudart.so.11.0")]
    _, called = check_recording(libraries, tmp_path, "perf uprobe")
    assert set(called) == {p.op for p in RCCL.probes} | {"cudaGraphInstantiate"}
