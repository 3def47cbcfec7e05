"""Section ``waste`` of the document: the ledger with its evidence, in money where there is a price, and projected.

What each part means and how it is computed: ``ledger.py``. Money is a part times the price of its own GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze import intervals
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Json, Provenance, Quantity, number_from_json
from gpuaudit.analyze.gpu_time import GpuTime
from gpuaudit.analyze.host_time import BLOCKING, CALL_TABLES
from gpuaudit.analyze.ledger import KEYS, NOTHING, WASTE, Amount, Entry, ledger
from gpuaudit.analyze.memory_wall import MemoryWall
from gpuaudit.analyze.money import NS_PER_HOUR
from gpuaudit.analyze.prices import Price
from gpuaudit.analyze.words import duration

HOURS_PER_YEAR = 8_760
"""365 days; a month is a twelfth of it, 730 h."""

HOURS_PER_MONTH = HOURS_PER_YEAR // 12

BY_HOST = ("host_blocked", "starved", "idle_allocated", "over_allocated")
"""Parts of idle time, told apart by what the host did, each of what the ones before it leave."""


@dataclass(frozen=True)
class Money:
    """Prices by GPU UUID in one currency, and the share of all time in which the host works as in the capture."""

    prices: Mapping[str, Price]
    currency: str
    rate: str | None = None
    duty_cycle: Fraction | None = None

    @property
    def provenance(self) -> Provenance:
        """Estimated where a price is the catalogue's, else assumed."""
        return "estimated" if any(p.provenance == "estimated" for p in self.prices.values()) else "assumed"

    @property
    def labels(self) -> list[str]:
        """Whose prices they are, each once."""
        return sorted({p.label for p in self.prices.values()})

    def of(self, uuid: str, ns: Fraction) -> Fraction | None:
        """What ``ns`` of a GPU cost; None where it has no price."""
        price = self.prices.get(uuid)
        return None if price is None else price.per_hour * ns / NS_PER_HOUR

    @classmethod
    def of_context(cls, context: Context, duty_cycle: Fraction | None = None) -> Money:
        """Prices of the GPUs that leaf 0 names, from the context's price book."""
        told = context.store.open_body.get("gpus")
        gpus = [g for g in told if isinstance(g, dict)] if isinstance(told, list) else []
        names = {str(g.get("uuid")): str(g.get("name")) for g in gpus}
        prices = context.prices.of_names({g.uuid: names.get(g.uuid, "") for g in context.gpus})
        rate = context.prices.rate
        currency = context.prices.currency if prices or context.prices.given else ""
        return cls(prices, currency, None if rate is None else f"{rate.per_hour:f}", duty_cycle)


def waste(context: Context, duty_cycle: Fraction | None = None) -> Json:
    """The section; ``rows`` by GPU, process and key, ``by_key`` their sums, ``total`` of what is waste.

    ``duty_cycle`` is the share of all time in which the host works as in the capture, as the user states it.
    """
    return _Section(context, Money.of_context(context, duty_cycle), ledger(context)).to_json()


