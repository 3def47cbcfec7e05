"""What a site allows a capture to do: the section ``[capture]`` of a policy file, compared and obeyed.

``audit check --policy`` prints the comparison, ``audit capture --policy`` obeys the same object: what is denied is not
attached, not merely not written, and the evidence says of each denial that it is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gpuaudit.bundle.errors import UsageError
from gpuaudit.capture import capabilities, engine_command, identity
from gpuaudit.capture.capability_needs import NEEDS, at_start
from gpuaudit.capture.policy_file import PolicyFile
from gpuaudit.capture.probes import LIBRARIES, PROBE_TABLE, Probe
from gpuaudit.capture.selection import DENIED
from gpuaudit.capture.source import BPF_SOURCES, SELECTABLE_SOURCES, TABLES_OF_SOURCE

CLASSES = ("sources", "libraries", "ops", "tables", "environment")
_KEYS = ("capabilities", *CLASSES, "stacks", "max_duration", "remote_engines")
_PATTERN = re.compile(r"[A-Za-z0-9_.*?\[\]!-]+\Z")


@dataclass(frozen=True)
class Rule:
    """``allow`` None: everything; then ``deny`` takes away. Names may be patterns with * and ?."""

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()

    def allows(self, name: str) -> bool:
        """Whether a name is allowed: it matches what is, and nothing that is not."""
        allowed = self.allow is None or any(fnmatchcase(name, p) for p in self.allow)
        return allowed and not any(fnmatchcase(name, p) for p in self.deny)


@dataclass(frozen=True)
class Verdict:
    """One line of the comparison: of what, and ``reason`` why it is denied, else what it is for."""

    kind: str
    name: str
    allowed: bool
    reason: str


@dataclass(frozen=True)
class SitePolicy:
    """Everything is allowed but what the file says otherwise. ``max_duration_s`` None: no limit of the site's."""

    name: str = ""
    sha256: str = ""
    text: str = ""
    capabilities: Rule = Rule()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    stacks: bool = True
    max_duration_s: float | None = None
    remote_engines: bool = True

    @classmethod
    def load(cls, path: Path) -> SitePolicy:
        """The policy in a file; InputUnusable, with the line, for anything that is not wholly understood."""
        return cls.of(PolicyFile.open(path))

    @classmethod
    def of(cls, file: PolicyFile) -> SitePolicy:
        """From a file that was read."""
        section = file.section
        file.known_keys(section, _KEYS)
        names = {
            "sources": SELECTABLE_SOURCES, "libraries": [x.name for x in LIBRARIES],
            "ops": [p.op for p in PROBE_TABLE], "tables": TABLES, "environment": VARIABLES,
            "capabilities": capabilities.NAMES,
        }  # fmt: skip
        rules = {kind: _rule(file, section, kind, names[kind]) for kind in ("capabilities", *CLASSES)}
        return cls(
            file.name, file.sha256, file.text, rules.pop("capabilities"), rules, file.flag(section, "stacks", True),
            file.duration_s(section, "max_duration"), file.flag(section, "remote_engines", True),
        )  # fmt: skip

    def allows(self, kind: str, name: str) -> bool:
        """Whether a name of one of :data:`CLASSES` is allowed."""
        return self.rules.get(kind, Rule()).allows(name)

    def allowed_capabilities(self) -> frozenset[str]:
        """Those that the attacher may use, of those it can use at all."""
        return frozenset(c for c in at_start() if self.capabilities.allows(c))

    def why_not_source(self, source: str) -> str:
        """Why a source may not be recorded; empty if it may. One whose tables cannot be told apart is whole or not."""
        if not self.allows("sources", source):
            return DENIED
        if source == "stacks" and not self.stacks:
            return DENIED
        denied = [t for t in TABLES_OF_SOURCE.get(source, ()) if not self.allows("tables", t)]
        if denied and (source not in _BY_FUNCTION or len(denied) == len(TABLES_OF_SOURCE[source])):
            return f"{DENIED}: table {', '.join(denied)}"
        if source in BPF_SOURCES:
            missing = [n.capability for n in NEEDS if n.required and not self.capabilities.allows(n.capability)]
            if missing:
                return f"{DENIED}: {' and '.join(missing)}"
        return ""

    def why_not_probe(self, library: str, probe: Probe) -> str:
        """Why a function may not be probed; empty if it may."""
        for kind, name in (("libraries", library), ("ops", probe.op), ("tables", probe.table)):
            if not self.allows(kind, name):
                return f"{DENIED}: {_SINGULAR[kind]} {name}"
        return ""

    def denied_ops(self) -> frozenset[tuple[str, str]]:
        """(library, op) of every function that is not to be attached."""
        return frozenset((x.name, p.op) for x in LIBRARIES for p in x.probes if self.why_not_probe(x.name, p))

    def check_duration(self, duration_s: float | None) -> float | None:
        """The duration that holds: the one asked for, or the longest allowed where none was. UsageError if longer."""
        longest = self.max_duration_s
        if longest is not None and duration_s is not None and duration_s > longest:
            raise UsageError(
                f"--duration {duration_s:g} s is longer than {longest:g} s: {DENIED} ({self.name})",
                hint=f"record at most {longest:g} s",
            )
        return duration_s if duration_s is not None or longest is None else longest

    def check_remote(self, urls: Iterable[str]) -> None:
        """UsageError where an engine elsewhere was named and the site allows none."""
        if not self.remote_engines and any(True for _ in urls):
            raise UsageError(f"--allow-remote: {DENIED} ({self.name})", hint="scrape engines of this host alone")

    def artefact(self) -> dict[str, Any]:
        """What is sealed into the bundle of a capture that obeyed it."""
        denied = [{"kind": v.kind, "name": v.name, "reason": v.reason} for v in self.verdicts() if not v.allowed]
        return {"name": self.name, "sha256": self.sha256, "text": self.text, "denied": denied}

    def verdicts(self) -> Iterator[Verdict]:
        """Everything a capture needs, each compared with what is allowed."""
        for need in NEEDS:
            allowed = self.capabilities.allows(need.capability)
            yield Verdict("capability", need.capability, allowed, need.step if allowed else f"{DENIED}: {need.without}")
        for source in SELECTABLE_SOURCES:
            why = self.why_not_source(source)
            yield Verdict("source", source, not why, why or ", ".join(TABLES_OF_SOURCE.get(source, ())))
        for library in LIBRARIES:
            reasons = {p.op: self.why_not_probe(library.name, p) for p in library.probes}
            denied = {op: why for op, why in reasons.items() if why}
            yield Verdict("library", library.name, len(denied) < len(reasons) or not reasons, _told(reasons, denied))
            if len(denied) < len(reasons):
                yield from (Verdict("op", op, False, why) for op, why in denied.items())
        for table in TABLES:
            allowed = self.allows("tables", table)
            yield Verdict("table", table, allowed, "" if allowed else DENIED)
        unread = [name for name in VARIABLES if not self.allows("environment", name)]
        told = f"{len(VARIABLES) - len(unread)} of {len(VARIABLES)} variables are read"
        yield Verdict("environment", "of other processes", len(unread) < len(VARIABLES), told if unread else "")
        yield from (Verdict("variable", name, False, DENIED) for name in unread)
        yield Verdict("stacks", "stacks", self.stacks, "" if self.stacks else DENIED)
        remote = "" if self.remote_engines else DENIED
        yield Verdict("remote engines", "--allow-remote", self.remote_engines, remote)


