"""What probing a function adds to each call of it."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench import compile as compiler
from bench.bpftrace import SCRIPTS, BpfTrace
from bench.result import Figure, Plan, ratio, value
from bench.spread import take_turns
from gpuaudit.bundle.errors import AuditError, HostUnfit
from gpuaudit.capture.attach import Place, Programs, cookie
from gpuaudit.capture.probes import OP_IDS, SELF_TEST
from gpuaudit.capture.ring import LossCounters, RingReader
from gpuaudit.capture.symbols import Function, read_symbols
from tests.doubles.build import build

NAME = "probe"
TITLE = "A probed call"
FUNCTION = "cudaFree"
"""Called with a null pointer it takes and gives back one lock."""
CALLS = 20_000
WARM_CALLS = 1_000
PARTS = 10
METHOD = (
    "A C program calls `cudaFree(NULL)` of the cudart double in a loop: without a probe; with our entry program alone, "
    "counting; with our entry and return programs only counting; with both writing a full record of each call into the "
    "ring; and with three bpftrace scripts on the same function. Ratios compare what each adds to the bare call of the "
    "same turn; a turn is told by its median tenth. Records and bpftrace's counts must equal the calls made."
)


@dataclass
class _Target:
    """The program that calls, and the file and function that it calls."""

    library: Path
    function: Function
    process: subprocess.Popen[str]
    calls: int

    def ns_per_call(self) -> float:
        """Call and measure; the first calls, which fault pages in, are not counted."""
        self._call(WARM_CALLS)
        part = self.calls // PARTS
        return statistics.median(self._call(part) / part for _ in range(PARTS))

    def _call(self, count: int) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    @property
    def made(self) -> int:
        """Calls in one measurement."""
        return self.calls // PARTS * PARTS + WARM_CALLS


@dataclass
class _Tally:
    mechanism: str = ""
    lines: list[int] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)


def measure(plan: Plan) -> Figure:
    """ns per call in all ways."""
    if os.geteuid() != 0:
        raise HostUnfit("attaching probes needs root", hint="run the bench as root")
    tally = _Tally()
    with _target(plan) as target:
        ways: dict[str, Callable[[], float]] = {
            "nothing": target.ns_per_call,
            "entry": lambda: _ours(target, SELF_TEST.op, tally, returns_too=False),
            "pair": lambda: _ours(target, SELF_TEST.op, tally),
            "record": lambda: _ours(target, FUNCTION, tally),
        }
        for script in SCRIPTS:
            try:
                _bpftrace(target, script, _Tally())
            except (AuditError, OSError) as e:
                tally.unusable[script] = str(e)
            else:
                ways[script] = partial(_bpftrace, target, script, tally)
        ns = take_turns(ways, plan.repeats, plan.budget_s)
        return _figure(target, ns, tally)


@contextmanager
def _target(plan: Plan) -> Iterator[_Target]:
    library = build("cudart", plan.folder)
    with library.open("rb") as f:
        function = read_symbols(f.fileno(), frozenset({FUNCTION}), "cuda.*").functions[FUNCTION]
    command = [str(compiler.program("call.c", plan.folder)), str(library), FUNCTION]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield _Target(library, function, process, plan.size(CALLS, 1000))
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(30)


def _ours(target: _Target, op: str, tally: _Tally, *, returns_too: bool = True) -> float:
    """With our programs: the op without a record, or the function's own."""
    programs = Programs()
    programs.load()
    try:
        place = Place(target.function.offset, cookie(1, OP_IDS[op]))
        reader = RingReader(programs.map_fd("ring_cuda_calls"), programs.ring_sizes_bytes["cuda_calls"], "cuda_calls")
        attachment = programs.attach_functions(str(target.library), [place], returns_too=returns_too)
        try:
            ns = target.ns_per_call()
        finally:
            attachment.detach_entries()
            attachment.detach_returns()
        tally.mechanism = attachment.mechanism
        taken = len(reader.drain())
        expected = 0 if op == SELF_TEST.op else target.made
        lost = sum(c.lost for c in LossCounters(programs.map_fd("counters")).read().values())
        if taken != expected or lost:
            raise AuditError(f"{op}: {taken} records of {expected}, {lost} lost")
    finally:
        programs.close()
    return ns


def _bpftrace(target: _Target, script: str, tally: _Tally) -> float:
    with BpfTrace(script, target.library, FUNCTION) as tracer:
        ns = target.ns_per_call()
    if tracer.counted != target.made:
        raise AuditError(f"bpftrace counted {tracer.counted} of {target.made} calls")
    if script == "line":
        tally.lines.append(tracer.lines)
    return ns


def _figure(target: _Target, ns: dict[str, list[float]], tally: _Tally) -> Figure:
    added = {way: [x - bare for x, bare in zip(values, ns["nothing"], strict=True)] for way, values in ns.items()}
    compared = (
        ("pair", "count", "pair without a record ÷ bpftrace that counts calls"),
        ("record", "histogram", "pair with a record ÷ bpftrace that keeps a histogram and no record"),
        ("record", "line", "pair with a record ÷ bpftrace that prints a line for each call"),
    )
    values = [
        ratio(f"{words}, added per call", added[own], added[other], "lower")
        for own, other, words in compared
        if other in added
    ]
    values.append(ratio("pair with ÷ without a record, added per call", added["record"], added["pair"]))
    values.append(value("bare call", "ns", ns["nothing"]))
    words = {"entry": "our entry alone", "pair": "our pair without a record", "record": "our pair with a record"}
    for way in (w for w in added if w != "nothing"):
        values.append(value(f"{words.get(way, f'bpftrace, {way}')}: added per call", "ns", added[way]))
    remarks = [f"bpftrace, {script}: not measured: {why}" for script, why in tally.unusable.items()]
    if tally.lines and min(tally.lines) < target.made:
        kept = min(tally.lines) / target.made
        remarks.append(
            f"bpftrace lost lines, which makes it cheaper: of one turn {kept:.1%} of the calls were printed."
        )
    return Figure(NAME, TITLE, METHOD, tuple(values), {
        "function": f"{FUNCTION}, first instruction: {target.function.instruction}",
        "mechanism": f"ours {tally.mechanism}, bpftrace perf uprobe", "calls in a turn": f"{target.calls:,}",
    }, tuple(remarks))  # fmt: skip
