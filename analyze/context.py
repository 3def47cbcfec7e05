"""What a rule or chain detector gets and what it gives back.

A rule is one pure function, ``evaluate(context) -> Found | NotEvaluated``, beside its ``DECLARATION``. What several of
them need (time of each GPU, collectives put side by side) is read once, here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from gpuaudit.analyze import collectives, gpu_time, lateness, unlisted, waits
from gpuaudit.analyze.barriers import Barriers, read_barriers
from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.causal.detect import Findings, detect
from gpuaudit.analyze.causal.states import Place, States
from gpuaudit.analyze.collectives import Cohort, Collectives
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.finding import Chain, Finding, Group, RuleOutcome
from gpuaudit.analyze.gpu_time import GpuTime
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.policy import Policy
from gpuaudit.analyze.prices import PriceBook
from gpuaudit.analyze.quality import Quality
from gpuaudit.analyze.store import Store
from gpuaudit.analyze.syncs import Syncs
from gpuaudit.analyze.window import Window

if TYPE_CHECKING:
    from gpuaudit.analyze.call_meanings import Meaning
    from gpuaudit.analyze.silence import Seen
    from gpuaudit.analyze.steps import Steps

LATE_RANK = "late_rank"
"""The detector whose thresholds say what is late, also for the charts."""

MAX_NAME = 256
"""Characters of a process's name; the kernel has 15, and a stranger's bundle may hold anything."""

UNNUMBERED = ""
"""Id of a finding or chain until the analysis numbers them all, gravest first."""


@dataclass(frozen=True)
class Found:
    """Evaluated: what was found (nothing means clear), and one sentence on what was looked at."""

    items: Sequence[Finding | Chain]
    reason: str


@dataclass(frozen=True)
class NotEvaluated:
    """Could not be evaluated, or not for all there was: why. Never the same as clear."""

    reason: str


Outcome = Found | NotEvaluated


@dataclass
class Context:
    """The evidence, its window and quality, the book that hands out evidence ids, and what people gave with it.

    ``policy`` are thresholds, ``catalogue`` facts on GPUs and models, ``prices`` what a GPU-hour costs.
    """

    store: Store
    window: Window
    quality: Quality
    book: EvidenceBook
    policy: Policy = field(default_factory=Policy.default)
    catalogue: Catalogue = field(default_factory=Catalogue.load)
    prices: PriceBook = field(default_factory=PriceBook)
    findings: list[Finding] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    outcomes: list[RuleOutcome] = field(default_factory=list)
    """Numbered findings, their groups, and what became of each rule, for sections: empty while rules are evaluated."""
    unjudged: dict[str, frozenset[int]] = field(default_factory=dict)
    """Per rule on inference engines the numbers of those it could not judge; filled while rules are evaluated."""
    states: dict[Place, States | None] = field(default_factory=dict, repr=False)
    """What threads did off their CPUs in sets of time, as far as it was asked for (``causal/states.py``)."""
    names: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        """Read the names of processes; of several names of one process id the last one counts."""
        rows = self.store.sql("SELECT pid, comm FROM processes ORDER BY seen_ns, leaf, row")
        self.names = {int(pid): str(comm)[:MAX_NAME] for pid, comm in rows}

    @cached_property
    def gpus(self) -> list[GpuTime]:
        """Time of every GPU with NVML samples."""
        return gpu_time.read_gpus(self.store, self.window.asleep)

    @cached_property
    def gpus_by_pid(self) -> dict[int, list[GpuTime]]:
        """GPUs on which NVML listed each process at any time."""
        out: dict[int, list[GpuTime]] = {}
        for gpu in self.gpus:
            for pid in sorted(frozenset().union(*set(gpu.holders))):
                out.setdefault(pid, []).append(gpu)
        return out

    @cached_property
    def collectives(self) -> list[Collectives]:
        """Every communicator with an identity."""
        cohort = Cohort(
            int(self.policy.value(collectives.COHORT, LATE_RANK)),
            Fraction(self.policy.value(collectives.QUORUM, LATE_RANK)),
        )
        return self._collectives(cohort)

    @cached_property
    def observers(self) -> frozenset[int]:
        """Processes that watched: the recorder, what attached its probes, and other tools that observe."""
        rows = self.store.sql("SELECT DISTINCT pid FROM processes WHERE role IN ('recorder', 'attacher', 'observer')")
        return frozenset(int(pid) for (pid,) in rows)

    @cached_property
    def aligned(self) -> list[Collectives]:
        """The same however few ranks were observed: for what needs arrivals side by side and judges nobody late."""
        if not any(c.not_evaluated for c in self.collectives):
            return self.collectives
        few = Cohort(1, Fraction(0))
        return self._collectives(few)

    def _collectives(self, cohort: Cohort) -> list[Collectives]:
        lost, clocks = self.quality.lost("nccl_calls"), unlisted.of_several_clocks(self, "nccl_calls")
        return collectives.read_collectives(self.store, self._syncs, lost, cohort, several_clocks=clocks)

    @cached_property
    def barriers(self) -> dict[int, Barriers]:
        """Per process its collectives, and where its host waits for each."""
        return read_barriers(self.store, self._syncs)

    @cached_property
    def _syncs(self) -> Syncs:
        """Calls in which hosts wait for their GPUs."""
        return Syncs(self.store)

    @cached_property
    def late_limits(self) -> lateness.Limits:
        """What makes an arrival late, as the policy has it."""
        return lateness.Limits(
            int(self.policy.value(lateness.FLOOR, LATE_RANK)),
            Fraction(self.policy.value(lateness.K, LATE_RANK)),
            self.window.sleeps,
        )

    @cached_property
    def engine_runs(self) -> list[EngineRun]:
        """Every inference engine that was scraped, with its windows; one in the order of its number."""
        from gpuaudit.analyze.inference.run import read_runs  # noqa: PLC0415 - it reads through this class

        return read_runs(self)

    @cached_property
    def causal(self) -> Findings:
        """Every effect, what explains it, and the chains that come of it."""
        return detect(self)

    def means(self, meaning: Meaning) -> str:
        """SQL condition on ``op``: the names of this capture that mean this."""
        return self.store.means(meaning)

    @cached_property
    def silences(self) -> list[Seen]:
        """Every process that used a GPU, with the stretches in which it made no call, as long as the policy has it."""
        from gpuaudit.analyze.rules.api_silence import DECLARATION, SILENCE  # noqa: PLC0415 - rules import this class
        from gpuaudit.analyze.silence import read_silences  # noqa: PLC0415 - the same

        return read_silences(self, int(self.policy.value(SILENCE, DECLARATION.id)))

    @cached_property
    def steps(self) -> list[Steps]:
        """Steps of every thread that gives a GPU work and waits for it again and again."""
        from gpuaudit.analyze.steps import read_steps  # noqa: PLC0415 - it imports this class

        return read_steps(self)

    @cached_property
    def waiting(self) -> dict[int, list[tuple[str, Intervals]]]:
        """Per process id: (communicator, time inside a collective that not every observed rank had entered yet)."""
        out: dict[int, list[tuple[str, Intervals]]] = {}
        for c in self.collectives:
            times = waits.waiting_for_peers(c, self.window.end_ns)
            for pid, time in zip(c.pids[: len(times)], times, strict=True):
                out.setdefault(pid, []).append((c.name, time))
        return out

    @cached_property
    def without_identity(self) -> list[tuple[int, int, int]]:
        """(process, handle, calls) of communicators whose making was not seen."""
        rows = self.store.sql(
            "SELECT pid, comm_handle, count(*) FROM nccl_calls WHERE comm_id IS NULL AND "
            "pid NOT IN (SELECT pid FROM processes WHERE role IN ('recorder', 'attacher')) GROUP BY 1, 2 ORDER BY 1, 2"
        )
        return [(int(p), int(h), int(n)) for p, h, n in rows]

    def process_name(self, pid: int) -> str:
        """The kernel's name of a process, or that it was not recorded."""
        return self.names.get(pid, "name not recorded")
