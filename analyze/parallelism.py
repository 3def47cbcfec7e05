"""Tensor-parallel degree from the fingerprint that it leaves in a communicator's collectives, checked against flags.

A tensor-parallel forward pass sums the activations of all ranks twice per layer, after attention and after the MLP
(Megatron-LM, Shoeybi et al. 2019, §3): ``2·layers`` all-reduces of the same ``tokens × hidden`` elements, one more
where the embedding is split as well. So a *run* (consecutive all-reduces of one element count, summed, of one type) is
as long as that or a multiple of it, and its element count changes with the tokens of the pass and divides by the
hidden size. Gradients of data-parallel training come in buckets whose sizes are the same in every step.

What stays unknown: passes replayed from CUDA graphs and the engine's own all-reduce kernels make no call that is seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import gcd

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Threshold
from gpuaudit.analyze.inference.model import EngineRun
from gpuaudit.analyze.store import NOT_OWN

LEAST_PASSES = Threshold(
    "least_passes", 8, "count",
    "chosen: a pattern that was seen fewer times than that may be chance",
)  # fmt: skip
EXPLAINED_NUM, EXPLAINED_DEN = 9, 10
"""Of the all-reduces, at least nine tenths must lie in runs that the pattern explains."""
LEAST_LAYERS = 4
LEAST_HIDDEN = 64
"""Smallest layers and hidden size that are taken for a model's where neither is known (the smallest models served
have 6 and 256)."""

PER_LAYER = 2


@dataclass(frozen=True)
class Fingerprint:
    """What the collectives of one communicator say. ``degree`` None: ``reason`` says why; else what it rests on.

    ``passes`` are forward passes seen, ``per_pass`` all-reduces in each, ``layers`` what they mean.
    """

    comm_id: int
    nranks: int
    pids: tuple[int, ...]
    all_reduces: int
    degree: int | None
    reason: str
    passes: int = 0
    per_pass: int = 0
    layers: int | None = None

    @property
    def name(self) -> str:
        """The identity as sixteen hexadecimal digits."""
        return f"{self.comm_id:016x}"


@dataclass(frozen=True)
class Verdict:
    """One engine: what its settings say, what its communicator says, and whether they agree."""

    engine: int
    flag: int | None
    flag_source: str
    fingerprint: Fingerprint | None
    result: str
    reason: str


@dataclass(frozen=True)
class Run:
    """Consecutive all-reduces of one element count."""

    count: int
    length: int


def read_fingerprints(context: Context, layers: int | None = None, hidden: int | None = None) -> list[Fingerprint]:
    """Every communicator with an identity; ``layers`` and ``hidden`` of the model where they are known."""
    rows = context.store.sql(
        "SELECT comm_id, max(nranks), list(DISTINCT pid ORDER BY pid) FROM nccl_calls "
        f"WHERE comm_id IS NOT NULL AND nranks IS NOT NULL AND {NOT_OWN} GROUP BY 1 ORDER BY 1"
    )
    lost = context.quality.lost("nccl_calls")
    out = []
    for comm_id, nranks, pids in rows:
        runs, total = _runs(context, int(comm_id))
        who = tuple(int(p) for p in pids)
        if lost:
            reason = f"{lost} records of nccl_calls were lost, so that runs may be cut"
            out.append(Fingerprint(int(comm_id), int(nranks), who, total, None, reason))
        else:
            out.append(_judged(Fingerprint(int(comm_id), int(nranks), who, total, None, ""), runs, layers, hidden))
    return out


def _runs(context: Context, comm_id: int) -> tuple[list[Run], int]:
    """Runs of the rank with most calls, and how many all-reduces they are."""
    a = context.store.arrays(
        "SELECT op IN ('ncclAllReduce', 'ncclAllReduceConfig') AND coalesce(reduce_op, 0) = 0 AND count IS NOT NULL "
        "AS sums, "
        "least(coalesce(count, 0), 1152921504606846976)::BIGINT AS count, coalesce(datatype, -1)::BIGINT AS datatype "
        f"FROM nccl_calls WHERE comm_id = {int(comm_id)} AND {NOT_OWN} AND coalesce(return_code, 0) IN (0, 7) "
        "AND pid = (SELECT pid FROM nccl_calls "
        f"WHERE comm_id = {int(comm_id)} AND {NOT_OWN} GROUP BY pid ORDER BY count(*) DESC, pid LIMIT 1) "
        "ORDER BY start_ns, seq, leaf, row"
    )
    return runs_of(a["sums"].astype(bool), a["count"], a["datatype"]), int(a["sums"].sum())


def runs_of(
    sums: npt.NDArray[np.bool_], count: npt.NDArray[np.int64], datatype: npt.NDArray[np.int64]
) -> list[Run]:  # fmt: skip
    """Runs among calls in order; a call that is no summing all-reduce ends one."""
    if not len(sums):
        return []
    new = np.ones(len(sums), dtype=bool)
    new[1:] = (np.diff(count) != 0) | (np.diff(datatype) != 0) | (sums[1:] != sums[:-1])
    first = np.flatnonzero(new)
    length = np.diff(np.append(first, len(sums)))
    return [Run(int(count[i]), int(n)) for i, n in zip(first, length, strict=True) if sums[i]]


def _judged(f: Fingerprint, runs: list[Run], layers: int | None, hidden: int | None) -> Fingerprint:
    if f.nranks < PER_LAYER:
        return _unknown(f, "a communicator of one rank")
    if not runs:
        return _unknown(f, "no all-reduce that sums was recorded on it")
    if layers is not None:
        return _with_model(f, runs, layers, hidden)
    return _without_model(f, runs)


def _unknown(f: Fingerprint, reason: str) -> Fingerprint:
    return Fingerprint(f.comm_id, f.nranks, f.pids, f.all_reduces, None, reason)


def _with_model(f: Fingerprint, runs: list[Run], layers: int, hidden: int | None) -> Fingerprint:
    """Runs are multiples of 2·layers, or of 2·layers + 1, and hold whole tokens."""
    best: tuple[int, int, int] | None = None
    for per_pass in (PER_LAYER * layers, PER_LAYER * layers + 1):
        fitting = [r for r in runs if r.length % per_pass == 0 and (not hidden or r.count % hidden == 0)]
        explained = sum(r.length for r in fitting)
        if best is None or explained > best[0]:
            best = (explained, per_pass, explained // per_pass)
    assert best is not None  # noqa: S101 - two candidates
    explained, per_pass, passes = best
    if explained * EXPLAINED_DEN < f.all_reduces * EXPLAINED_NUM:
        return _unknown(
            f, f"{explained} of {f.all_reduces} all-reduces come as {PER_LAYER} per layer of {layers} layers"
        )  # fmt: skip
    if passes < int(LEAST_PASSES.value):
        return _unknown(f, f"only {passes} forward passes were seen")
    return Fingerprint(
        f.comm_id, f.nranks, f.pids, f.all_reduces, f.nranks,
        f"{passes} forward passes of {per_pass} equal all-reduces, {PER_LAYER} per layer of {layers} layers",
        passes, per_pass, layers,
    )  # fmt: skip


def _without_model(f: Fingerprint, runs: list[Run]) -> Fingerprint:
    """Most runs have one length, or multiples of it, and their sizes change as the tokens of a pass do."""
    lengths = Counter(r.length for r in runs if r.length >= PER_LAYER * LEAST_LAYERS)
    if not lengths:
        return _unknown(f, f"no {PER_LAYER * LEAST_LAYERS} all-reduces of one size follow each other")
    per_pass = max(lengths, key=lambda n: (lengths[n], -n))
    fitting = [r for r in runs if r.length % per_pass == 0]
    explained = sum(r.length for r in fitting)
    if explained * EXPLAINED_DEN < f.all_reduces * EXPLAINED_NUM:
        return _unknown(f, f"{explained} of {f.all_reduces} all-reduces come in runs of {per_pass}")
    passes = explained // per_pass
    if passes < int(LEAST_PASSES.value):
        return _unknown(f, f"only {passes} forward passes were seen")
    sizes = {r.count for r in fitting}
    if len(sizes) < PER_LAYER:
        return _unknown(f, "every run has the same size, as buckets of gradients have")
    if gcd(*sizes) < LEAST_HIDDEN:
        return _unknown(f, f"sizes of runs share no factor of {LEAST_HIDDEN} or more, which a hidden size would be")
    return Fingerprint(
        f.comm_id, f.nranks, f.pids, f.all_reduces, f.nranks,
        f"{passes} runs of {per_pass} equal all-reduces in {len(sizes)} sizes, as {per_pass // PER_LAYER} layers make",
        passes, per_pass, per_pass // PER_LAYER,
    )  # fmt: skip


def read_verdicts(context: Context) -> list[Verdict]:
    """Every engine: its setting against the communicator whose processes hold the engine's GPUs."""
    return [_verdict(context, run) for run in context.engine_runs]


