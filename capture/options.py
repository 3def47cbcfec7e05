"""What a capture was asked to do, what it says while it runs, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gpuaudit.capture.settings import BUDGET_PER_S
from gpuaudit.capture.source import SELECTABLE_SOURCES

if TYPE_CHECKING:
    from gpuaudit.capture.site_policy import SitePolicy

DEFAULT_DURATION_S = 60.0
"""Length of a capture that was given neither a duration nor a command (docs: ``audit capture``)."""


@dataclass(frozen=True)
class CaptureOptions:
    """Everything ``audit capture`` can be told.

    ``out`` None: ``audit-<host>-<utc>.db`` in the current directory. ``duration_s`` None: 60 s, or until ``command``
    ends. ``pids``: only these processes and their children; without ``pids``, ``command``, ``users``, ``comms`` and
    ``cgroups`` the whole host. ``users`` (names or ids), ``comms`` (names of processes) and ``cgroups`` (paths in the
    version 2 hierarchy): only processes that have one of each kind that is given, and their children. ``excludes``:
    ``pid=N``, ``user=NAME``, ``comm=NAME`` or ``cgroup=PATH``; never these and their children.
    ``synthetic``: name of a scenario of :mod:`gpuaudit.capture.scenario`; no root, no GPU. ``challenge``: a text the
    recipient chose, sealed into leaf 0 against replay. ``site`` names the operator in the bundle's origin.
    ``receipt_path`` None: ``<out>.receipt``. ``strict``: a capture with parts missing ends as ``Incomplete``.
    ``engines``: URLs of engines' metrics on this host, besides those that are found; ``allow_remote``: URLs that may
    lie elsewhere. ``stack_threshold_ms``: a call that takes so long has its stacks taken, and is a row of its own
    whatever there are; of the others one in ``stack_sample``, 0 for none. ``budget_per_s``: rows of calls in a second
    before fast calls are added up instead (table ``call_totals``); 0: every call is a row, and may be lost.
    ``ioctl_devices``: ``MAJOR`` or ``MAJOR:TYPE``, character devices whose ioctls are recorded besides those of the
    NVIDIA driver. ``policy``: what the site allows; it is obeyed, and sealed with the evidence.
    """

    out: Path | None = None
    duration_s: float | None = None
    pids: tuple[int, ...] = ()
    command: tuple[str, ...] = ()
    force: bool = False
    synthetic: str | None = None
    sources: tuple[str, ...] = SELECTABLE_SOURCES
    challenge: str = ""
    site: str = "local"
    receipt_path: Path | None = None
    strict: bool = False
    seed: int = 1
    engines: tuple[str, ...] = ()
    allow_remote: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    comms: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    stack_threshold_ms: float = 1.0
    stack_sample: int = 0
    budget_per_s: int = BUDGET_PER_S
    ioctl_devices: tuple[str, ...] = ()
    policy: SitePolicy | None = None


Phase = Literal["notice", "receipt", "recording", "sealing"]


@dataclass(frozen=True)
class Status:
    """One thing to tell the person who waits.

    ``notice`` and ``receipt`` carry a text in ``message`` that should be printed and stay; ``recording`` and
    ``sealing`` come twice a second and are one live line (:meth:`line`).
    """

    phase: Phase
    message: str = ""
    elapsed_s: float = 0.0
    rows: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    size_bytes: int = 0

    def line(self) -> str:
        """The live line: elapsed time, events per table, lost, size."""
        tables = "  ".join(f"{name} {n:,}" for name, n in self.rows.items() if n)
        size = f"{self.size_bytes / 1e6:,.1f} MB"
        return f"{self.phase} {self.elapsed_s:,.0f} s  {tables or 'no events yet'}  lost {self.lost:,}  {size}"


EndedBy = Literal["duration", "interrupt", "terminate", "workload", "scenario"]


@dataclass(frozen=True)
class CaptureResult:
    """A sealed bundle. ``workload_status``: exit code of the command, or −signal; None without a command.

    ``totals`` has per table ``seen``, ``written``, ``lost``, ``segments``; ``sources`` one row per source with its
    final state; ``incomplete`` the sentences that make the capture less than complete, empty if none.
    """

    path: Path
    seal_path: Path
    receipt_path: Path
    origin: str
    root_b64: str
    size: int
    file_sha256: str
    ended_by: EndedBy
    elapsed_s: float
    totals: dict[str, dict[str, int]]
    sources: list[dict[str, str]]
    incomplete: tuple[str, ...]
    workload_status: int | None
    identity_created: bool
