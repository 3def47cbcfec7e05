"""A capture under a site's policy: what is left of what was asked for, and how the evidence tells of the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from gpuaudit.bundle.errors import UsageError
from gpuaudit.capture.capability_needs import at_start
from gpuaudit.capture.environment import limit_variables
from gpuaudit.capture.options import CaptureOptions
from gpuaudit.capture.probes import LIBRARIES
from gpuaudit.capture.selection import DENIED
from gpuaudit.capture.source import BPF_SOURCES, SELECTABLE_SOURCES, Capability, boottime_ns

MAX_NAMED = 40
"""Functions that one gap names; the policy itself, sealed with the evidence, names them all."""


def obeying(options: CaptureOptions) -> CaptureOptions:
    """The options without what the policy denies. UsageError where it denies the capture as such."""
    policy = options.policy
    limit_variables(None if policy is None else lambda name: policy.allows("environment", name))
    if policy is None:
        return options
    policy.check_remote(options.allow_remote)
    sources = tuple(s for s in options.sources if not policy.why_not_source(s))
    if not sources:
        raise UsageError(
            f"nothing is left to capture: {', '.join(options.sources)} {DENIED} ({policy.name})",
            hint="audit check --policy says which line denies what",
        )
    duration_s = options.duration_s if options.synthetic else policy.check_duration(options.duration_s)
    return replace(options, sources=sources, duration_s=duration_s)


def capabilities_at_start(options: CaptureOptions) -> frozenset[str]:
    """What the attacher may begin with."""
    return at_start() if options.policy is None else options.policy.allowed_capabilities()


def why_not_recorded(options: CaptureOptions, source: str) -> str:
    """Why a source that is not captured is not."""
    return (options.policy.why_not_source(source) if options.policy else "") or "not asked for"


def denied_sources(options: CaptureOptions) -> Iterator[Capability]:
    """Of the recorder's own sources, those that it must not even look at."""
    for source in SELECTABLE_SOURCES:
        if source not in BPF_SOURCES and source not in options.sources and options.policy:
            why = options.policy.why_not_source(source)
            if why:
                yield Capability(source, False, why)


def denied_functions(options: CaptureOptions) -> Iterator[tuple[str, dict[str, object]]]:
    """A gap from beginning to end for each table that lacks calls because their functions may not be probed."""
    policy = options.policy
    if policy is None:
        return
    for library in LIBRARIES:
        by_table: dict[str, list[str]] = defaultdict(list)
        for probe in library.probes:
            if library.source in options.sources and policy.why_not_probe(library.name, probe):
                by_table[probe.table].append(probe.op)
        for table, ops in sorted(by_table.items()):
            more = f" and {len(ops) - MAX_NAMED} more" if len(ops) > MAX_NAMED else ""
            reason = f"{DENIED}: {library.name} {', '.join(ops[:MAX_NAMED])}{more}"
            yield "gaps", {"start_ns": boottime_ns(), "duration_ns": None, "source": library.source,
                           "table_name": table, "pid": None, "reason": reason}  # fmt: skip
