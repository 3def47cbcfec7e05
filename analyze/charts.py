"""Bounded series for the charts of a report: never more than a page can show, and each says what it left out."""

from __future__ import annotations

from fractions import Fraction
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import heat, timeline
from gpuaudit.analyze.call_meanings import OUTERMOST
from gpuaudit.analyze.call_totals import OF_TABLE, OUTER
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Chain, Json
from gpuaudit.analyze.gpu_time import UNKNOWN, bounded
from gpuaudit.analyze.operations import API_TABLES
from gpuaudit.analyze.store import NOT_OWN

MAX_NVML_BINS = 300
"""A chart of 600 points' width shows no more."""

MAX_GPUS = 16
"""One page of small multiples; the largest servers have 16."""

NVML_SERIES = (
    ("gpu_utilization_percent", "%"),
    ("memory_used_bytes", "bytes"),
    ("power_mw", "mW"),
    ("power_limit_mw", "mW"),
    ("temperature_c", "°C"),
    ("temperature_memory_c", "°C"),
    ("clock_sm_mhz", "MHz"),
    ("clock_sm_cap_mhz", "MHz"),
    ("clock_memory_mhz", "MHz"),
)  # fmt: skip


ENERGY_SERIES = ("power_from_energy_mw", "mW")
"""Where a GPU tells its energy and not its power: the mean between two samples, at the first of them."""


def charts(context: Context, chains: list[Chain]) -> dict[str, Json]:
    """Section ``charts`` of the document."""
    return {
        "timeline": timeline.timeline(context, chains),
        "rank_heat": heat.rank_heat(context),
        "nvml": _nvml(context),
        "latency": _latency(context),
    }


def _nvml(context: Context) -> list[Json]:
    length = max(1, context.window.length_ns)
    bin_ns = -(-length // MAX_NVML_BINS)
    bins = -(-length // bin_ns)
    times = [context.window.start_ns + i * bin_ns for i in range(bins)]
    out = []
    for gpu in context.gpus[:MAX_GPUS]:
        columns = ", ".join(f"{bounded(c)} AS {c}" for c, _ in (*NVML_SERIES, ("energy_mj", "mJ")))
        a = context.store.arrays(
            f"SELECT start_ns::BIGINT AS start_ns, {columns} FROM nvml_samples WHERE {gpu.where} ORDER BY "
            f"start_ns, leaf, row"
        )
        at = np.clip((a["start_ns"] - context.window.start_ns) // bin_ns, 0, bins - 1)
        series = [_series(name, unit, a[name], at, bins) for name, unit in NVML_SERIES]
        if (a["power_mw"] == UNKNOWN).all() and (a["energy_mj"] != UNKNOWN).any():
            power = _power_from_energy(a["start_ns"], a["energy_mj"])
            series.append(_series(*ENERGY_SERIES, power, at, bins))
        out.append(
            {
                "gpu_index": gpu.index, "gpu_uuid": gpu.uuid, "times_ns": [str(t) for t in times],
                "bin_ns": str(bin_ns),
                "series": series, "omitted": max(0, len(context.gpus) - MAX_GPUS),
            }
        )  # fmt: skip
    return out


def _power_from_energy(starts: npt.NDArray[np.int64], energy_mj: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """mW = mJ/s between each reading and the next, rounded; unknown where the counter began anew or no next one is."""
    out = np.full(len(starts), UNKNOWN, dtype=np.int64)
    known = np.flatnonzero(energy_mj != UNKNOWN).tolist()
    for i, j in pairwise(known):
        energy, time_ns = int(energy_mj[j] - energy_mj[i]), int(starts[j] - starts[i])
        if energy >= 0 and time_ns > 0:
            out[i] = round(Fraction(energy * 1_000_000_000, time_ns))
    return out


def _series(name: str, unit: str, values: npt.NDArray[np.int64], at: npt.NDArray[np.int64], bins: int) -> Json:
    minimum: list[str | None] = [None] * bins
    mean: list[str | None] = [None] * bins
    maximum: list[str | None] = [None] * bins
    known = values != UNKNOWN
    values, at = values[known], at[known]
    edges = np.searchsorted(at, np.arange(bins + 1))
    for i in np.unique(at).tolist():
        part = values[edges[i] : edges[i + 1]].tolist()
        minimum[i], maximum[i] = str(min(part)), str(max(part))
        mean[i] = str(round(Fraction(sum(part), len(part))))
    return {"name": name, "unit": unit, "minimum": minimum, "mean": mean, "maximum": maximum}


def _latency(context: Context) -> list[Json]:
    """Outermost finished calls per power of two of their duration, aggregated ones by their bucket, which lies in one;
    bin [0, 1) holds durations of 0 ns."""
    out: list[Json] = []
    for table in API_TABLES:
        calls = f"SELECT op, duration_ns AS d, 1 AS n FROM {table} WHERE duration_ns IS NOT NULL AND {OUTERMOST}"
        calls += f" AND {NOT_OWN}"
        if table in OF_TABLE and context.store.row_count("call_totals"):
            calls += f" UNION ALL SELECT op, low_ns, count FROM call_totals WHERE {OUTER} AND {OF_TABLE[table]}"
            calls += f" AND {NOT_OWN}"
        rows = context.store.sql(
            "SELECT op, CASE WHEN d = 0 THEN -1 ELSE length(bin(d)) - 1 END AS b, sum(n)::HUGEINT "
            f"FROM ({calls}) GROUP BY 1, 2 ORDER BY 1, 2"
        )
        for op, of_op in groupby(rows, lambda row: row[0]):
            bins = [[str(0 if b < 0 else 1 << int(b)), str(1 << (int(b) + 1)), str(n)] for _, b, n in of_op]
            out.append({"table": table, "op": op, "bins": bins})
    return out
