"""What the booted kernels said: a table for the terminal, docs/reference/kernels.md, and what was expected of them."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.torture.kernels_guest import TESTS
from tests.torture.kernels_image import Boot

STEPS = ("facts", "check", "capture", "tests", "late")
MULTI = "uprobe_multi"
NOT_OF_THE_KERNEL = ("NVML",)
"""Lines of ``audit check`` that no kernel changes: the machine has no GPU."""


@dataclass(frozen=True)
class Measured:
    """Everything one kernel left, by step; a step that left nothing is an empty mapping."""

    boot: Boot
    took_s: float
    steps: dict[str, Any]

    @classmethod
    def read(cls, boot: Boot, folder: Path, took_s: float) -> Measured:
        """From the folder that the machine's second disk was unpacked to."""
        return cls(boot, took_s, {name: _json(folder / f"{name}.json") for name in STEPS})

    @property
    def check(self) -> dict[str, dict[str, Any]]:
        """Lines of ``audit check`` by name."""
        return {r["name"]: r for r in self.steps["check"].get("results", [])}

    @property
    def has_multi(self) -> bool:
        """Whether this kernel attaches many functions with one link."""
        line = self.check.get(f"function probes by {MULTI}", {})
        return bool(line.get("ok")) and "not available" not in str(line.get("detail"))

    def problems(self) -> Iterator[str]:
        """What was expected of any kernel here and did not hold."""
        for name in STEPS:
            if not self.steps[name]:
                yield f"{name}: nothing came out of the machine"
            elif "failed" in self.steps[name] and name != "tests":
                yield f"{name}: {self.steps[name]['failed']}"
        for name, line in self.check.items():
            if not line["ok"] and name not in NOT_OF_THE_KERNEL:
                yield f"audit check: {name}: {line['detail']}"
        yield from self._capture_problems()
        yield from self.test_problems(TESTS)
        refused = {r["name"]: r for r in self.steps["late"].get("results", [])}
        if refused and refused.get("privileges", {}).get("ok") is not False:
            yield "audit check without capabilities: it did not say so"

    def _capture_problems(self) -> Iterator[str]:
        capture = self.steps["capture"]
        if capture.get("status") != 0:
            yield f"audit capture ended with {capture.get('status')}: {str(capture.get('stderr'))[-400:]}"
            return
        if capture["verify"]["status"] != "SEALED":
            yield f"audit verify: {capture['verify']['status']}"
        if capture["lost"]:
            yield f"{capture['lost']} records were lost"
        for op, (made, recorded) in capture.get("by_op", {}).items():
            if made != recorded:
                yield f"{op}: {made} calls were made, {recorded} are in the evidence"
        wanted = MULTI if self.has_multi else "perf uprobe"
        if wanted not in self.mechanisms():
            yield f"functions were to be probed by {wanted}, found {', '.join(self.mechanisms()) or 'none'}"

    def test_problems(self, wanted: Sequence[str]) -> Iterator[str]:
        """What failed of the tests in these files, and which of them did not come that far."""
        tests = self.steps["tests"]
        for name in wanted:
            if not tests.get(name, {}).get("passed"):
                yield f"{name}: {'no test of it passed' if name in tests else 'the machine was stopped before it ran'}"
        for name, outcome in tests.items():
            if outcome.get("hung") or "said" in outcome:
                yield f"{name}: did not end, or could not begin: {str(outcome.get('said', ''))[-300:]}"
            for test, why in outcome.get("failed", {}).items():
                if self.has_multi or MULTI not in test:
                    yield f"{name}::{test}: {why.splitlines()[0][:200] if why else 'failed'}"

    def mechanisms(self) -> Counter[str]:
        """How the programs of the whole capture were attached, and how many of them."""
        rows = self.steps["capture"].get("probes", [])
        return Counter(r["mechanism"] for r in rows if r["duration_ns"] is None and r["mechanism"])


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def table(measured: Measured) -> str:
    """Per kernel: which program was attached how, what was refused and why, which tests ran."""
    lines = [f"{measured.boot.kernel.name}: {measured.boot.release} ({measured.boot.version})"]
    lines += [f"  {name:<44} {how}" for name, how in _attached(measured)]
    lines += [f"  {name:<44} {how}" for name, how in _refused(measured)]
    lines += [f"  {name:<44} {how}" for name, how in _tested(measured)]
    return "\n".join(lines)


def _attached(measured: Measured) -> Iterator[tuple[str, str]]:
    rows = [r for r in measured.steps["capture"].get("probes", []) if r["duration_ns"] is None]
    for r in {(r["op"], r["mechanism"]): r for r in rows if r["library"] == "kernel"}.values():
        if r["op"]:
            yield f"{'tracepoint ' if '_' in r['op'] else ''}{r['op']}", str(r["mechanism"])
    functions = Counter((r["library"], r["mechanism"]) for r in rows if r["library"] != "kernel")
    for (library, mechanism), count in sorted(functions.items(), key=str):
        yield f"{count} functions of {library}", str(mechanism)


