"""A rank that comes late for a cause that is planted on it: the chain of the late rank goes on with that cause.

Ranks write down when they made each all-reduce, and the late one what kept it: the share of its lateness that the cause
covers comes from these clocks alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median

import pytest

from gpuaudit.analyze import intervals
from gpuaudit.analyze.effects.slow_calls import LEAST_CALLS
from gpuaudit.analyze.finding import Chain
from tests.integration.disks import folder_on_disk
from tests.integration.planted import (
    BURST_MS,
    CPU,
    HOG,
    OTHER_CPU,
    TOLERANCE,
    Analysed,
    Bench,
    analysed,
    bench,
    by_nobody,
    close,
    cold_file,
    covered,
    explained,
    undisturbed,
)
from tests.integration.planted_quota import PERIOD_US, QUOTA_US, group
from tests.integration.recording import start, truth

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf"), pytest.mark.alone]

RANKS, LATE, STEPS = 3, 2, 10
TITLES = {"hog": "Preempted", "disk": "Waiting for a disk", "futex": "Waiting for a lock", "quota": "CPU quota used up"}
SPANS = {"hog": "gap", "disk": "disk", "futex": "futex", "quota": "gap"}
SAME = {"hog": ("preempted", HOG)}
"""What may hold within calls of the rank too, for it holds whatever its thread is doing: detector, and who."""

FEW = int(LEAST_CALLS.value) - 1
"""Steps of a rank without real-time priority: of so few calls none is slow for whatever else this host does."""


@dataclass(frozen=True)
class Told:
    """What the ranks wrote down: the late one's process, its lateness, and what held in that."""

    pid: int
    peers: tuple[int, ...]
    """Processes of the other ranks."""
    lateness: intervals.Intervals
    spans: tuple[tuple[str, int, int], ...]
    stolen_ns: int
    """What a hypervisor took of this machine from the first all-reduce to the last one."""
    throttled_ns: int
    """By how much the throttled time of its cgroup grew in its steps, where it has one of its own."""

    @property
    def stolen(self) -> Fraction:
        """The most that a hypervisor can have kept it from a CPU when it was woken, as a share of its lateness."""
        return Fraction(self.stolen_ns, intervals.measure(self.lateness))


def told(out: Path) -> Told:
    """From the median arrival of the others to the late rank's, at every all-reduce."""
    lines = [truth(out.with_name(f"{out.name}.{rank}")) for rank in range(RANKS)]
    came = [[int(c["before_ns"]) for c in rank if c.get("op") == "ncclAllReduce"] for rank in lines]
    others = [int(median(came[r][i] for r in range(RANKS) if r != LATE)) for i in range(len(came[LATE]))]
    late = [c for c in lines[LATE] if "late_ns" in c]
    spans = tuple((str(w), int(a), int(b)) for c in late for w, a, b in c["spans"])
    stolen_ns = int(late[-1]["stolen_so_far_ns"]) - int(late[0]["stolen_so_far_ns"])
    throttled_ns = sum(int(c["throttled_ns"]) for c in late)
    pids = [int(rank[0]["pid"]) for rank in lines]
    lateness = intervals.from_bounds(others, came[LATE])
    return Told(pids.pop(LATE), tuple(pids), lateness, spans, stolen_ns, throttled_ns)


def run(b: Bench, name: str, *options: object) -> Told:
    """Record ranks of which one is late, from their start to their end."""
    out = b.folder / name
    given_up(b, out)
    fixed = ("--ranks", RANKS, "--steps", STEPS, "--late-rank", LATE, "--realtime", 1, "--step-ms", 5)
    b.follow(start(b.programs / "planted-ranks", "--out", out, *map(str, (*options, *fixed))))
    return told(out)


def given_up(b: Bench, out: Path) -> None:
    """Ranks that are planted again were nobody."""
    if out.with_name(f"{out.name}.0").exists():
        before = told(out)
        b.given_up |= {before.pid, *before.peers}


def kept(rank: Told) -> Fraction:
    """How much of its lateness the rank was ready to run and had no CPU."""
    return covered(rank.lateness, rank.spans, "gap")


