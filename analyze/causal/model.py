"""What an effect, a cause and a detector of causes are.

An *effect* is time that a thread (or the ranks of a communicator, or a GPU) lost: the slow calls of one operation on
one thread, the lateness of one rank. A *cause* is time in which something held that can explain such a loss: the same
thread was preempted, its process waited for a disk. What a cause explains of an effect is their intersection, in ns,
and nothing else; what several causes cover is allotted once, by the order of their detectors
(:mod:`gpuaudit.analyze.causal.arbitration`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from gpuaudit.analyze import intervals, severity
from gpuaudit.analyze.finding import Link, Quantity, Severity, Threshold
from gpuaudit.analyze.intervals import Intervals

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

LEAST_SHARE = Threshold(
    "least_share", Fraction(1, 20), "share",
    "chosen: what covers less than a twentieth of an effect is printed in its table of shares, and is no chain",
)  # fmt: skip
LEAST_NS = Threshold(
    "least_ns", 1_000_000, "ns",
    "chosen: of the order of one scheduling slice; less than that in a whole capture is worth nobody's time",
)  # fmt: skip
HIGH = Threshold(
    "high_confidence_share", Fraction(4, 5), "share", "chosen: four fifths of the effect explained leave little"
)
MEDIUM = Threshold("medium_confidence_share", Fraction(1, 4), "share", "chosen: a quarter of the effect is a real part")

WAITED_FOR = "waited_for"
"""Kind of an effect that the core makes of a cause with a ``thread``: the time in which that thread was waited for."""

THRESHOLDS = (LEAST_SHARE, LEAST_NS, HIGH, MEDIUM, *severity.THRESHOLDS)
"""Of every detector of causes, beside its own."""


MAX_TEXT = 512
"""Characters of a name, culprit or value of a chain: names in evidence may have any length, sentences may not."""


def bounded(text: str) -> str:
    """A text of at most :data:`MAX_TEXT` characters; a longer one loses its end."""
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def _bound(subject: Effect | Cause, *names: str) -> None:
    for name in names:
        object.__setattr__(subject, name, bounded(getattr(subject, name)))
    object.__setattr__(subject, "subject", {k: bounded(v) for k, v in subject.subject.items()})


@dataclass(frozen=True)
class Effect:
    """Time lost. ``time`` is the denominator of every share of it.

    ``key`` names it in one capture and sorts; ``name`` reads "the slow calls of cudaMalloc on thread 12" and follows
    "of"; ``count`` is how many calls, arrivals or pauses it is made of; ``parts`` has one row (start, end) for each,
    in order of time, which may overlap where ``time`` does not. ``of_ns`` is the time in which it could have happened
    (the thread's observed time), the denominator of its gravity. ``evidence`` gives the ids of the rows behind it.
    """

    kind: str
    key: str
    name: str
    pid: int
    tid: int | None
    op: str
    time: Intervals
    parts: Intervals
    of_ns: int
    evidence: Callable[[], tuple[str, ...]]
    subject: Mapping[str, str] = field(default_factory=dict)
    code: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What speaks against reading anything into it: rows that are a selection, a median of few."""

    def __post_init__(self) -> None:
        _bound(self, "name", "op")

    @property
    def count(self) -> int:
        """Calls, arrivals or pauses."""
        return len(self.parts)

    @property
    def length_ns(self) -> int:
        """ns of the effect."""
        return intervals.measure(self.time)

    @property
    def thread(self) -> tuple[int, int | None]:
        """Process and thread it happened on."""
        return self.pid, self.tid


@dataclass(frozen=True)
class Cause:
    """Something that held for ``time`` on the effect's own thread, process, communicator or GPU.

    ``culprit`` tells causes of one detector apart and is printed ("stress-ng (812)", "disk 259:0"); causes of one
    detector and culprit on one process become one chain. ``text`` is a key of the declaration's texts; ``values`` go
    into it beside those that every chain has. ``evidence`` gives the rows behind the part that was allotted.
    ``gain_low_ns`` is what surely would be saved of the part that is allotted (0 unless the data shows the
    counterfactual); the most that could be is all of it.
    """

    culprit: str
    time: Intervals
    evidence: Callable[[Intervals], tuple[str, ...]]
    text: str = ""
    what: str = ""
    """Reads after "because": "its thread was runnable while stress-ng (812) ran on its CPU"."""
    values: Mapping[str, Quantity | str] = field(default_factory=dict)
    subject: Mapping[str, str] = field(default_factory=dict)
    against: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    gain_low_ns: Callable[[int], int] = lambda _: 0
    refuted: bool = False
    """The data itself speaks against it: confidence is low whatever the share."""
    because: tuple[str, ...] = ()
    """Keys of effects that this cause is made of (another rank's lateness): what explains them are the next links."""
    further: Callable[[Intervals], tuple[Link, ...]] = lambda _: ()
    """Links that go on from the part that was allotted: what the culprit itself did in that time."""
    thread: tuple[int, int] | None = None
    """The thread (process and thread id) that was waited for: what explains its time becomes further links."""
    ran: tuple[tuple[int, int], ...] = ()
    """Threads of the culprit, whose lines of code in that time are told where they were recorded."""
    observer: bool = False
    """The recorder's or another observer's doing: a row in the table of shares, and never a chain."""

    def __post_init__(self) -> None:
        _bound(self, "culprit", "what")
        values = {k: bounded(v) if isinstance(v, str) else v for k, v in self.values.items()}
        object.__setattr__(self, "values", values)


Causes = Mapping[str, Sequence[Cause]]
"""By :attr:`Effect.key`."""


@dataclass(frozen=True)
class Detector:
    """How a file of ``analyze/chains`` finds causes. ``precedence``: the lower one is allotted first.

    ``find`` gets every effect whose kind is in ``kinds``, at once, so that it can read its tables once, and gives the
    causes of each; or why it could not look. ``scope`` says in words what must be the same for a cause to count (the
    join). ``experiment`` is what would test it (pin, isolate, disable), ``refuted_by`` the observation that would
    refute it, ``next_step`` what to do at three in the morning.
    """

    precedence: int
    kinds: frozenset[str]
    scope: str
    find: Callable[[Context, Sequence[Effect]], Causes | NotEvaluated]
    refuted_by: str
    experiment: str
    next_step: str
    one_chain: bool = False
    """A culprit holds up many processes at once (the peers of a late rank): one chain tells of them all."""
    inferred: bool = False
    """The culprit itself, or what it cost, was not observed, and is what is left: confidence is medium at most."""
    gravest: Severity = "critical"
    """Its chains are no graver, whatever share of a thread's time they cover: less where nothing shows that it was
    time of the GPU's that was lost."""
