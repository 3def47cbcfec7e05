"""What a row of the probe table is: a function, the names it is exported under, and where each value is found.

Places are those of the System V ABI for x86-64: six integer registers, then the stack; a ``dim3`` takes two registers
(x and y, then z); a structure of more than 16 bytes that is passed by value (``ncclUniqueId``, ``cudaExtent``) lies on
the stack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")


class From(IntEnum):
    """Where a value is found; ``enum from`` in capture/bpf/calls.h. What a pointer leads to is null where it cannot be
    read."""

    REGISTER = 1
    STACK = 2
    STACK_ID = 3
    """Fold of the 128 bytes on the stack."""
    POINTEE = 4
    """What the pointer in a register leads to, at return and after success."""
    DEREFERENCE = 5
    """What the pointer in a register leads to, at entry."""
    CONSTANT = 6
    """The number ``index``: what the function's name says (cuMemcpyHtoD)."""
    POINTER_ID = 7
    """Fold of the 128 bytes that the pointer in a register leads to, at entry."""
    POINTEE_ID = 8
    """The same at return and after success."""


class Mode(IntEnum):
    """What a value does to its column; ``enum mode`` in capture/bpf/calls.h."""

    SET = 0
    TIMES = 1
    """The column is multiplied by it; null where it cannot be read or the product leaves 64 bits."""
    UNLESS = 2
    """No value: the column is null where this is not 0, or cannot be read."""


class Flag(IntFlag):
    """What else a probe does; ``enum op_flags`` in capture/bpf/calls.h."""

    NONE = 0
    FIND_COMM = 1
    MAKE_COMM = 2
    DROP_COMM = 4
    SIZE = 8
    COUNT_ONLY = 16
    SPLIT_COMM = 32
    """The communicator made has an identity that follows from its parent's, the number of the split and the colour."""
    LEARN_COMM = 64
    """Rank or size that NCCL tells is kept with the communicator."""
    MAKE_ALL = 128
    """The pointer leads to ``nranks`` communicators, in the order of their ranks."""
    STATE = 256
    """The call changes what exists: it is a row of its own also when calls are too many for that."""
    PARENT_COMM = 512
    """The communicator in ``parent_handle`` is looked up at entry."""


@dataclass(frozen=True)
class Place:
    """Where one value lies. ``index``: register 0–5 (rdi, rsi, rdx, rcx, r8, r9), the n-th 8 bytes of the stack
    arguments, or the constant; ``offset``: bytes behind the pointer; the value is shifted right by ``shift_bits``.
    ``bytes``: 1, 2 or 4 for an argument of so many bytes that feeds a wider column (the rest of its place is
    undefined), 0 for as many as the column has."""

    source: From
    index: int
    shift_bits: int = 0
    offset: int = 0
    mode: Mode = Mode.SET
    bytes: int = 0

    def __str__(self) -> str:
        register = REGISTERS[self.index % 6]
        behind = f"{register} + {self.offset}" if self.offset else register
        pointed = f"*({behind})" if self.offset else f"*{register}"
        text = {
            From.REGISTER: register,
            From.STACK: f"stack[{self.index}]",
            From.STACK_ID: f"fold of 128 bytes at stack[{self.index}]",
            From.POINTEE: f"{pointed} at return",
            From.DEREFERENCE: pointed,
            From.CONSTANT: str(self.index),
            From.POINTER_ID: f"fold of 128 bytes at {behind}",
            From.POINTEE_ID: f"fold of 128 bytes at {behind} at return",
        }[self.source]
        if self.shift_bits:
            text = f"{text} >> {self.shift_bits}"
        return {Mode.SET: text, Mode.TIMES: f"× {text}", Mode.UNLESS: f"null unless {text} is 0"}[self.mode]


Places = Place | tuple[Place, ...]
"""Several places of one column: factors and conditions, after the first."""


@dataclass(frozen=True)
class Probe:
    """One watched function. ``op``: the API's own name; ``symbols``: the names it is exported under, any of them."""

    op: str
    table: str
    places: Mapping[str, Places] = field(default_factory=dict)
    symbols: tuple[str, ...] = ()
    flags: Flag = Flag.NONE
    success: tuple[int, ...] = (0,)
    """Return codes after which what a pointer argument leads to is valid."""
    versions: str = ""
    """Regular expression for the base name of the file where the same name has other arguments in other versions."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every symbol to look for, the first one that is found is probed."""
        return self.symbols or (self.op,)

    @property
    def slots(self) -> tuple[tuple[str, Place], ...]:
        """(column, place) of every value to read, in order."""
        return tuple(
            (name, place)
            for name, places in self.places.items()
            for place in (places if isinstance(places, tuple) else (places,))
        )

    def is_of(self, file_name: str) -> bool:
        """Whether the row describes the function as the file with this base name exports it."""
        return not self.versions or re.fullmatch(self.versions, file_name) is not None


@dataclass(frozen=True)
class Library:
    """A library to look for among the mappings of a process."""

    name: str
    source: str
    """The source of evidence it feeds: cuda or nccl."""
    files: str
    """Regular expression for the file's base name."""
    exports: str
    """Regular expression for the names that count as its interface, for "exported but not observed"."""
    probes: tuple[Probe, ...]
    note: str = ""
    """What has not been tested about these rows."""

    def matches(self, file_name: str) -> bool:
        """Whether a mapped file with this base name is the library."""
        return re.fullmatch(self.files, file_name) is not None

    @property
    def tables(self) -> tuple[str, ...]:
        """Tables its probes fill."""
        return tuple(dict.fromkeys(p.table for p in self.probes))
