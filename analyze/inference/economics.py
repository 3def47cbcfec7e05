"""What an engine's tokens took of power and money, exactly, with the reason where a part of it cannot be said.

Energy counts windows in which power and tokens are of the same time (last NVML poll and last answer at most a second
apart). Money counts active windows, and needs that the requests that ran were replaced at least once. Prices are per
GPU-hour; an engine costs what all its GPUs cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from gpuaudit.analyze.finding import Provenance
from gpuaudit.analyze.inference import formulas, physics
from gpuaudit.analyze.inference.model import EngineRun, Number
from gpuaudit.analyze.prices import Price, PriceBook

MILLI = 1000
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class EnginePrice:
    """What one hour of all GPUs of an engine costs; ``per_hour`` None: not known, and ``reason`` says why.

    ``gpus`` are those that are paid for: the recorded degree of parallelism where it is more than were observed, or
    where all GPUs of the host stand for those that were not named.
    """

    per_hour: Fraction | None
    currency: str
    gpus: int
    provenance: Provenance
    label: str
    reason: str = ""


@dataclass(frozen=True)
class Energy:
    """Power over all GPUs of an engine, tokens of the same windows, and their ratio both ways."""

    power_mw: Fraction | None
    generation_tps: Fraction | None
    windows: int
    tokens_per_joule: Fraction | None
    mj_per_token: Fraction | None
    reason: str = ""


@dataclass(frozen=True)
class Cost:
    """Price of a million output tokens: of active windows, and of all evaluable time with what was idle of it."""

    active: Fraction | None
    whole: Fraction | None
    reason: str = ""


@dataclass(frozen=True)
class Efficiency:
    """Shares of the ceilings (0–1), each with another denominator; None together with ``reason``.

    ``batch``: of ceiling × min(running, ridge). ``mfu``: of ceiling × ridge. ``seats``: of ceiling × min(max_num_seqs,
    ridge). ``kv``: of what the batch could do when it reads its KV cache too, and no more than the compute roof.
    """

    batch: Fraction | None
    mfu: Fraction | None
    seats: Fraction | None
    kv: Fraction | None
    reason: str = ""


def engine_price(
    run: EngineRun, prices: PriceBook, names: Mapping[str, str], others: Iterable[EngineRun] = ()
) -> EnginePrice:
    """The price of all GPUs of an engine; ``names`` are those of GPUs by UUID, ``others`` the engines beside it.

    Where none was observed, a rate for every GPU and a recorded degree of parallelism are enough. A GPU that engines
    share is not paid for twice, and what each would pay of it is not known.
    """
    beside = _beside(run, others)
    if run.on_mig or beside:
        why = f"{beside} on the same GPU" if beside else "its GPU is in MIG mode"
        return _unknown(prices, f"{why}: what its part of a GPU costs is not known")
    if not run.gpus:
        paid, price = degree(run), prices.price_of(None)
        if paid is None or price is None:
            return _unknown(prices, f"the engine's GPUs are not known: {run.gpu_join or 'none was sampled'}")
        return EnginePrice(price.per_hour * paid, price.currency, paid, price.provenance, price.label)
    each: list[Price] = []
    for uuid in run.gpus:
        price = prices.price_of(names.get(uuid), uuid)
        if price is None:
            return _unknown(prices, _why_no_price(prices, names.get(uuid, uuid)))
        each.append(price)
    if (too_many := _perhaps_fewer(run)) and len(set(each)) > 1:
        return _unknown(prices, too_many)
    paid = degree(run) or 0 if too_many else max(len(run.gpus), degree(run) or 0)
    total = sum((p.per_hour for p in each), Fraction(0)) * Fraction(paid, len(each))
    labels = "; ".join(dict.fromkeys(p.label for p in each))
    return EnginePrice(total, each[0].currency, paid, each[0].provenance, labels)


def _perhaps_fewer(run: EngineRun) -> str:
    """Why not all of :attr:`EngineRun.gpus` are the engine's for certain; empty where nothing speaks against it."""
    used = degree(run)
    if run.pids or used is None or used >= len(run.gpus):
        return ""
    return f"it was set to {used} of the host's {len(run.gpus)} GPUs, and which these are was not recorded"


def _beside(run: EngineRun, others: Iterable[EngineRun]) -> str:
    """Other engines that NVML listed on a GPU of this one; empty where there are none."""
    found = [str(o.engine) for o in others if o.engine != run.engine and set(o.gpus) & set(run.gpus)]
    return f"engine {', '.join(found)} ran" if found else ""


def _why_no_price(prices: PriceBook, gpu: str) -> str:
    if prices.listed is not None:
        return f"{prices.listed.name} lists no price of {gpu}"
    return f"no rate was given, and the catalogue has no price of {gpu} in {prices.currency}"