def _refused(measured: Measured) -> Iterator[tuple[str, str]]:
    for name, line in measured.check.items():
        if name not in NOT_OF_THE_KERNEL and (not line["ok"] or "not available" in line["detail"]):
            yield name, f"refused: {line['detail']}"
    for source in measured.steps["capture"].get("sources", []):
        if source["state"] != "recorded" and source["source"] != "nvml":
            yield f"source {source['source']}", f"{source['state']}: {source['reason']}"


def _tested(measured: Measured) -> Iterator[tuple[str, str]]:
    for name, o in measured.steps["tests"].items():
        if o.get("absent"):
            continue
        failed = list(o.get("failed", {}))
        known = [t for t in failed if MULTI in t and not measured.has_multi]
        words = [f"{len(o.get('passed', []))} passed"]
        words += [f"{len(known)} ask for {MULTI}"] if known else []
        words += [f"{len(failed) - len(known)} failed"] if len(failed) > len(known) else []
        words += [f"{len(o['skipped'])} skipped"] if o.get("skipped") else []
        yield name, "did not end" if o.get("hung") else ", ".join(words)


HEAD = """# Kernels

<!-- Written by `scripts/torture kernels`: what it measured, and when. Do not edit. -->

Which kernels the capture was run on, what each let it attach and how, and what it refused. Features are found by
trying, never by version. `scripts/torture kernels` boots Debian's kernels in QEMU with the wheel of the tree inside (no
GPU; libraries are the doubles of `tests/doubles`), runs `audit check`, a whole capture of a workload whose calls are
known, `audit verify`, and the integration tests of the kernel's side. Where the processor cannot virtualise, the
machine is emulated, some forty times slower: nothing is timed there, and a test that relies on a pace can fail.
"""

TAIL = """
## Not measured here

- **RHEL 9 and its rebuilds (5.14).** Not booted: apt has none. What they need is known by feature. `uprobe_multi`
  (upstream 6.6) is tried and, where it is refused, perf uprobes are used, as on Debian's 6.1 above. The state argument
  of `sched_switch` (5.18) has a variant without it; `bpf_task_pt_regs` (5.15) is used where the kernel's BTF names it.
  One thing newer than upstream 5.14 has no variant: `bpf_get_attach_cookie` (5.15), by which one pair of programs knows
  at which function it is. Red Hat brings the BPF of newer kernels back into its 5.14. A kernel that lacks the cookie
  refuses the programs, `audit check` says so in the kernel's words, and no source that needs BPF can be recorded there;
  NVML and engines can.
- **Perf uprobes before 6.0.** By the sources, not tried: `trace_call_bpf` passes a call over, and no counter says so,
  while `bpf_prog_active` is set on its CPU, as by a thread that is switched out inside bpf(2) changing a map. Since 6.0
  (`bpf_prog_run_array_sleepable`) perf uprobes do not look at it. A call that is lost so between 5.15 and 5.19, or in a
  rebuild without that change, is in no number of ours.
- **Debian 11 (5.10) and upstream 5.14.** No cookie: refused as above, before anything is attached. Not booted: the
  archive of Debian 12 has no such package.
- **Secure boot.** The lockdown above is the kernel's own parameter; with secure boot it is the firmware's.
"""


def document(all_measured: list[Measured], locked_down: str) -> str:
    """docs/reference/kernels.md. ``locked_down``: what was said of BPF under lockdown=confidentiality."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    parts = [HEAD]
    for m in all_measured:
        facts = m.steps["facts"]
        mode = "virtualised" if facts.get("virtualised") else "emulated"
        parts.append(f"\n## {m.boot.kernel.name}: {m.boot.release}\n")
        parts.append(
            f"Package version {m.boot.version}, measured {today}, {mode}, {m.took_s / 60:.0f} minutes; libbpf "
            f"{m.check.get('libbpf', {}).get('detail', 'unknown')}; "
            + ", ".join(f"`{k}` {v}" for k, v in facts.get("sysctls", {}).items() if v is not None)
            + f"; lockdown `{facts.get('lockdown') or 'not in this kernel'}`.\n"
        )
        parts += _rows("attached in a whole capture", "how", _attached(m))
        parts += _rows("refused, or not complete", "what was said", _refused(m))
        parts += _rows("integration tests", "outcome", _tested(m))
        capture = m.steps["capture"]
        if capture.get("status") == 0:
            parts.append(
                f"\nThe capture: {capture['made']} calls by the workload, {capture['recorded']} recorded with those "
                f"that NCCL itself made, {capture['lost']} records lost, bundle of {capture['size_bytes']:,} bytes "
                f"{capture['verify']['status']}.\n"
            )
        problems = list(m.problems())
        if problems:
            parts.append("\nExpected, and not so:\n\n" + "".join(f"- {_cell(p)}\n" for p in problems))
    parts.append(f"\n## {all_measured[0].boot.kernel.name} with `lockdown=confidentiality`\n")
    parts.append(f"\n`audit check` says of BPF: {_cell(locked_down)}.\n")
    return "".join(parts) + TAIL


def _rows(first: str, second: str, rows: Iterator[tuple[str, str]]) -> list[str]:
    lines = [f"| {_cell(a)} | {_cell(b)} |\n" for a, b in rows]
    return [f"\n| {first} | {second} |\n|---|---|\n", *lines] if lines else []


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:400]
