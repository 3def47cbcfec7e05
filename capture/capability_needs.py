"""Which step of a capture needs which capability, how long it is kept, and what is missing without it.

Found by trying: ``tests/integration/test_least_privilege.py`` takes each one away. docs/reference/privileges.md is made
from this table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Keep = Literal["start", "bpf", "output", "other user", "engines"]
"""How long: until everything is started, or to the end where BPF is used, where the directory of the bundle or the
recorder's files are not ours, where somebody else's process was started, where engines are looked for."""


@dataclass(frozen=True)
class Need:
    """``step``: what for. ``without``: what a capture is like that lacks it. ``required``: it does not begin then."""

    capability: str
    keep: Keep
    step: str
    without: str
    required: bool = False


NEEDS = (
    Need("CAP_BPF", "bpf", "load the BPF programs and maps, link the program to a library that is loaded later",
         "no source that needs BPF", required=True),
    Need("CAP_PERFMON", "bpf", "programs that trace, and linking them to functions",
         "no source that needs BPF", required=True),
    Need("CAP_SYS_PTRACE", "bpf", "read what other users' processes map and execute (/proc/PID/maps, exe, root, fd, "
         "ns), and the frames of their interpreters", "no source that needs BPF", required=True),
    Need("CAP_DAC_READ_SEARCH", "bpf", "open libraries in folders that are closed to us, read what the recorder wrote",
         "such libraries are not observable, with the reason; their calls are a gap"),
    Need("CAP_CHECKPOINT_RESTORE", "bpf", "open the very file a process has mapped (/proc/PID/map_files), also one "
         "that was deleted or replaced", "the file is opened by its path within the process's root, and refused where "
         "that leads to another one"),
    Need("CAP_SETUID", "start", "run the recorder and the command as other users",
         "the recorder runs as the user who called, without any capability; nothing is started for the user who called "
         "sudo"),
    Need("CAP_SETGID", "start", "the same, their groups", "the same"),
    Need("CAP_SYS_PTRACE", "engines", "see where other users' engines listen, and what their settings are",
         "engines of other users are not found; one that is named has no process and no settings"),
    Need("CAP_SETUID", "engines", "open an engine's files, and find its socket, with its own user's rights",
         "an engine of another user: no settings from its model's files, none through a Unix socket"),
    Need("CAP_SETGID", "engines", "the same, its groups", "the same"),
    Need("CAP_SYS_ADMIN", "start", "give the recorder a view of the file system and a network of its own; the perf "
         "events that probe functions where the kernel has no uprobe_multi (before Linux 6.6); and with a libbpf older "
         "than 1.3, look for kernel symbols that this kernel lacks",
         "the recorder sees the host's file system as any user does; no calls are recorded where the kernel has no "
         "uprobe_multi; off_cpu is not available with an old libbpf"),
    Need("CAP_SYS_RESOURCE", "start", "lock the recorder's memory, so that its keys are never swapped; raise limits "
         "back to those of the user's shell", "memory is not locked unless RLIMIT_MEMLOCK is unlimited; the command "
         "has audit's limits"),
    Need("CAP_SETPCAP", "start", "empty the bounding sets, so that nothing executed later regains a capability",
         "the bounding sets stay as they were; no_new_privs is set all the same"),
    Need("CAP_CHOWN", "output", "give the folder to the recorder and the bundle to the user who called sudo",
         "the recorder keeps our user"),
    Need("CAP_FOWNER", "output", "set the mode of what the recorder made, and take it out of folders like /tmp",
         "the recorder keeps our user"),
    Need("CAP_DAC_OVERRIDE", "output", "write in the folder of the user who called sudo, and in the recorder's",
         "the recorder keeps our user; only a folder that is ours can be written to"),
    Need("CAP_KILL", "other user", "end a recorder that hangs, pass Ctrl-C on to a command that runs as another user",
         "they are waited for"),
)  # fmt: skip
"""By step. A capability that several steps need is kept as long as the longest of them."""


def at_start() -> frozenset[str]:
    """What a capture can use at all; everything else is given up before anything is done."""
    return frozenset(need.capability for need in NEEDS)


def kept(reasons: Iterable[Keep]) -> frozenset[str]:
    """What it keeps while it runs, for these reasons."""
    wanted = frozenset(reasons)
    return frozenset(need.capability for need in NEEDS if need.keep in wanted)


def without(held: frozenset[str]) -> list[str]:
    """What a capture with only these capabilities is like, one sentence for each that it could use and lacks."""
    return [f"without {n.capability} {n.without}" for n in NEEDS if n.capability not in held and not n.required]


def reference() -> str:
    """The table of docs/reference/privileges.md."""
    held = {"start": "until everything runs", "bpf": "to the end, where BPF is used",
            "output": "to the end, where the recorder is another user",
            "other user": "to the end, where the recorder is another user",
            "engines": "to the end, where engines are looked for"}  # fmt: skip
    lines = ["| capability | what for | how long | without it |", "|---|---|---|---|"]
    for n in NEEDS:
        without = f"{n.without} **(required)**" if n.required else n.without
        lines.append(f"| `{n.capability}` | {n.step} | {held[n.keep]} | {without} |")
    return "\n".join(lines) + "\n"
