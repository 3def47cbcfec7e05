"""The probe table and the BPF side agree, and every row fits."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

import gpuaudit.capture
from gpuaudit.bundle.tables import RING_TABLES, TABLES
from gpuaudit.capture import probed_files, probes, selection, settings
from gpuaudit.capture.probes import LIBRARIES, PROBE_TABLE, From, Mode, Place, Probe, library_for, pack_op

HEADERS = Path(gpuaudit.capture.__file__).resolve().parent / "bpf"


def constants() -> dict[str, int]:
    """Every ``NAME = number`` of an enum and ``#define NAME number`` in the BPF headers."""
    names = ("tables.h", "shared.h", "targets.h", "ops.h", "open_calls.h", "totals.h")
    text = "".join((HEADERS / name).read_text() for name in names)
    found = re.findall(r"^\s*([A-Z][A-Z0-9_]+) = (\d+)", text, re.MULTILINE)
    found += re.findall(r"^#define ([A-Z][A-Z0-9_]+) (\d+)\s*$", text, re.MULTILINE)
    found += re.findall(r"enum \{ ([A-Z0-9_]+) = (\d+)", text)
    return {name: int(value) for name, value in found}


def test_constants_are_those_of_the_bpf_headers() -> None:
    c = constants()
    assert {n: c[f"FROM_{n}"] for n in From.__members__} == {n: int(v) for n, v in From.__members__.items()}
    assert {n: c[f"MODE_{n}"] for n in Mode.__members__} == {n: int(v) for n, v in Mode.__members__.items()}
    for flag in probes.Flag:
        if flag:
            assert c[f"OP_{flag.name}"] == flag.value
    assert [c[f"TABLE_{t.upper()}"] for t in RING_TABLES] == list(range(1, len(RING_TABLES) + 1))
    assert (c["SLOTS"], c["MAX_OPS"], c["DATATYPES"]) == (probes.SLOTS, probes.MAX_OPS, probes.DATATYPES)
    assert c["MAX_PROBES"] == probed_files.MAX_PROBES
    assert 1 << c["WINDOW_SHIFT"] == settings.WINDOW_NS
    for name in ("CONFIG_STACKS", "CONFIG_NO_ENTRIES", "CONFIG_NO_RETURNS"):
        assert c[name] == getattr(settings, name)
    targets = (c["TARGET_TRACED"], c["TARGET_SELECTED"], c["TARGET_EXCLUDED"])
    assert targets == (selection.TRACED, selection.SELECTED, selection.EXCLUDED)


def test_every_row_fits_its_table_and_the_map() -> None:
    assert len(PROBE_TABLE) <= probes.MAX_OPS
    assert len({(p.op, p.versions) for p in PROBE_TABLE}) == len(PROBE_TABLE)
    for probe in PROBE_TABLE:
        packed = pack_op(probe)
        assert len(packed) == 16 + 16 * probes.SLOTS
        table, _, slots, _ = struct.unpack_from("<IIII", packed)
        assert slots == len(probe.slots)
        if probe.table:
            assert RING_TABLES[table - 1] == probe.table
            known = {c.name for c in TABLES[probe.table].columns}
            assert set(probe.places) <= known


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="has no column nonsense"):
        pack_op(Probe("x", "cuda_calls", {"nonsense": Place(From.REGISTER, 0)}))
    for column, place in (
        ("direction", Place(From.STACK_ID, 0)),
        ("direction", Place(From.REGISTER, 0, bytes=8)),
        ("stream", Place(From.REGISTER, 6)),
        ("stream", Place(From.DEREFERENCE, 0, offset=1 << 16)),
        ("direction", Place(From.REGISTER, 0, mode=Mode.TIMES)),
        ("pid", Place(From.REGISTER, 0, mode=Mode.UNLESS)),
    ):
        with pytest.raises(ValueError, match=f"{column} (has 4 bytes|is at|cannot be)"):
            pack_op(Probe("x", "cuda_calls", {column: place}))
    with pytest.raises(ValueError, match="21 values, at most 20"):
        pack_op(Probe("x", "cuda_calls", {"stream": (Place(From.REGISTER, 0),) * (probes.SLOTS + 1)}))


@pytest.mark.parametrize(
    ("file", "library"),
    [
        ("libcudart.so.12", "cudart"),
        ("libcudart.so.13.0.96", "cudart"),
        ("libcudart-9335f6a2.so.12", "cudart"),
        ("libcuda.so.1", "driver"),
        ("libcuda.so.580.65.06", "driver"),
        ("libcudadebugger.so.1", None),
        ("libamdhip64.so.6.0.60002", "hip"),
        ("librccl.so.1.0.60002", "rccl"),
        ("libnccl.so.2", "nccl"),
        ("libtorch_cuda.so", "nccl"),
        ("libcudart_static.a", None),
        ("libcudart.so.12.evil", None),
        ("xlibcudart.so", None),
        ("libnccl-net.so", None),
    ],
)
def test_library_of_a_file(file: str, library: str | None) -> None:
    found = library_for(file)
    assert (found and found.name) == library


def test_description_names_every_probe_once() -> None:
    rows = probes.describe()
    assert len(rows) == sum(len(x.probes) for x in LIBRARIES)
    launch = next(r for r in rows if r["op"] == "cudaLaunchKernel")
    assert launch["values"] == {
        "function": "rdi",
        "grid_x": "rsi",
        "grid_y": "rsi >> 32",
        "grid_z": "rdx",
        "block_x": "rcx",
        "block_y": "rcx >> 32",
        "block_z": "r8",
        "shared_bytes": "stack[0]",
        "stream": "stack[1]",
    }
