"""What the attacher may still do once everything is started: as little as its capture needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpuaudit.capture import privileges
from gpuaudit.capture.capabilities import CapabilitySets
from gpuaudit.capture.capability_needs import Keep, kept
from gpuaudit.capture.namespace_desk import NamespaceDesk
from gpuaudit.capture.source import BPF_SOURCES


def namespace_desk(own_process: bool) -> NamespaceDesk | None:
    """For engines in containers, who keeps the capability that this process gives up; None where it does not."""
    return NamespaceDesk() if own_process and "CAP_SYS_ADMIN" in CapabilitySets.of().effective else None


def limit_while_running(sources: Sequence[str], *, other_users: bool) -> None:
    """Keep only what capturing these sources goes on needing; ``other_users``: the recorder runs as another user."""
    names = kept(_reasons(sources, other_users))
    if "CAP_BPF" in names and not {"CAP_BPF", "CAP_PERFMON"} <= CapabilitySets.of().permitted:
        names |= {"CAP_SYS_ADMIN"}  # which stands for both where a container's runtime does not know them
    privileges.limit_to(names, final=True)


def _reasons(sources: Sequence[str], other_users: bool) -> Iterator[Keep]:
    if any(source in BPF_SOURCES for source in sources):
        yield "bpf"
    if "engines" in sources:
        yield "engines"
    if other_users:
        yield from ("output", "other user")
