"""What is known of one inference engine over the capture: its windows, its totals over them, its settings.

Numbers are exact (``int`` or ``Fraction``); None is "not recorded", never 0. A value that the engine exported as f64
is the decimal number it printed: ``Fraction(repr(value))``. Seconds are seconds on CLOCK_BOOTTIME (the scrape's
completion), a share is 0–1, tokens and requests are counts. How windows are cut: ``windows.py``; how they are put
together: ``aggregate.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gpuaudit.analyze.inference.baseline import Baseline
    from gpuaudit.analyze.inference.model_facts import ModelFacts

Number = int | Fraction

GIVEN = "given at import"
"""Source of a setting that no recording tells and that a person named (``audit import --setting``)."""

_DECIMAL = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")
"""Numbers of settings; a longer one is no setting of anything."""


def _no_polls() -> npt.NDArray[np.float64]:
    return np.zeros(0)


@dataclass(frozen=True)
class Buckets:
    """New observations of a histogram by bucket: ``counts[i]`` is the cumulative count at most ``edges[i]``.

    ``edges`` ascend and end in infinity; both are empty where the histogram is absent or a delta was negative.
    """

    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Quantile:
    """A quantile in the unit of its histogram; ``clamped``: it lies past the last finite edge, and is at least that."""

    value: Fraction
    clamped: bool


@dataclass(frozen=True)
class HistogramDelta:
    """What one histogram gained in a window, and where it stood at the window's last scrape.

    ``sum`` (seconds, or tokens) and ``count`` are deltas, None where either end is missing or a restart lies between.
    """

    sum: Fraction | None = None
    count: int | None = None
    total_sum: Fraction | None = None
    total_count: int | None = None
    buckets: Buckets = Buckets()

    @property
    def window_mean(self) -> Fraction | None:
        """Delta of the sum over delta of the count; None without new observations or after a negative delta."""
        if self.sum is None or self.count is None or self.count <= 0 or self.sum < 0:
            return None
        return self.sum / self.count

    @property
    def mean(self) -> Fraction | None:
        """:attr:`window_mean`; where nothing new was observed, the cumulative mean at the last scrape."""
        if self.window_mean is not None or self.count != 0 or (self.sum is not None and self.sum < 0):
            return self.window_mean
        if not self.total_count or self.total_sum is None or self.total_sum < 0:
            return None
        return self.total_sum / self.total_count


@dataclass(frozen=True)
class GpuWindow:
    """What NVML says of the engine's GPUs in one window: means of polls, last values and peaks.

    Power and VRAM are summed over the GPUs, utilisation and clock are their mean, temperature is that of the hottest.
    ``vram_peak_bytes`` and ``power_peak_mw`` add up each GPU's own peak, so that what is free is never overstated.
    ``aligned``: the last poll of every GPU and the engine's last scrape are at most 1 s apart (``skew_ns``).
    """

    gpus: int = 0
    utilization_percent: Fraction | None = None
    memory_utilization_percent: Fraction | None = None
    utilization_peak_percent: int | None = None
    power_mw: Fraction | None = None
    power_peak_mw: int | None = None
    vram_used_bytes: int | None = None
    vram_total_bytes: int | None = None
    vram_peak_bytes: int | None = None
    temperature_c: int | None = None
    temperature_peak_c: int | None = None
    clock_sm_mhz: Fraction | None = None
    skew_ns: int | None = None
    aligned: bool = False


@dataclass(frozen=True, eq=False)
class Window:
    """One window of an engine. Deltas reach from the last scrape before the window to its last one.

    ``duration_s`` is the time between those two scrapes, ``planned_s`` what the window was to last. ``running``,
    ``waiting``, ``swapped`` and ``kv_last_share`` are the last scrape's; means are over the window's scrapes, peaks
    over all of them. ``running_polls`` and ``waiting_polls`` hold each of the window's scrapes (NaN: gauge missing).
    With data-parallel engines running and waiting are sums over them, KV use is their mean, and its peak that of the
    fullest one.
    """

    index: int = 0
    start_ns: int = 0
    end_ns: int = 0
    planned_s: Fraction = Fraction(2)
    duration_s: Fraction | None = None
    scrapes: int = 0
    failed: int = 0
    reset: bool = False
    """The server was restarted inside the window: its rates and deltas are None."""
    running: Number | None = None
    running_mean: Fraction | None = None
    running_peak: Number | None = None
    waiting: Number | None = None
    waiting_mean: Fraction | None = None
    waiting_peak: Number | None = None
    swapped: Number | None = None
    kv_last_share: Fraction | None = None
    kv_mean_share: Fraction | None = None
    kv_peak_share: Fraction | None = None
    generation_tokens: Number | None = None
    prompt_tokens: Number | None = None
    completed: Number | None = None
    """Requests that ended other than by abort or error."""
    aborted: Number | None = None
    preemptions: Number | None = None
    prefix_hits: Number | None = None
    """Tokens found in the prefix cache, internal and external."""
    prefix_queries: Number | None = None
    ttft: HistogramDelta = HistogramDelta()
    """Time to first token, seconds."""
    tpot: HistogramDelta = HistogramDelta()
    """Time per output token, seconds."""
    prefill: HistogramDelta = HistogramDelta()
    """Time of a request in prefill, seconds."""
    queue: HistogramDelta = HistogramDelta()
    """Time of a request in the queue, seconds."""
    prompt_size: HistogramDelta = HistogramDelta()
    """Prompt tokens per finished request."""
    generation_size: HistogramDelta = HistogramDelta()
    """Generated tokens per finished request."""
    counters: dict[str, Number] = field(default_factory=dict)
    """Cumulative counters at the window's last scrape, by meaning (``names.py``)."""
    gpu: GpuWindow = GpuWindow()
    running_polls: npt.NDArray[np.float64] = field(default_factory=_no_polls, repr=False)
    waiting_polls: npt.NDArray[np.float64] = field(default_factory=_no_polls, repr=False)

    def rate(self, amount: Number | None) -> Fraction | None:
        """``amount`` per second of the window; None when absent, negative, or the window has no duration."""
        if amount is None or amount < 0 or not self.duration_s or self.duration_s <= 0:
            return None
        return Fraction(amount) / self.duration_s

    @property
    def generation_tps(self) -> Fraction | None:
        """Generated tokens per second."""
        return self.rate(self.generation_tokens)

    @property
    def prompt_tps(self) -> Fraction | None:
        """Prompt tokens per second."""
        return self.rate(self.prompt_tokens)

    @property
    def requests_per_s(self) -> Fraction | None:
        """Completed requests per second."""
        return self.rate(self.completed)

    @property
    def preemptions_per_s(self) -> Fraction | None:
        """Preemptions per second."""
        return self.rate(self.preemptions)

    @property
    def prefix_hit_share(self) -> Fraction | None:
        """Hits per queried token; None without queries or after a negative delta."""
        return hit_share(self.prefix_hits, self.prefix_queries)

    @property
    def queue_share(self) -> Fraction | None:
        """waiting / (running + waiting) of the last scrape; None when either is missing or both are 0."""
        if self.running is None or self.waiting is None or self.running + self.waiting <= 0:
            return None
        return Fraction(self.waiting) / (self.running + self.waiting)

    @property
    def weight_s(self) -> Fraction:
        """What the window weighs in a mean over windows: its actual duration, else the planned one."""
        return self.duration_s if self.duration_s is not None else self.planned_s

    @property
    def evaluable(self) -> bool:
        """It has a duration and the running gauge is there (0 counts)."""
        return self.duration_s is not None and self.duration_s > 0 and self.running is not None

    @property
    def idle(self) -> bool:
        """Fewer than one request running, one waiting and one token per second; what is missing counts as less."""
        values = (self.running, self.waiting, self.generation_tps)
        return all(v is None or v < 1 for v in values)

    @property
    def energy_pair(self) -> bool:
        """Its power and its tokens are of the same time, and there were both."""
        tokens, power = self.generation_tps, self.gpu.power_mw
        return self.gpu.aligned and tokens is not None and tokens > 0 and power is not None and power > 0

    @property
    def active(self) -> bool:
        """Evaluable and not idle."""
        return self.evaluable and not self.idle


