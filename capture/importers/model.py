"""What an importer is: a format that recognises a file by its first lines and turns its lines into rows of evidence.

Times of an imported bundle are those of the recording's own wall clock, in ns since 1970-01-01 UTC; they stand where a
capture has CLOCK_BOOTTIME. What a format holds and the tables cannot is named in :attr:`Told.not_carried`.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gpuaudit.capture.importers.foreign_sqlite import ForeignDatabase
    from gpuaudit.capture.importers.reading import Recording

UNREADABLE_TOLD = 20
"""Lines that could not be read are all counted; this many are told with their number and reason."""

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MAX_TIME_NS = 1 << 62
"""As in ``analyze/store.py``: the year 2116; a later time is not a recording's."""


@dataclass(frozen=True)
class Request:
    """What the user says of recordings that do not tell it themselves.

    ``utc_offset_ns``: how far their local time is ahead of UTC. ``start_ns`` (UTC since 1970) and ``interval_ns``: of
    a log without times. ``settings``: key and value of what an engine was set to, where its metrics do not say.
    """

    utc_offset_ns: int = 0
    start_ns: int | None = None
    interval_ns: int | None = None
    settings: tuple[tuple[str, str], ...] = ()


class RowSink(Protocol):
    """Where rows go: the recorder, or a test's list."""

    def add_records(self, table: str, records: Sequence[Mapping[str, object]]) -> None:
        """Rows of one table."""

    def gap(
        self, source: str, reason: str, start_ns: int, end_ns: int | None, *, table: str | None = None,
        pid: int | None = None,
    ) -> None:  # fmt: skip
        """Time in which the recording has nothing."""


def unrecorded(index: int) -> str:
    """What stands for the UUID of a GPU that a recording names by its index alone."""
    return f"index {index}, UUID not recorded"


@dataclass
class Told:
    """What an importer says of one file once it is read.

    ``file`` is its number in the import, and the number of the engine it tells of; ``series_numbers`` is shared by the
    files of one import. ``uuids`` are the GPUs that the beginnings of all files name, by their index.
    """

    source: str
    file: int = 0
    series_numbers: Iterator[int] = field(default_factory=count)
    uuids: Mapping[int, Sequence[str]] = field(default_factory=dict)
    pids: dict[tuple[int, int | None], int] = field(default_factory=dict)
    """Shared by the files of one import: (process id and rank, as recorded) → the process id that stands for it."""
    wall_clock: bool = True
    """Whether its times are wall-clock times; of a recording with an axis of its own they are not."""
    facts: dict[str, object] = field(default_factory=dict)
    """What the recording says of itself beside its rows, as canonical JSON can hold it; kept with the import."""
    rows: Counter[str] = field(default_factory=Counter)
    first_ns: int | None = None
    last_ns: int | None = None
    lines: int = 0
    unreadable: int = 0
    examples: list[str] = field(default_factory=list)
    not_carried: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    sources: set[str] = field(default_factory=set)
    """Sources that the file tells of, where they are others than ``source`` alone."""
    weaknesses: list[dict[str, object]] = field(default_factory=list)
    """What lowers the grade: ``grade`` (B to D), ``text`` and the ``tables`` it concerns; see :meth:`weak`."""
    _refused_line: int = -1

    def at(self, time_ns: int) -> None:
        """A time the recording tells of."""
        self.first_ns = time_ns if self.first_ns is None else min(self.first_ns, time_ns)
        self.last_ns = time_ns if self.last_ns is None else max(self.last_ns, time_ns)

    def assume(self, what: str) -> None:
        """Something the import takes for granted; each stands once."""
        if what not in self.assumptions:
            self.assumptions.append(what)

    def weak(self, grade: str, text: str, tables: Sequence[str] = (), **more: str) -> None:
        """The recording cannot support all that complete rows could: why, and what grade that allows at best.

        ``more``: ``kind="selection"`` where rows of the tables are one, with ``complete_until_ns``; ``kind="clocks"``
        where times of different processes are not of one clock.
        """
        self.weaknesses.append({"grade": grade, "text": text[:400], "tables": list(tables), **more})

    def uuid_of(self, index: int) -> str:
        """UUID of a GPU that this file names by its index alone: the only one another file names there, if any."""
        known = self.uuids.get(index, ())
        if len(known) == 1:
            self.assume(f"GPU {index} is taken to be {known[0]}, the only GPU that a file of this import has there.")
            return known[0]
        if known:
            self.assume(f"GPU {index} has no UUID, and other files have several there: it stands as a GPU of its own.")
        return unrecorded(index)

    def refuse(self, line: int, reason: str) -> None:
        """A line that could not be read, or not be used; each counts once."""
        if line == self._refused_line:
            return
        self._refused_line = line
        self.unreadable += 1
        if len(self.examples) < UNREADABLE_TOLD:
            self.examples.append(f"line {line}: {reason}"[:300])


Line = tuple[int, str]
"""Number from 1, and text without its end."""


class Reader(Protocol):
    """Reads the lines of one file, in order, holding a bounded number of them."""

    def __call__(self, name: str, lines: Iterable[Line], sink: RowSink, request: Request, told: Told) -> None:
        """Hand over every row; InputUnusable when the whole file cannot be one of the format."""


class FileReader(Protocol):
    """Reads one file that is not made of lines: it takes all of :meth:`Recording.blocks`, or digests it otherwise."""

    def __call__(self, recording: Recording, sink: RowSink, request: Request, told: Told) -> None:
        """Hand over every row; InputUnusable when the whole file cannot be one of the format."""


def not_of_lines(name: str, lines: Iterable[Line], sink: RowSink, request: Request, told: Told) -> None:  # noqa: ARG001
    """``read`` of a format that is read by ``read_file``."""
    raise AssertionError(f"{name}: the format is not made of lines")


@dataclass(frozen=True)
class About:
    """What a database says of where it was recorded, for leaf 0: GPUs, and facts of the host."""

    gpus: list[dict[str, object]] = field(default_factory=list)
    host: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One format: its name, the source its rows stand for, how it is recognised, and what reads it.

    ``gpus`` lists the GPUs that the first lines tell of, for leaf 0. ``read_file``, where there is one, reads the file
    in place of ``read``.
    """

    name: str
    source: str
    recognises: Callable[[Sequence[str]], bool]
    read: Reader
    gpus: Callable[[Sequence[str]], list[dict[str, object]]] = lambda head: []  # noqa: ARG005 - the default ignores it
    read_file: FileReader | None = None
    tables: frozenset[str] = frozenset()
    """Of a format in an SQLite file: tables that it has, and by which it is recognised."""
    about: Callable[[ForeignDatabase], About] = lambda database: About()  # noqa: ARG005 - the default ignores it