def kept_by_others(rank: Told) -> Fraction:
    """The same of all its steps, without what its quota took of that."""
    gaps = sum(b - a for what, a, b in rank.spans if what == "gap")
    return Fraction(max(0, gaps - rank.throttled_ns), intervals.measure(rank.lateness))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, bpf: None) -> Iterator[tuple[Analysed, dict[str, Told]]]:
    folder: Path = tmp_path_factory.mktemp("lateness")
    if CPU == OTHER_CPU:
        pytest.skip("needs two CPUs")
    with ExitStack() as stack:
        place = stack.enter_context(folder_on_disk(folder))
        g = stack.enter_context(group())
        b = stack.enter_context(bench(folder))
        g.limit(QUOTA_US)
        work = ("--late-by", "work", "--busy-ms", 3 * BURST_MS)
        ranks = {
            "disk": run(b, "disk", "--late-by", "disk", "--disk", cold_file(place)),
            "futex": run(b, "futex", "--late-by", "futex"),
            "alone": undisturbed(lambda: run(b, "alone", *work, "--late-cpu", CPU), kept),
        }
        with b.hog():  # it keeps no other rank from a CPU: those go first
            above = ("--realtime", 3, "--late-priority", 1)
            ranks["hog"] = run(b, "hog", *work, *above, "--late-cpu", CPU)
            elsewhere = ("hog elsewhere", *work, *above, "--late-cpu", OTHER_CPU)
            ranks["hog elsewhere"] = undisturbed(lambda: run(b, *elsewhere), kept)
        wide = ("--late-by", "work", "--busy-ms", 30, "--step-ms", PERIOD_US // 1000 + 20)
        lasting = ("--settle-ms", 1000, "--linger-ms", 1000)
        limited = ("quota", "--steps", FEW, *wide, *lasting, "--late-cgroup", g.folder)
        ranks["quota"] = run(b, *limited)
        yield analysed(b), ranks


def chain_of(a: Analysed, rank: Told) -> Chain:
    """The one chain about the rank's lateness."""
    (chain,) = [c for c in about(a, rank.pid) if c.detector == "late_rank"]
    return chain


def about(a: Analysed, pid: int) -> list[Chain]:
    """Every chain about a process."""
    return [c for c in a.document.chains if c.subject.get("pid") == str(pid)]


def parts(chain: Chain) -> dict[str, Fraction]:
    """Share of the lateness by title of the cause, what is unexplained among them."""
    out: dict[str, Fraction] = {}
    for s in chain.shares:
        title = s.label.partition(":")[0]
        out[title] = out.get(title, Fraction(0)) + Fraction(s.share.value or 0)
    return out


def others_of(chain: Chain, titles: Sequence[str]) -> Fraction:
    """Share that is allotted to anything but these."""
    return sum((v for k, v in parts(chain).items() if k not in (*titles, "unexplained")), Fraction(0))


def is_the_same(chain: Chain, name: str) -> bool:
    """Whether it tells of the very cause that was planted."""
    detector, culprit = SAME.get(name, ("none", ""))
    return chain.detector == detector and str(chain.values["culprit"]).startswith(culprit)


def nothing_else(a: Analysed, rank: Told, name: str = "") -> None:
    """But that what made it late held in slow calls and steps of the rank too, where it did by the rank's own clock."""
    assert [c for pid in rank.peers for c in about(a, pid)] == []
    for chain in (c for c in about(a, rank.pid) if c is not chain_of(a, rank)):
        assert by_nobody(chain) or is_the_same(chain, name), chain
    for effect in (e for e in a.causal.effects if e.pid == rank.pid and e.kind in {"slow_call", "slow_step"}):
        claimed = [c for c in about(a, rank.pid) if effect.name in str(c.values.get("effect"))]
        stolen = Fraction(rank.stolen_ns, effect.length_ns)
        assert explained(claimed) <= covered(effect.time, rank.spans, "gap") + stolen + TOLERANCE, claimed


@pytest.mark.parametrize("name", list(TITLES))
def test_what_made_the_rank_late_is_the_next_link(found: tuple[Analysed, dict[str, Told]], name: str) -> None:
    a, ranks = found
    chain, rank = chain_of(a, ranks[name]), ranks[name]
    want, got, others = covered(rank.lateness, rank.spans, SPANS[name]), parts(chain), others_of(chain, [TITLES[name]])
    assert want > TOLERANCE
    assert sum(got.values()) == 1
    off = want if SPANS[name] == "gap" else want + kept(rank)
    assert close(got[TITLES[name]] + others, off), (got, off)
    # Between a wake-up and the switch is also what a hypervisor takes to let an idle CPU run again; and the rank with
    # a quota has no real-time priority, so that whatever else this host does may keep it waiting too: at least so much,
    # for where its stream's thread was throttled on the other CPU meanwhile, that time was counted twice.
    besides = TOLERANCE + kept_by_others(rank) if name == "quota" else off - want
    assert others < TOLERANCE + besides + rank.stolen, (got, off, rank.stolen)
    assert len(chain.links) > 1


@pytest.mark.parametrize("name", ["alone", "hog elsewhere"])
def test_a_rank_that_computes_is_late_and_nothing_is_blamed(found: tuple[Analysed, dict[str, Told]], name: str) -> None:
    """By its own work, with nobody on its core: the lateness is told, and all of it is unexplained."""
    a, ranks = found
    chain = chain_of(a, ranks[name])
    assert parts(chain).get("unexplained", Fraction(1)) > 1 - TOLERANCE
    assert len(chain.links) == 1


@pytest.mark.parametrize("name", [*TITLES, "alone", "hog elsewhere"])
def test_nothing_else_is_claimed_of_the_ranks(found: tuple[Analysed, dict[str, Told]], name: str) -> None:
    a, ranks = found
    nothing_else(a, ranks[name], name)


def test_nothing_is_claimed_of_anybody_else(found: tuple[Analysed, dict[str, Told]]) -> None:
    a, ranks = found
    assert a.beside(*(pid for rank in ranks.values() for pid in (rank.pid, *rank.peers))) == []
