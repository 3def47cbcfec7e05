"""The waste ledger: every GPU-nanosecond of observed time once, bounds around it, and nothing that a cut can change."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuaudit.analyze import intervals
from gpuaudit.analyze.finding import number_from_json
from gpuaudit.analyze.ledger import KEYS, WASTE, Entry, ledger
from gpuaudit.analyze.rules.throttling import MASK
from gpuaudit.analyze.waste import waste
from tests.scenes import MS, T0, Scene


@dataclass(frozen=True)
class Poll:
    """One sample; ``at`` and ``length`` in ms."""

    gpu: int
    at: int
    length: int
    busy: int | None
    pids: frozenset[int]
    lowered: bool = False
    clock: int | None = 1500


@dataclass(frozen=True)
class Call:
    pid: int
    at: int
    length: int | None
    op: str = "cudaStreamSynchronize"


polls = st.lists(
    st.builds(
        Poll, st.integers(0, 1), st.integers(0, 40), st.integers(0, 6), st.sampled_from([None, 0, 0, 30, 70, 100]),
        st.frozensets(st.integers(50, 52), max_size=2), st.booleans(), st.sampled_from([None, 1000, 1500, 2000]),
    ),
    max_size=30,
)  # fmt: skip
calls = st.lists(
    st.builds(
        Call, st.integers(50, 52), st.integers(0, 40), st.one_of(st.none(), st.integers(0, 10)),
        st.sampled_from(["cudaStreamSynchronize", "cudaMemcpy", "cudaLaunchKernel"]),
    ),
    max_size=20,
)  # fmt: skip
walls = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 40), st.integers(1, 8), st.sampled_from([0, 60, 95]),
              st.sampled_from([0, 40, 96])), max_size=10,
)  # fmt: skip
Wall = tuple[int, int, int, int, int]


def scene_of(samples: list[Poll], host: list[Call], gpm: list[Wall] = []) -> Scene:  # noqa: B006 - never changed
    scene = Scene().clock(end=T0 + 5)
    for p in samples:
        scene.sample(
            T0 + p.at * MS, p.length * MS, p.gpu, sorted(p.pids), gpu_utilization_percent=p.busy,
            event_reasons=MASK & 0x4 if p.lowered else 0, clock_sm_mhz=p.clock, clock_sm_max_mhz=1980,
        )  # fmt: skip
    for c in host:
        scene.cuda(c.pid, c.op, T0 + c.at * MS, None if c.length is None else c.length * MS, stream=1)
    for gpu, at, length, dram, pipe in gpm:
        scene.add(
            "gpm_samples", start_ns=T0 + at * MS, duration_ns=length * MS, gpu_index=gpu, gpu_uuid=f"GPU-{gpu}",
            dram_bandwidth_percent=float(dram), tensor_percent=float(pipe), unavailable="",
        )  # fmt: skip
    return scene


def sums(entries: list[Entry]) -> dict[str, Fraction]:
    out = dict.fromkeys(KEYS, Fraction(0))
    for e in entries:
        out[e.key] += e.amount.expected
    return out


@settings(max_examples=12, deadline=None)
@given(polls, calls, walls)
def test_the_rows_add_up_within_their_bounds(samples: list[Poll], host: list[Call], gpm: list[Wall]) -> None:
    context = scene_of(samples, host, gpm).context()
    entries = ledger(context)
    for g in context.gpus:
        mine = [e for e in entries if e.gpu.uuid == g.uuid]
        observed = intervals.measure(g.covered)
        assert sum(e.amount.expected for e in mine) == observed
        assert sum(e.amount.low for e in mine) <= observed <= sum(e.amount.high for e in mine)
    for e in entries:
        assert 0 <= e.amount.low <= e.amount.expected <= e.amount.high, e.key
    section = waste(context)
    total = int(section["observed"]["value"] or 0)
    for rows in (section["rows"], section["by_key"]):
        assert sum(Fraction(number_from_json(r["gpu_time"]["value"]) or 0) for r in rows) == total
    wasted = Fraction(number_from_json(section["total"]["gpu_time"]["value"]) or 0)
    assert wasted == sum((sums(entries)[k] for k in WASTE), Fraction(0))
    low, high = (Fraction(number_from_json(section["total"][k]["value"]) or 0) for k in ("low", "high"))
    assert low <= wasted <= high <= total


@settings(max_examples=10, deadline=None)
@given(polls, calls, walls, st.integers(1, 5))
def test_samples_cut_in_two_say_the_same(samples: list[Poll], host: list[Call], gpm: list[Wall], at: int) -> None:
    """Two samples that say what one said, side by side, give the same parts and the same bounds."""
    samples = _apart(samples)
    cut = []
    for p in samples:
        parts = [p] if p.length <= at else [
            Poll(**{**p.__dict__, "length": at}), Poll(**{**p.__dict__, "at": p.at + at, "length": p.length - at})
        ]  # fmt: skip
        cut += parts
    one, two = (ledger(scene_of(s, host, gpm).context()) for s in (samples, cut))
    assert [(e.key, e.gpu.uuid, e.pid, e.amount) for e in one] == [(e.key, e.gpu.uuid, e.pid, e.amount) for e in two]


def _apart(samples: list[Poll]) -> list[Poll]:
    """At most one sample of a GPU begins at one moment, and none overlaps the next."""
    out: list[Poll] = []
    for p in sorted(samples, key=lambda p: (p.gpu, p.at)):
        if p.length and not (out and out[-1].gpu == p.gpu and out[-1].at + out[-1].length > p.at):
            out.append(p)
    return out


@settings(max_examples=10, deadline=None)
@given(polls, calls, st.integers(0, 29), st.integers(1, 30))
def test_more_disturbance_is_never_less_waste(samples: list[Poll], host: list[Call], which: int, less: int) -> None:
    """A sample that was less busy, or ran at a lower clock, wastes no less and is no more useful."""
    samples = _apart(samples)
    before = sums(ledger(scene_of(samples, host).context()))
    for i, p in enumerate(samples):
        if i != which % max(1, len(samples)) or not p.busy:
            continue
        idler = Poll(**{**p.__dict__, "busy": max(0, p.busy - less)})
        after = sums(ledger(scene_of([*samples[:i], idler, *samples[i + 1 :]], host).context()))
        assert after["useful"] <= before["useful"]
        assert sum(after[k] for k in WASTE) >= sum(before[k] for k in WASTE)
        if p.clock is not None:
            slower = Poll(**{**p.__dict__, "lowered": True, "clock": 500})
            after = sums(ledger(scene_of([*samples[:i], slower, *samples[i + 1 :]], host).context()))
            assert after["useful"] <= before["useful"]
            assert sum(after[k] for k in WASTE) >= sum(before[k] for k in WASTE)


@settings(max_examples=10, deadline=None)
@given(polls, calls, st.builds(Call, st.integers(50, 52), st.integers(0, 40), st.integers(1, 10)))
def test_a_blocking_call_moves_idle_time_and_makes_none(samples: list[Poll], host: list[Call], more: Call) -> None:
    before, after = (sums(ledger(scene_of(samples, h).context())) for h in (host, [*host, more]))
    for key in ("useful", "throttled", "idle_unallocated", "not_classified", "waiting_for_peers", "over_allocated"):
        assert after[key] == before[key]
    assert sum(after[k] for k in WASTE) == sum(before[k] for k in WASTE)