def _verdict(context: Context, run: EngineRun) -> Verdict:
    setting = run.config.get("tensor_parallel_size")
    told = run.number("tensor_parallel_size")
    flag = int(told) if told is not None and told >= 1 and told.denominator == 1 else None
    source = setting.source if setting is not None else ""
    facts = run.ceiling.facts if run.ceiling is not None else None
    pids = {p for g in context.gpus if g.uuid in run.gpus for who in g.holders for p in who}
    known = [f for f in read_fingerprints(context, facts.layers if facts else None, facts.hidden_dim if facts else None)
             if pids & set(f.pids)]  # fmt: skip
    with_degree = [f for f in known if f.degree is not None]
    best = max(with_degree or known, key=lambda f: (f.all_reduces, -f.comm_id), default=None)
    if best is None:
        why = "no communicator of processes on its GPUs was recorded"
        return Verdict(run.engine, flag, source, None, "unknown", why)
    if best.degree is None:
        return Verdict(run.engine, flag, source, best, "unknown", best.reason)
    if flag is None:
        return Verdict(run.engine, None, source, best, "unknown", "no setting tells the tensor-parallel degree")
    if flag == best.degree:
        return Verdict(run.engine, flag, source, best, "agreement", best.reason)
    why = f"the setting says {flag}, the collectives say {best.degree}: {best.reason}"
    return Verdict(run.engine, flag, source, best, "conflict", why)