class _Section:
    def __init__(self, context: Context, money: Money, entries: Sequence[Entry]) -> None:
        self._context = context
        self._money = money
        self._entries = entries
        self._observed = sum(intervals.measure(g.covered) for g in context.gpus)
        self._walls = {g.uuid: MemoryWall(context, g).evidence for g in context.gpus}

    def to_json(self) -> Json:
        rows = [self._row(e) for e in self._entries]
        by_key = [self._sum(k, rows) for k in KEYS if any(e.key == k for e in self._entries)]
        total = self._total(rows)
        return {
            "rows": rows, "by_key": by_key, "total": total, "observed": self._observed_time().to_json(),
            "rate": self._money.rate, "currency": self._money.currency, "prices": self._money.labels,
            "projection": self._projection(total), "notes": self._notes(),
        }  # fmt: skip

    def _observed_time(self) -> Quantity:
        samples = (self._context.book.where("nvml_samples", "parent_uuid IS NULL"),)
        formula = "time covered by NVML samples, summed over GPUs"
        if self._observed:
            return Quantity(self._observed, "gpu_ns", "derived", samples, formula)
        reason = self._context.quality.source_reason("nvml") or "no two NVML samples of one GPU in the bundle"
        return Quantity(None, "gpu_ns", "derived", samples, formula, reason)

    def _row(self, e: Entry) -> Json:
        evidence = _evidence(self._context, e, wall=self._walls[e.gpu.uuid])
        cost = {e.gpu.uuid: e.amount}
        return {
            "key": e.key, "gpu": e.gpu.uuid, "gpu_index": e.gpu.index, "pid": e.pid, "definition": KEYS[e.key],
            **self._amounts(e.amount, cost, evidence, f"observed time of the GPU: {KEYS[e.key]}"),
        }  # fmt: skip

    def _sum(self, key: str, rows: list[Json]) -> Json:
        mine = [e for e in self._entries if e.key == key]
        evidence = _evidence_of(rows, (key,))
        return {"key": key, **self._amounts(*_together(mine), evidence, "sum of the rows with this key")}

    def _total(self, rows: list[Json]) -> Json:
        """Sum of what is waste; its upper bound is no more than what the rest leaves of the observed time."""
        mine = [e for e in self._entries if e.key in WASTE]
        by_gpu = _together(mine)[1]
        for uuid, a in by_gpu.items():
            observed = intervals.measure(next(g for g in self._context.gpus if g.uuid == uuid).covered)
            rest = (e.amount.low for e in self._entries if e.gpu.uuid == uuid and e.key not in WASTE)
            by_gpu[uuid] = Amount(a.expected, a.low, min(a.high, observed - sum(rest, Fraction(0))))
        amount = sum(by_gpu.values(), NOTHING)
        formula = f"sum of the rows of {', '.join(WASTE)}"
        return self._amounts(amount, by_gpu, _evidence_of(rows, WASTE), formula)

    def _amounts(
        self, amount: Amount, by_gpu: Mapping[str, Amount], evidence: tuple[str, ...], formula: str
    ) -> dict[str, Json]:
        def time(value: Fraction, which: str = "") -> Json:
            return Quantity(value, "gpu_ns", "derived", evidence, formula + which).to_json()

        share = amount.expected / self._observed if self._observed else Fraction(0)
        return {
            "gpu_time": time(amount.expected),
            "low": time(amount.low, ", at least"),
            "high": time(amount.high, ", at most"),
            "share": Quantity(share, "share", "derived", evidence, "gpu_time / observed").to_json(),
            "money": self._cost({u: a.expected for u, a in by_gpu.items()}, evidence),
            "money_low": self._cost({u: a.low for u, a in by_gpu.items()}, evidence),
            "money_high": self._cost({u: a.high for u, a in by_gpu.items()}, evidence),
        }

    def _cost(self, by_gpu: Mapping[str, Fraction], evidence: tuple[str, ...]) -> Json:
        """GPU time times the price of its GPU; null where no GPU of it has a price."""
        costs = {u: self._money.of(u, ns) for u, ns in by_gpu.items()}
        told = [c for c in costs.values() if c is not None]
        if not told:
            return None
        missing = len(costs) - len(told)
        formula = "gpu_time / 3.6e12 × price of the GPU" + (
            f", without {missing} GPUs that have none" if missing else ""
        )
        return Quantity(
            sum(told, Fraction(0)), self._money.currency, self._money.provenance, evidence, formula
        ).to_json()

    def _projection(self, total: Json) -> Json:
        """The waste per month and year at a stated duty cycle; null without one, or without a price."""
        duty = self._money.duty_cycle
        window = self._context.window.length_ns
        if duty is None or total["money"] is None or not self._observed or not window:
            return None
        gpus = len(self._context.gpus)
        evidence = tuple(total["gpu_time"]["evidence"])

        def over(which: str, hours: int, per_year: bool) -> Json:
            value = total[which]["value"]
            spent = number_from_json(value) or 0
            formula = f"{which} of the total / observed GPU-hours × {gpus} GPUs × {hours} h × duty cycle"
            unit = f"{self._money.currency}/year" if per_year else self._money.currency
            projected = Fraction(spent) * NS_PER_HOUR * gpus / self._observed * hours * duty
            return Quantity(projected, unit, self._money.provenance, evidence, formula).to_json()

        covered = Fraction(self._observed, window * gpus)
        return {
            "duty_cycle": Quantity(duty, "share", "assumed").to_json(),
            "coverage": Quantity(covered, "share", "derived", evidence, "observed / (window × GPUs)").to_json(),
            **{
                f"{name}{suffix}": over(f"money{suffix}", hours, name == "year")
                for name, hours in (("month", HOURS_PER_MONTH), ("year", HOURS_PER_YEAR))
                for suffix in ("", "_low", "_high")
            },
        }

    def _notes(self) -> list[str]:
        return _notes(self._context, self._money)