def hit_share(hits: Number | None, queries: Number | None) -> Fraction | None:
    """hits / queries of two deltas; None when either is missing, queries are not positive, or hits are negative."""
    if hits is None or queries is None or queries <= 0 or hits < 0:
        return None
    return Fraction(hits) / Fraction(queries)


@dataclass(frozen=True)
class Latency:
    """A histogram over all its windows: mean, and quantiles of the merged buckets (never of quantiles)."""

    mean: Fraction | None = None
    count: int | None = None
    p50: Quantile | None = None
    p95: Quantile | None = None
    p99: Quantile | None = None
    buckets: Buckets = Buckets()


@dataclass(frozen=True)
class RunTotals:
    """One engine over all its windows, by the table "across windows" of ``docs/reference/engines.md``.

    Means over active windows are weighted by duration. Peaks are over evaluable windows. ``counters`` are cumulative
    at the chronologically last window; ``deltas`` what each counter gained from the first to the last scrape, restarts
    included (a counter that starts anew begins at 0).
    """

    windows: int = 0
    evaluable: int = 0
    active: int = 0
    idle: int = 0
    evaluable_s: Fraction = Fraction(0)
    active_s: Fraction = Fraction(0)
    running: Fraction | None = None
    """Duration-weighted mean of the windows' ``running_mean`` (their last gauge where there is no mean)."""
    waiting: Fraction | None = None
    queue_share: Fraction | None = None
    """waiting / (running + waiting) of the two means above."""
    generation_tps: Fraction | None = None
    prompt_tps: Fraction | None = None
    requests_per_s: Fraction | None = None
    preemptions_per_s: Fraction | None = None
    running_peak: Number | None = None
    waiting_peak: Number | None = None
    kv_avg_share: Fraction | None = None
    """Duration-weighted mean of ``kv_last_share`` over evaluable windows."""
    kv_mean_share: Fraction | None = None
    """Duration-weighted mean of ``kv_mean_share`` over active windows."""
    kv_peak_share: Fraction | None = None
    swapped: Number | None = None
    prefix_hit_share: Fraction | None = None
    ttft: Latency = Latency()
    tpot: Latency = Latency()
    prefill: Latency = Latency()
    queue: Latency = Latency()
    prompt_size: Latency = Latency()
    generation_size: Latency = Latency()
    gpu_utilization_percent: Fraction | None = None
    gpu_memory_utilization_percent: Fraction | None = None
    power_mw: Fraction | None = None
    """Weighted mean over energy-pair windows, summed over the engine's GPUs."""
    energy_generation_tps: Fraction | None = None
    """Generated tokens per second over the same energy-pair windows."""
    energy_windows: int = 0
    vram_used_bytes: int | None = None
    vram_total_bytes: int | None = None
    vram_peak_bytes: int | None = None
    temperature_c: int | None = None
    temperature_peak_c: int | None = None
    clock_sm_mhz: Fraction | None = None
    counters: dict[str, Number] = field(default_factory=dict)
    deltas: dict[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """One setting of an engine: the value that counts, where it stands, and what other sources say otherwise."""

    value: str
    source: str
    detail: str = ""
    others: tuple[tuple[str, str], ...] = ()
    """(source, value) of other sources that say something else."""


@dataclass(frozen=True, eq=False)
class EngineRun:
    """One inference engine of the bundle.

    ``gpus`` are the UUIDs of its GPUs and ``gpu_join`` says how they were found (or why none were). ``data_parallel``
    is the number of engine indexes that reported: seats and cache are per index. ``absent`` says per meaning why a
    metric is missing. ``ceiling`` is None with the reason in ``ceiling_reason``.
    """

    engine: int
    kind: str
    url: str = ""
    pid: int | None = None
    found_by: str = ""
    remote: bool = False
    state: str = "scraped"
    reason: str = ""
    model: str | None = None
    config: dict[str, Setting] = field(default_factory=dict)
    data_parallel: int = 1
    windows: tuple[Window, ...] = ()
    totals: RunTotals = RunTotals()
    kv_by_index: dict[str, tuple[Fraction, Fraction]] = field(default_factory=dict)
    """Per engine index: mean and peak KV use (share) over the scrapes."""
    scrapes: int = 0
    failed: int = 0
    resets: int = 0
    longest_gap_s: Fraction | None = None
    """Longest time without a completed answer, from the first poll to the last; None with one poll."""
    start_ns: int = 0
    end_ns: int = 0
    metrics: dict[str, str] = field(default_factory=dict)
    """Per meaning, the metric that was read."""
    absent: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)
    """Per meaning, what else the metric that was read may hold."""
    gpus: tuple[str, ...] = ()
    gpu_name: str | None = None
    gpu_join: str = ""
    pids: tuple[int, ...] = ()
    """Its processes, where NVML named any of them on :attr:`gpus`; else those are all of the host, of which it may use
    fewer."""
    on_mig: bool = False
    """Some of :attr:`gpus` is in MIG mode: what is told of a whole GPU is not told of the engine's part."""
    facts: ModelFacts | None = None
    """What is known of the model it serves."""
    ceiling: Baseline | None = None
    ceiling_reason: str = ""

    @property
    def where(self) -> str:
        """SQL condition for the rows of this engine in every engine table."""
        return f"engine = {self.engine}"

    @property
    def active_windows(self) -> tuple[Window, ...]:
        """Windows that rules look at."""
        return tuple(w for w in self.windows if w.active)

    def text(self, key: str) -> str | None:
        """A setting as found, None where no source tells it."""
        found = self.config.get(key)
        return found.value if found else None

    def number(self, key: str) -> Fraction | None:
        """A setting as a number; None where it is absent or not a plain decimal number ("None", "auto")."""
        text = (self.text(key) or "").strip()
        return Fraction(text) if _DECIMAL.fullmatch(text) else None

    def given(self, *keys: str) -> bool:
        """Whether a person told any of these settings at the import: what is computed from it is assumed."""
        return any(k in self.config and self.config[k].source == GIVEN for k in keys)

    def switch(self, key: str) -> bool | None:
        """A setting as on or off; None where it is absent or says neither."""
        text = (self.text(key) or "").strip().lower()
        if text in {"1", "true", "yes", "on"}:
            return True
        return False if text in {"0", "false", "no", "off"} else None

    @property
    def max_num_seqs(self) -> int | None:
        """Seats of the whole engine: the setting times the data-parallel engines; None where it is not known.

        With SGLang's data parallelism it is not: ``--max-running-requests`` is of each part, or with
        ``--enable-dp-attention`` of all together, and which it is nobody tells.
        """
        seats = self.number("max_num_seqs")
        if self.kind == "sglang" and self.data_parallel > 1:
            return None
        return int(seats) * self.data_parallel if seats is not None and seats >= 1 else None
