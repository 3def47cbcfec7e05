"""Draining a BPF ring with numpy, straight off the mapped pages, and reading the loss counters beside it.

The kernel maps the data area twice in a row, so that a batch never splits at the end of the ring. Each record has an
8-byte header (length, BUSY and DISCARD bits, page offset); every ring here holds records of one size. Works in a
process without privileges that inherited the descriptors.

The order of reads and of the one 8-byte store relies on x86-64 (loads are not reordered with loads, nor stores with
earlier loads); on another architecture :class:`RingReader` refuses.
"""

from __future__ import annotations

import ipaddress
import mmap
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpuaudit.bundle.columns import ColumnData, Rows, null_column
from gpuaudit.bundle.errors import AuditError, HostUnfit
from gpuaudit.bundle.table import NUMPY_DTYPE, Column
from gpuaudit.bundle.tables import RING_TABLES, TABLES
from gpuaudit.capture.loss_episodes import LossCount
from gpuaudit.capture.probes import PROBE_TABLE
from gpuaudit.capture.ring_columns import added_column

BUSY = 1 << 31
DISCARD = 1 << 30
HEADER_BYTES = 8
"""BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT, BPF_RINGBUF_HDR_SZ (include/uapi/linux/bpf.h)."""


@dataclass(frozen=True)
class RingDescription:
    """One ring, as it can be passed to another process: the map's descriptor and its size."""

    table: str
    fd: int
    size_bytes: int


