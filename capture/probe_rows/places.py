"""Words to write rows with: places, what a pointer leads to, factors, twins of a function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gpuaudit.capture.probe_types import Flag, From, Mode, Place, Places, Probe

RDI, RSI, RDX, RCX, R8, R9 = (Place(From.REGISTER, i) for i in range(6))


def stack(index: int) -> Place:
    """The ``index``-th 8 bytes of the arguments on the stack."""
    return Place(From.STACK, index)


def at(register: Place, offset: int = 0) -> Place:
    """What the pointer in a register leads to when the function is entered."""
    return Place(From.DEREFERENCE, register.index, offset=offset)


def out(register: Place, offset: int = 0) -> Place:
    """What the pointer in a register leads to when the function has succeeded."""
    return Place(From.POINTEE, register.index, offset=offset)


def constant(number: int) -> Place:
    """A number that the function's name says."""
    return Place(From.CONSTANT, number)


def upper(place: Place) -> Place:
    """The upper half of a register that holds two 32-bit members of a structure."""
    return replace(place, shift_bits=32)


def narrow(place: Place) -> Place:
    """A 32-bit argument for a column of 64 bits."""
    return replace(place, bytes=4)


def product(first: Place, *factors: Place) -> tuple[Place, ...]:
    """The product of these values."""
    return (first, *(replace(f, mode=Mode.TIMES) for f in factors))


def unless(*conditions: Place) -> tuple[Place, ...]:
    """To be added to the places of a column: null where one of these is not 0."""
    return tuple(replace(c, mode=Mode.UNLESS) for c in conditions)


def names(words: str) -> list[str]:
    """``"cudaMemcpy _ptds cudaX"``: names, and suffixes of the name before, whose twins have the same arguments."""
    found: list[str] = []
    base = ""
    for word in words.split():
        if not word.startswith("_") or word.startswith("__"):
            base = word
        found.append(base + word if word is not base else word)
    return found


def rows(words: str, places: Mapping[str, Places], flags: Flag = Flag.NONE) -> tuple[Probe, ...]:
    """One row of ``cuda_calls`` for each of the names in ``words`` (:func:`names`)."""
    return tuple(Probe(op, "cuda_calls", places, flags=flags) for op in names(words))


def changes(words: str, /, **places: Places) -> tuple[Probe, ...]:
    """Rows of a call that changes what exists: memory, streams, events, graphs, modules, contexts."""
    return rows(words, places, Flag.STATE)


def calls(words: str, /, **places: Places) -> tuple[Probe, ...]:
    """Rows of any other call."""
    return rows(words, places)


def only(versions: str, probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """Rows that describe a function as the files with such names export it."""
    return tuple(replace(p, versions=versions) for p in probes)