def _unknown(prices: PriceBook, reason: str) -> EnginePrice:
    return EnginePrice(None, prices.currency, 0, "estimated", "", reason)


def degree(run: EngineRun) -> int | None:
    """GPUs by the recorded settings: tensor × pipeline × data parallel; None where no tensor degree is recorded."""
    tp, pp = run.number("tensor_parallel_size"), run.number("pipeline_parallel_size")
    if tp is None or tp < 1 or tp.denominator != 1:
        return None
    stages = int(pp) if pp is not None and pp >= 1 and pp.denominator == 1 else 1
    return int(tp) * stages * run.data_parallel


def energy(run: EngineRun, others: Iterable[EngineRun] = ()) -> Energy:
    """Tokens and power of the energy-pair windows; not where others than the engine took part of that power."""
    t = run.totals
    shared = "its GPU is in MIG mode: the power of a part of a GPU is not told" if run.on_mig else _perhaps_fewer(run)
    if beside := _beside(run, others):
        shared = f"{beside} on the same GPU: whose power it was is not told"
    if shared:
        return Energy(None, t.energy_generation_tps, t.energy_windows, None, None, shared)
    power = t.power_mw
    watts = None if power is None else power / MILLI
    per_joule = formulas.tokens_per_joule(t.energy_generation_tps, watts)
    joules = formulas.joules_per_token(t.energy_generation_tps, watts)
    return Energy(
        power, t.energy_generation_tps, t.energy_windows, per_joule, None if joules is None else joules * MILLI,
        "" if per_joule is not None else _why_no_energy(run),
    )  # fmt: skip


def _why_no_energy(run: EngineRun) -> str:
    if not run.gpus:
        return f"the engine's GPUs are not known: {run.gpu_join or 'none was sampled'}"
    if not run.totals.energy_windows:
        return "no window has power of all its GPUs within a second of its last answer, and tokens in it"
    return "no power was told, or no token was generated in those windows"


def cost(run: EngineRun, price: EnginePrice) -> Cost:
    """A million output tokens in money, behind the turnover gate."""
    if price.per_hour is None:
        return Cost(None, None, price.reason)
    t = run.totals
    completed = t.deltas.get("completed")
    if completed is None or t.running is None:
        return Cost(
            None, None, "whether its requests turned over is not known: completed or running requests are not told"
        )
    if not formulas.turned_over(completed, t.running):
        return Cost(
            None, None,
            "fewer requests were completed than ran at once on the mean: the batch was filling up or draining",
        )  # fmt: skip
    active = formulas.cost_per_mtoken(price.per_hour, t.generation_tps)
    whole = formulas.cost_per_mtoken(price.per_hour, formulas.ratio(t.deltas.get("generation_tokens"), t.evaluable_s))
    return Cost(active, whole, "" if active is not None else "no token was generated in an active window")


def efficiency(run: EngineRun) -> Efficiency:
    """Shares of the ceilings over the active windows; withdrawn where any window was faster than its ceiling."""
    tps = run.totals.generation_tps
    if run.ceiling is None or physics.speculation(run) is not None:
        return Efficiency(None, None, None, None, physics.why_no_ceiling(run))
    if not tps or run.totals.running is None:
        return Efficiency(None, None, None, None, "no token was generated in an active window, or running is not told")
    batch = physics.batch_efficiency(run)
    reason = (
        "" if batch is not None else "it was faster than the ceiling of its batch: the ceiling does not hold for it"
    )
    return Efficiency(
        batch, physics.decode_mfu(run, tps), physics.config_efficiency(run, tps), _of_kv_ceiling(run, tps), reason
    )


def context_tokens(run: EngineRun) -> Fraction | None:
    """Tokens that a running sequence has in the cache on the mean: its prompt and half of what it generates."""
    prompt, generated = run.totals.prompt_size.mean, run.totals.generation_size.mean
    return None if prompt is None or generated is None else prompt + generated / 2


def _of_kv_ceiling(run: EngineRun, tps: Number) -> Fraction | None:
    b = run.ceiling
    top = None if b is None else b.decode_kv_tps(run.totals.running, context_tokens(run))
    if b is None or top is None:
        return None
    share = formulas.ratio(tps, min(top, b.decode_tps * b.ridge))
    return None if share is None or share > formulas.BAND_UPPER else min(share, Fraction(1))


def recoverable_per_hour(price: EnginePrice, batch: Fraction | None) -> Fraction | None:
    """Money per hour of active time up to 80 % of the batch's ceiling, which is an assumption; None: nothing left."""
    return formulas.recoverable_per_hour(price.per_hour, None if batch is None else batch * 100)
