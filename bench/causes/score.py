"""What an analysis claims of a scenario, held against what was planted.

A *claim* is a cause and the process that lost time to it; one that was planted is right, one that would be right to say
too (the same thing seen from elsewhere) is neither counted nor held against anybody, every other is wrong. Precision is
right claims / (right + wrong), recall is planted causes that were claimed / all planted. A share error is the distance,
in percentage points, between the share of the lengthened calls' time that a claim explains and the planted one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from gpuaudit.analyze.causal.model import LEAST_NS, LEAST_SHARE
from gpuaudit.analyze.context import Context, Found
from gpuaudit.analyze.finding import Chain, Finding
from gpuaudit.analyze.registry import Plugin, plugins
from tests.corpus.model import Played

Claims = Mapping[tuple[str, int], Fraction | None]
"""(cause, process) → share of the effect that it is said to explain; process 0 where it is about a GPU or the host."""

STATES = frozenset({"clock_caps", "pcie_link", "xid", "memory_errors", "power_cap", "nvlink"})
"""Rules on the state of a GPU that name a cause of slowness; what other rules find is not counted here."""

LATE_RANK = "late_rank"


@dataclass
class Score:
    """Counts of one cause or of all, and the errors of the shares that were right."""

    right: int = 0
    wrong: int = 0
    missed: int = 0
    errors: list[Fraction] = field(default_factory=list)

    @property
    def precision(self) -> Fraction | None:
        """None where nothing was claimed."""
        return Fraction(self.right, self.right + self.wrong) if self.right + self.wrong else None

    @property
    def recall(self) -> Fraction | None:
        """None where nothing was planted."""
        return Fraction(self.right, self.right + self.missed) if self.right + self.missed else None

    def add(self, other: Score) -> None:
        """Count another's as well."""
        self.right, self.wrong, self.missed = (
            self.right + other.right, self.wrong + other.wrong, self.missed + other.missed,
        )  # fmt: skip
        self.errors += other.errors


@dataclass(frozen=True)
class Judged:
    """One scenario: score per cause, what was wrongly claimed, what was not."""

    played: Played
    scores: Mapping[str, Score]
    wrong: Sequence[tuple[str, int]]
    missed: Sequence[tuple[str, int]]


def judge(played: Played, claims: Claims) -> Judged:
    """Hold claims against the truth of a scenario."""
    scores: dict[str, Score] = defaultdict(Score)
    wrong, missed = [], []
    for cause, pid in sorted(played.truth):
        hit = next((k for k in sorted(claims) if _same(k, (cause, pid))), None)
        if hit is None:
            scores[cause].missed += 1
            missed.append((cause, pid))
            continue
        scores[cause].right += 1
        said, planted = claims[hit], played.share(cause, pid)
        if said is not None and planted is not None:
            scores[cause].errors.append(abs(said - planted) * 100)
    for key in sorted(claims):
        if not any(_same(key, known) for known in (*played.truth, *played.also)):
            scores[key[0]].wrong += 1
            wrong.append(key)
    return Judged(played, scores, wrong, missed)


def _same(a: tuple[str, int], b: tuple[str, int]) -> bool:
    return a[0] == b[0] and (a[1] == b[1] or 0 in (a[1], b[1]))


def summed(judged: Iterable[Judged]) -> dict[str, Score]:
    """Scores per cause, by name."""
    out: dict[str, Score] = defaultdict(Score)
    for j in judged:
        for cause, score in j.scores.items():
            out[cause].add(score)
    return dict(sorted(out.items()))


def total(scores: Mapping[str, Score], causes: Callable[[str], bool] = lambda _: True) -> Score:
    """Of all causes, or of some."""
    out = Score()
    for cause, score in scores.items():
        if causes(cause):
            out.add(score)
    return out


def claimed(played: Played) -> Claims:
    """What the detectors of this tree say of a scenario: chains, their links, and states of GPUs."""
    context = played.scene.context()
    out: dict[tuple[str, int], Fraction | None] = {}
    late: set[int] = set()
    for plugin in plugins():
        items = _items(plugin, context)
        chains = [x for x in items if isinstance(x, Chain)]
        for chain in chains:
            key = (plugin.declaration.id, int(chain.subject.get("pid", "0")))
            out[key] = _share(context, *key)
            if key[0] == LATE_RANK:
                late.add(key[1])
        if any(isinstance(x, Finding) for x in items):
            out[plugin.declaration.id, 0] = None
    for key, share in _of_late_ranks(context, late).items():
        if out.get(key) is None:  # its own chain, if there is one, is not about slow calls
            out[key] = share
    return out


def _items(plugin: Plugin, context: Context) -> Sequence[Chain | Finding]:
    wanted = plugin.declaration.kind == "chain" or plugin.declaration.id in STATES
    outcome = plugin.evaluate(context) if wanted else None
    return outcome.items if isinstance(outcome, Found) else ()


def _share(context: Context, cause: str, pid: int) -> Fraction | None:
    """What a cause was allotted of the slow calls of a process that it explains part of, over the time of these calls;
    None where it explains no slow call. Steps and waits that hold the same time are other effects."""
    found = context.causal
    mine = [e for e in found.effects if e.kind == "slow_call" and e.pid == pid]
    told = {e.key: [x for x in found.worth_telling(context, e) if x.known.declaration.id == cause] for e in mine}
    whole = sum(e.length_ns for e in mine if told[e.key])
    return Fraction(sum(x.part.allotted_ns for xs in told.values() for x in xs), whole) if whole else None


def _of_late_ranks(context: Context, told: set[int]) -> Claims:
    """Causes of the lateness of the ranks that a chain tells of: they are its further links."""
    found = context.causal
    out: dict[tuple[str, int], Fraction] = defaultdict(Fraction)
    for effect in found.effects:
        if effect.kind != "late_arrival" or effect.pid not in told:
            continue
        for part in found.allotments[effect.key].parts:
            name = part.who[0].declaration.id
            share = Fraction(part.allotted_ns, effect.length_ns)
            least = context.policy.value(LEAST_SHARE, name), context.policy.value(LEAST_NS, name)
            if share >= least[0] and part.allotted_ns >= least[1]:
                out[name, effect.pid] += share
    return dict(out)