def _together(entries: Sequence[Entry]) -> tuple[Amount, dict[str, Amount]]:
    """The sum, and the sum by GPU."""
    by_gpu: dict[str, Amount] = {}
    for e in entries:
        by_gpu[e.gpu.uuid] = by_gpu.get(e.gpu.uuid, NOTHING) + e.amount
    return sum(by_gpu.values(), NOTHING), by_gpu


def _evidence_of(rows: Sequence[Json], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(i for r in rows if r["key"] in keys for i in r["gpu_time"]["evidence"]))


def _evidence(context: Context, e: Entry, *, wall: bool) -> tuple[str, ...]:
    book = context.book
    out = [book.where("nvml_samples", e.gpu.where)]
    if e.key != "idle_unallocated":
        out.append(book.where("nvml_processes", e.gpu.where if e.pid is None else f"{e.gpu.where} AND pid = {e.pid}"))
    pids = [e.pid] if e.pid is not None else sorted({p for who in e.gpu.holders for p in who})
    who = f"pid IN ({', '.join(map(str, pids))})" if pids else "false"
    mine = [c for c in context.collectives if set(pids) & set(c.pids) and not c.not_evaluated]
    if e.key not in ("idle_unallocated", "not_classified"):  # all others are what waiting leaves
        out += [book.where("nccl_calls", c.where) for c in mine]
    if (mine and e.key in ("useful", "throttled", "memory_bound")) or e.key in ("waiting_for_peers", *BY_HOST):
        out += book.present(("cuda_calls",), f"{BLOCKING.condition} AND {who}")
    if e.key in BY_HOST[1:]:
        out += book.present(CALL_TABLES, who)
        out += [book.where("engine_scrapes", r.where) for r in context.engine_runs if set(pids) & set(r.pids)]
    if e.key == "over_allocated":
        out += [book.where("nvml_samples", g.where) for g in _other_gpus(context, e.gpu, pids)]
    if e.key in ("memory_bound", "useful") and wall:
        out.append(book.where("gpm_samples", e.gpu.where))
    return tuple(dict.fromkeys(out))


def _other_gpus(context: Context, gpu: GpuTime, pids: Sequence[int]) -> list[GpuTime]:
    """GPUs beside this one that its processes held."""
    return [g for g in context.gpus if g.uuid != gpu.uuid and any(who & set(pids) for who in g.holders)]


def _notes(context: Context, money: Money) -> list[str]:
    out = [
        "Each nanosecond of observed GPU time stands in one row. Busy and idle time of a sample are spread evenly over "
        "it; low and high are the bounds if they lay elsewhere."
    ]
    window = context.window.length_ns
    for g in context.gpus:
        missing = window - intervals.measure(intervals.clip(g.covered, context.window.start_ns, context.window.end_ns))
        if missing:
            out.append(
                f"GPU {g.index} ({g.uuid}): {duration(missing)} of the window of {duration(window)} are not "
                f"covered by samples and not counted."
            )
    if any(len(who) > 1 for g in context.gpus for who in g.holders):
        out.append(
            "Time of a GPU that several processes held together is not divided among them: it has no process id."
        )
    if any(not c.not_evaluated for c in context.collectives):
        out.append(
            "Waiting for peers is time of the host: ranks that were not observed would add to it, and work that "
            "the GPU had in that time would take from it. Without GPU timing it is a bound in neither direction."
        )
    refused = sum(int((~g.listed).sum()) for g in context.gpus)
    if refused:
        out.append(f"In {refused} samples NVML refused the list of processes: their time is not classified.")
    if context.window.sleeps:
        out.append("Time between clock readings in which the host was suspended is not observed and not counted.")
    out += [f"Money: {label}." for label in money.labels]
    unpriced = [g.uuid for g in context.gpus if money.prices and g.uuid not in money.prices]
    out += [f"GPU {uuid} has no price: its time is not in the money." for uuid in unpriced]
    return out