TABLES = tuple(sorted({t for source, ts in TABLES_OF_SOURCE.items() if source != "clock" for t in ts}))
"""What a policy can deny. Clock pairs, processes, libraries, probes, gaps and losses make evidence of the rest."""

VARIABLES = tuple(sorted(
    {*identity.VARIABLES, *engine_command.PLACE_VARIABLES, *(v for vs in engine_command.VARIABLES.values() for v in vs)}
))  # fmt: skip
"""Every variable of another process's environment that is ever read."""

_BY_FUNCTION = ("cuda", "nccl")
"""Sources whose tables are filled by probes that are attached one by one."""

_SINGULAR = {"libraries": "library", "ops": "op", "tables": "table"}


def _told(reasons: Mapping[str, str], denied: Mapping[str, str]) -> str:
    if denied and len(denied) == len(reasons):
        return DENIED
    return f"{len(reasons) - len(denied)} of {len(reasons)} functions are probed"


def _rule(file: PolicyFile, section: Mapping[str, Any], kind: str, names: Iterable[str]) -> Rule:
    """``kind = ["a", "b"]`` allows these; ``[capture.kind] allow = …, deny = …`` says both."""
    if isinstance(section.get(kind), list):
        rule = Rule(allow=file.names(section, kind))
    else:
        table = file.table(section, kind)
        file.known_keys(table, ("allow", "deny"))
        rule = Rule(file.names(table, "allow"), file.names(table, "deny") or ())
    for pattern in (*(rule.allow or ()), *rule.deny):
        if not _PATTERN.match(pattern):
            file.refuse(pattern, f"is no name of {kind}, nor a pattern of one")
        known = list(names)
        if not any(fnmatchcase(n, pattern) for n in known):
            file.refuse(
                pattern, f"matches none of the {kind}: {', '.join(known[:12])}{' …' if len(known) > 12 else ''}"
            )
    return rule