class RingReader:
    """The consumer's side of one ring: a table's, or with ``record`` one of another kind, whose name ``table`` is then.

    One reader per ring.
    """

    def __init__(self, fd: int, size_bytes: int, table: str, record: np.dtype[np.void] | None = None) -> None:
        if platform.machine() != "x86_64":
            machine = platform.machine()
            raise HostUnfit(f"the ring drain needs x86_64, this is {machine}", hint="capture on an x86_64 host")
        page = mmap.PAGESIZE
        try:
            consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
            producer = mmap.mmap(fd, page + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        except (OSError, ValueError) as e:
            raise HostUnfit(f"the ring of {table} cannot be mapped: {e}") from None
        record = TABLES[table].record_dtype() if record is None else record
        self._attach(np.frombuffer(consumer, "<u8", 1), np.frombuffer(producer, "u1"), size_bytes, table, record)

    @classmethod
    def over(cls, consumer: np.ndarray, producer: np.ndarray, size_bytes: int, table: str) -> RingReader:
        """A reader over arrays laid out as the kernel maps them, for tests."""
        reader = cls.__new__(cls)
        reader._attach(consumer, producer, size_bytes, table, TABLES[table].record_dtype())
        return reader

    def _attach(
        self, consumer: np.ndarray, producer: np.ndarray, size_bytes: int, table: str, record: np.dtype[np.void]
    ) -> None:
        self._record = record
        self._entry = np.dtype([("header", "<u4"), ("page", "<u4"), ("record", self._record)])
        self._consumer = consumer
        self._producer = producer[:8].view("<u8")
        self._data = producer[mmap.PAGESIZE :]
        self._size_bytes = size_bytes
        self.table = table

    @property
    def filled(self) -> float:
        """Share of the ring that is in use, from 0 to 1."""
        return (int(self._producer[0]) - int(self._consumer[0])) / self._size_bytes

    def drain(self, max_records: int = 1 << 17) -> np.ndarray:
        """Up to ``max_records`` finished records, copied; the ring's space is free again when this returns.

        Stops at the first record that its writer has not finished (BUSY); drops discarded ones.
        """
        step = self._entry.itemsize
        consumed = int(self._consumer[0])
        count = min((int(self._producer[0]) - consumed) // step, max_records)
        if count <= 0:
            return np.empty(0, self._record)
        at = consumed & (self._size_bytes - 1)
        entries = self._data[at : at + count * step].view(self._entry)
        headers = entries["header"].copy()  # read once: a header only ever changes from BUSY to finished
        busy = np.flatnonzero(headers & BUSY)
        if busy.size:
            count = int(busy[0])
            entries, headers = entries[:count], headers[:count]
        if np.any((headers & ~np.uint32(DISCARD)) != self._record.itemsize):
            raise AuditError(f"the ring of {self.table} holds a record that is not {self._record.itemsize} bytes long")
        keep = (headers & DISCARD) == 0
        raw = entries.view("u1").reshape(count, step)[:, HEADER_BYTES:]
        copied = raw.copy() if keep.all() else raw[keep]  # before the space is given back
        records = copied.view(self._record).reshape(-1)
        self._consumer[0] = consumed + count * step
        return records


_COUNTER_WORDS = 6
"""``struct table_counter`` of capture/bpf/shared.h: the fields of :class:`LossCount`, in their order."""


class LossCounters:
    """The counters that the programs keep per table and CPU, read through a shared mapping: no privilege needed."""

    def __init__(self, fd: int) -> None:
        entries = _max_entries(fd)
        size = -(-entries * _COUNTER_WORDS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            pages = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        except (OSError, ValueError) as e:
            raise HostUnfit(f"the loss counters cannot be mapped: {e}") from None
        counts = np.frombuffer(pages, "<u8", entries * _COUNTER_WORDS)
        self._counts = counts.reshape(entries // len(RING_TABLES), len(RING_TABLES), _COUNTER_WORDS)

    @property
    def cpus(self) -> int:
        """CPUs that are counted, absent ones included."""
        return int(self._counts.shape[0])

    def snapshot(self) -> np.ndarray:
        """The counters as they are: CPU × table (as in :data:`RING_TABLES`) × fields of :class:`LossCount`."""
        return self._counts.copy()

    def read(self) -> dict[tuple[str, int], LossCount]:
        """(table, CPU) → counters. Read after a drain, ``seen − lost`` is at least what was drained."""
        return loss_counts(self.snapshot())


def loss_counts(snapshot: np.ndarray, field: int = 0) -> dict[tuple[str, int], LossCount]:
    """(table, CPU) → counters, of those whose ``field`` (0: seen, 1: lost) is not 0."""
    return {
        (RING_TABLES[table], cpu): LossCount(*snapshot[cpu, table].tolist())
        for cpu, table in np.argwhere(snapshot[:, :, field]).tolist()
    }


def _max_entries(fd: int) -> int:
    """Size of a map, from /proc/self/fdinfo: unlike bpf(2), that is open to an unprivileged holder of the fd."""
    text = Path(f"/proc/self/fdinfo/{fd}").read_text("ascii")
    found = re.search(r"^max_entries:\s*(\d+)$", text, re.MULTILINE)
    if found is None:
        raise HostUnfit(f"descriptor {fd} is not a BPF map")
    return int(found.group(1))


GATHER_RECORDS = 2048
"""Records whose fields are gathered into columns at a time: 400 KB of them stay in a core's cache meanwhile."""


def to_rows(table: str, records: np.ndarray) -> Rows:
    """Columns of the table from drained records: validity from ``valid_mask``, names of ops, names of threads."""
    definition = TABLES[table]
    mask = np.ascontiguousarray(records["valid_mask"])
    ever, always = int(np.bitwise_or.reduce(mask)), int(np.bitwise_and.reduce(mask))
    bit = {c.name: 1 << i for i, c in enumerate(definition.nullable_in_ring)}
    wanted = [c for c in definition.columns if c.in_ring and (c.name not in bit or bit[c.name] & ever)]
    fields = _gather(records, [c.name for c in wanted])
    rows: Rows = {}
    for c in definition.columns:
        if not c.in_ring:
            rows[c.name] = added_column(table, c.name, records)
        elif c.name not in fields:
            rows[c.name] = null_column(c, len(records))
        else:
            some = c.name in bit and not bit[c.name] & always
            rows[c.name] = _column(c, fields[c.name], (mask & np.uint32(bit[c.name])) != 0 if some else None)
    return rows


def _gather(records: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Fields of the records as arrays of their own."""
    fields = {name: np.empty(len(records), records.dtype[name]) for name in names}
    for start in range(0, len(records), GATHER_RECORDS):
        part = records[start : start + GATHER_RECORDS]
        for name, values in fields.items():
            values[start : start + len(part)] = part[name]
    return fields


def _column(column: Column, values: np.ndarray, valid: np.ndarray | None) -> ColumnData:
    if column.ring == "op":
        return _op_names(values, valid)
    if column.ring == "comm":
        return _comm_names(values, valid)
    if column.ring == "address":
        return _addresses(values, valid)
    values = values.astype(NUMPY_DTYPE[column.type], copy=False)
    if valid is not None:
        values[~valid] = 0
    return ColumnData(values, valid)


def _op_names(ids: np.ndarray, valid: np.ndarray | None) -> ColumnData:
    if valid is not None:
        ids[~valid] = 0
    highest = int(ids.max(initial=0))
    if highest >= len(PROBE_TABLE):
        raise AuditError(f"a record names op {highest}, the probe table has {len(PROBE_TABLE)}")
    used = np.flatnonzero(np.bincount(ids, minlength=1))
    codes = np.zeros(highest + 1, NUMPY_DTYPE["text"])
    codes[used] = np.arange(len(used))
    return ColumnData(codes[ids], valid, tuple(PROBE_TABLE[i].op for i in used.tolist()))


def _comm_names(raw: np.ndarray, valid: np.ndarray | None) -> ColumnData:
    """Thread names: bytes up to the first NUL; what is not UTF-8 is shown as backslash escapes."""
    if valid is not None:
        raw = np.where(valid, raw, b"")
    used, codes = np.unique(raw, return_inverse=True)
    texts = [bytes(name).split(b"\0")[0].decode("utf-8", "backslashreplace") for name in used.tolist()]
    names = tuple(dict.fromkeys(texts))  # names that differ only after their NUL are one
    place = np.array([names.index(t) for t in texts] or [0], dtype=NUMPY_DTYPE["text"])
    return ColumnData(place[codes], valid, names)


def _addresses(raw: np.ndarray, valid: np.ndarray | None) -> ColumnData:
    """IPv6 addresses as text, those that carry an IPv4 one as that."""
    used, codes = np.unique(raw.view("S16"), return_inverse=True)  # numpy drops trailing NULs of S16: put back below
    texts = []
    for packed in used.tolist():
        address = ipaddress.IPv6Address(bytes(packed).ljust(16, b"\0"))
        texts.append(str(address.ipv4_mapped or address))
    return ColumnData(codes.reshape(-1).astype(NUMPY_DTYPE["text"]), valid, tuple(texts))
