"""What on this host stands in the way of a step of the capture: a capability, a sysctl or a lockdown mode, by name.

Only told where a step was tried and refused: a kernel that lets it happen is never argued with. What each setting does
is in the kernel's Documentation/admin-guide/sysctl/kernel.rst, LSM/Yama.rst and security/lockdown/Kconfig.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpuaudit.capture.capabilities import CapabilitySets

Step = Literal[
    "load BPF programs", "probe functions", "probe functions by perf events", "look into processes",
    "read memory of processes",
]  # fmt: skip

CAPABILITIES_OF: dict[Step, tuple[str, ...]] = {
    "load BPF programs": ("CAP_BPF", "CAP_PERFMON"),
    "probe functions": ("CAP_PERFMON",),
    "probe functions by perf events": ("CAP_SYS_ADMIN",),
    "look into processes": ("CAP_SYS_PTRACE",),
    "read memory of processes": ("CAP_SYS_PTRACE",),
}
LOCKDOWN = "sys/kernel/security/lockdown"
_MODE = re.compile(r"\[(none|integrity|confidentiality)\]")
_MAX_BYTES = 4096


@dataclass(frozen=True)
class Obstacle:
    """``name`` as the kernel has it; ``detail`` what it is now and what it stops; ``hint`` what removes it."""

    name: str
    detail: str
    hint: str


def obstacles(step: Step, have: frozenset[str] | None = None, root: Path = Path("/")) -> list[Obstacle]:
    """What can have made the kernel refuse ``step``, the likeliest first.

    ``have``: capabilities of the process that was refused, None for this one. ``root``: where /proc and /sys are.
    """
    held = CapabilitySets.of().effective if have is None else have
    missing = [c for c in CAPABILITIES_OF[step] if c not in held]
    if "CAP_SYS_ADMIN" in held:  # which the kernel takes for these two
        missing = [c for c in missing if c not in ("CAP_BPF", "CAP_PERFMON")]
    out = [Obstacle(c, f"{c} is lacking, to {step}", f"sudo, or give {c} to the service") for c in missing]
    return out + [o for o in (_sysctl(step, missing, root), _lockdown(step, root)) if o is not None]


def in_words(found: list[Obstacle]) -> str:
    """The details, for a message; empty where nothing was found."""
    return "; ".join(o.detail for o in found)


def settings(root: Path = Path("/")) -> Iterator[tuple[str, str]]:
    """Name and value of each setting that can matter here, of those this kernel has."""
    for name in ("kernel.unprivileged_bpf_disabled", "kernel.perf_event_paranoid", "kernel.yama.ptrace_scope"):
        value = sysctl(name, root)
        if value is not None:
            yield name, value
    mode = lockdown_mode(root)
    if mode is not None:
        yield "kernel lockdown", mode


def sysctl(name: str, root: Path = Path("/")) -> str | None:
    """Value of a sysctl; None where this kernel has none of that name, or does not let it be read."""
    return _text(root.joinpath("proc/sys", *name.split(".")))


def lockdown_mode(root: Path = Path("/")) -> str | None:
    """``none``, ``integrity`` or ``confidentiality``; None where the kernel cannot be locked down, or does not tell."""
    found = _MODE.search(_text(root / LOCKDOWN) or "")
    return found[1] if found else None


def _sysctl(step: Step, missing: list[str], root: Path) -> Obstacle | None:
    if step == "load BPF programs" and "CAP_BPF" in missing:
        name = "kernel.unprivileged_bpf_disabled"
        value = sysctl(name, root)
        if value in ("1", "2"):
            return Obstacle(name, f"{name} is {value}: bpf(2) takes CAP_BPF here", "CAP_BPF; do not lower it")
    if step in ("load BPF programs", "probe functions") and "CAP_PERFMON" in missing:
        name = "kernel.perf_event_paranoid"
        value = sysctl(name, root)
        if value is not None and value.isdigit() and int(value) >= 1:
            detail = f"{name} is {value}: perf_event_open(2) takes CAP_PERFMON here"
            return Obstacle(name, detail, "CAP_PERFMON; do not lower it")
    if step == "read memory of processes":
        name = "kernel.yama.ptrace_scope"
        value = sysctl(name, root)
        if value == "3":
            detail = f"{name} is 3: nobody may read another process's memory until the next boot"
            return Obstacle(name, detail, "a lower value in sysctl.d, and a boot")
        if value in ("1", "2") and missing:
            return Obstacle(name, f"{name} is {value}: it takes CAP_SYS_PTRACE here", "CAP_SYS_PTRACE")
    return None


def _lockdown(step: Step, root: Path) -> Obstacle | None:
    """Integrity mode stops nothing here: what is stopped in it is writing to the kernel."""
    if step not in ("look into processes", "read memory of processes") and lockdown_mode(root) == "confidentiality":
        detail = "the kernel is locked down (confidentiality): BPF may not read kernel memory, nor perf trace it"
        return Obstacle(
            "kernel lockdown",
            detail,
            "boot with lockdown=integrity, or capture without BPF: --source nvml --source engines",
        )
    return None


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as f:
            return f.read(_MAX_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return None
