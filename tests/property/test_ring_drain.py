"""The numpy drain against a ring written the way the kernel writes it, for any order of events."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.bundle.errors import AuditError
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.ring import BUSY, DISCARD, HEADER_BYTES, RingReader

TABLE = "nccl_comms"
RECORD = TABLES[TABLE].record_dtype()
STEP = RECORD.itemsize + HEADER_BYTES
SIZE = mmap.PAGESIZE
FREE, SUBMITTED, DROPPED = "busy", "submitted", "discarded"


class KernelRing:
    """The producer's side, one record at a time: reserve, then submit or discard in any order."""

    def __init__(self, at: int) -> None:
        self.consumer = np.zeros(mmap.PAGESIZE // 8, "<u8")
        self.producer = np.zeros(mmap.PAGESIZE + 2 * SIZE, "u1")
        self.data = self.producer[mmap.PAGESIZE :]
        self.consumer[0] = self.produced = at
        self.producer[:8].view("<u8")[0] = at
        self.state: list[tuple[int, int, str]] = []
        """(position, serial number, state) of every record not yet drained, oldest first."""
        self.serial = 0

    def write(self, position: int, content: bytes) -> None:
        """The data area is mapped twice: a byte shows in both places."""
        for i, byte in enumerate(content):
            at = (position + i) % SIZE
            self.data[at] = self.data[at + SIZE] = byte

    def reserve(self) -> bool:
        if self.produced + STEP - int(self.consumer[0]) > SIZE - 1:
            return False
        self.serial += 1
        record = np.zeros(1, RECORD)
        record["seq"], record["tid"] = self.serial, self.serial * 7 % 65536
        self.write(self.produced, np.uint32(RECORD.itemsize | BUSY).tobytes() + bytes(4) + record.tobytes())
        self.state.append((self.produced, self.serial, FREE))
        self.produced += STEP
        self.producer[:8].view("<u8")[0] = self.produced
        return True

    def end(self, which: int, how: str) -> None:
        busy = [i for i, (_, _, state) in enumerate(self.state) if state == FREE]
        if busy:
            i = busy[which % len(busy)]
            position, serial, _ = self.state[i]
            self.write(position, np.uint32(RECORD.itemsize | (DISCARD if how == DROPPED else 0)).tobytes())
            self.state[i] = (position, serial, how)

    def expected(self, limit: int) -> list[int]:
        """Serial numbers a correct drain hands out now, and forgets them: the naive model."""
        out = []
        for _ in range(limit):
            if not self.state or self.state[0][2] == FREE:
                break
            _, serial, state = self.state.pop(0)
            if state == SUBMITTED:
                out.append(serial)
        return out


events = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(1, 20)),
        st.tuples(st.sampled_from([SUBMITTED, DROPPED]), st.integers(0, 60)),
        st.tuples(st.just("drain"), st.integers(1, 80)),
    ),
    max_size=120,
)


@settings(deadline=None)
@given(start=st.integers(0, 3 * SIZE // 8).map(lambda n: n * 8), events=events)
def test_same_as_the_naive_model(start: int, events: list[tuple[str, int]]) -> None:
    """No record lost, none twice, none before it is finished, order kept, over any number of wraps."""
    ring = KernelRing(start)
    reader = RingReader.over(ring.consumer, ring.producer, SIZE, TABLE)
    for what, n in [*events, ("drain", 80)]:
        if what == "reserve":
            for _ in range(n):
                ring.reserve()
        elif what == "drain":
            wanted = ring.expected(n)
            assert reader.drain(n)["seq"].tolist() == wanted
            oldest = ring.state[0][0] if ring.state else ring.produced
            assert int(ring.consumer[0]) == oldest
        else:
            ring.end(n, what)


def test_what_was_drained_does_not_change_when_the_ring_is_written_again() -> None:
    ring = KernelRing(0)
    reader = RingReader.over(ring.consumer, ring.producer, SIZE, TABLE)
    ring.reserve()
    ring.end(0, SUBMITTED)
    first = reader.drain()
    while ring.reserve():
        ring.end(0, SUBMITTED)
    reader.drain()
    while ring.reserve():
        ring.end(0, SUBMITTED)
    assert first["seq"].tolist() == [1]


def test_a_record_of_another_size_is_refused() -> None:
    ring = KernelRing(0)
    ring.reserve()
    ring.write(0, np.uint32(RECORD.itemsize + 8).tobytes())
    with pytest.raises(AuditError, match=f"not {RECORD.itemsize} bytes long"):
        RingReader.over(ring.consumer, ring.producer, SIZE, TABLE).drain()
