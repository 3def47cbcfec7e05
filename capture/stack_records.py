"""Records of the ring ``raw_stacks``, as capture/bpf/raw_stacks.h lays them out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RAW_RING_BYTES = 4 << 20
"""Room for 5,000 stacks that were not seen before, between two looks of the attacher."""

MAX_STACKS = 65_536
"""Stacks that the programs can know at once: ``MAX_STACKS`` of capture/bpf/stacks.h."""

RAW_WORDS = 96
NATIVE, PYTHON = 0, 1
PYTHON_FRAME_WORDS = 3
END_WHOLE, END_CUT, END_UNREADABLE, END_THREADS = range(4)
"""``enum raw_kind`` and ``enum stack_end``."""

KINDS = {NATIVE: "native", PYTHON: "python"}
"""The column ``kind`` of ``stack_frames``."""

MAX_FRAMES = {NATIVE: 64, PYTHON: 32}

ENDS = {
    NATIVE: {END_CUT: f"the stack is deeper than {MAX_FRAMES[NATIVE]} frames"},
    PYTHON: {
        END_CUT: f"the stack is deeper than {MAX_FRAMES[PYTHON]} frames",
        END_UNREADABLE: "the interpreter's memory could not be read from here on",
        END_THREADS: "the interpreter has too many threads: this one was not found among the first",
    },
}
"""Why a stack ends before its outermost frame."""

RAW_STACK = np.dtype([
    ("start_ns", "<u8"), ("stack", "<u8"), ("born_ns", "<u8"), ("exec_id", "<u8"), ("pid", "<u4"), ("tid", "<u4"),
    ("kind", "<u4"), ("end", "<u4"), ("count", "<u4"), ("pad", "<u4"), ("word", "<u8", (RAW_WORDS,)),
])  # fmt: skip

KNOWN_STACK = np.dtype([("start_ns", "<u8"), ("pid", "<u4"), ("tid", "<u4"), ("kind", "<u4"), ("state", "<u4")])
STACK_LOST = 2
"""Values of the map ``known_stacks``, and the state in which the ring had no room for the frames."""


@dataclass(frozen=True)
class RawStack:
    """One stack that was not seen before. ``words``: return addresses, or (code, instruction, line table) of frames."""

    start_ns: int
    stack: int
    pid: int
    tid: int
    kind: int
    run: tuple[int, int, int]
    """Process, its start and the number of its exec: the same for as long as its memory means the same."""
    words: tuple[int, ...]
    end: int

    @property
    def born_ns(self) -> int:
        """Start of the process, CLOCK_BOOTTIME."""
        return self.run[1]

    @property
    def frames(self) -> list[tuple[int, int, int]]:
        """(code object, instruction, line table) of each frame of a Python stack."""
        step = PYTHON_FRAME_WORDS
        return [(w[0], w[1], w[2]) for i in range(0, len(self.words), step) if (w := self.words[i : i + step])]


def decode(record: np.void) -> RawStack:
    """One record; counts are bounded by what a record holds."""
    kind, pid = int(record["kind"]), int(record["pid"])
    words = min(int(record["count"]), MAX_FRAMES.get(kind, 0)) * (PYTHON_FRAME_WORDS if kind == PYTHON else 1)
    run = pid, int(record["born_ns"]), int(record["exec_id"])
    return RawStack(
        int(record["start_ns"]), int(record["stack"]), pid, int(record["tid"]), kind, run,
        tuple(record["word"][:words].tolist()), int(record["end"]),
    )  # fmt: skip
