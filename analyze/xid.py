"""What the numbers of XID events mean and what NVIDIA says to do about them.

Source: NVIDIA, "XID Errors", section "Analyzing XID Errors with the XID Catalog" (Ampere and later), in the edition
that names driver R575 (CUDA 12.9), read on 2026-11-22; meanings in our words. ``action`` is the catalogue's immediate
action, ``then`` what it says to look into. A number that is not here is told as unknown: nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpuaudit.analyze.finding import Severity

SOURCE = "NVIDIA, XID Errors, XID Catalog for Ampere and later (edition naming driver R575), read 2026-11-22"

Bucket = Literal[
    "none", "restart_app", "reset", "reboot", "restart_vm", "power", "update", "ecc", "nvlink", "nvlink5", "cleanup",
    "recovery", "uvm", "support",
]  # fmt: skip

ACTIONS: dict[Bucket, tuple[str, Severity]] = {
    "none": ("none at once", "notice"),
    "restart_app": ("restart the application", "warning"),
    "reset": ("stop the work on the GPU and reset it", "critical"),
    "reboot": ("reboot the node", "critical"),
    "restart_vm": ("restart the virtual machine", "critical"),
    "power": ("check the board's power connection", "critical"),
    "update": ("update driver and firmware", "warning"),
    "ecc": ("stop the work and reset the GPU, or reboot; look at the ECC counters", "critical"),
    "nvlink": ("stop the work and reset the GPUs of the link, or reboot; look at the NVLink counters", "critical"),
    "nvlink5": ("act by the sub-code in the kernel log: from none to a reset", "warning"),
    "cleanup": ("look for the other XID that it follows; alone: restart the fabric manager", "notice"),
    "recovery": ("carry out the recovery action that the kernel log names", "warning"),
    "uvm": ("check unified memory", "warning"),
    "support": ("ask the hardware vendor's support", "warning"),
}
"""What to do, and how grave a finding is for it: ours, by whether work has to stop (critical) or a job is lost."""

_NEXT = {
    "app": "the application (memory checker, debugger), then the CUDA libraries",
    "support": "the hardware vendor's support, if it comes again",
    "software": "driver and software",
    "link": "the signal of the link: cables, connectors, the device at its other end",
    "": "nothing more",
}

_TABLE: tuple[tuple[int, str, Bucket, str], ...] = (
    (8, "the GPU stopped processing", "restart_app", "support"),
    (11, "invalid or corrupted stream of commands", "restart_app", "app"),
    (13, "exception in the compute or graphics engine, mostly an access out of bounds by the application",
     "restart_app", "app"),
    (14, "an error injected on purpose from user space", "none", "support"),
    (25, "invalid or illegal stream of commands", "restart_app", "app"),
    (31, "page fault in GPU memory, mostly an illegal address of the application", "restart_app", "app"),
    (32, "invalid or corrupted stream of commands, mostly the quality of the PCIe link", "restart_app", "app"),
    (37, "firmware error of the driver", "none", "app"), (38, "firmware error of the driver", "none", "support"),
    (39, "exception in a copy engine", "restart_app", "support"),
    (40, "exception in a copy engine", "restart_app", "support"),
    (41, "exception in a copy engine", "restart_app", "support"),
    (43, "an application ended by a fault of its own; the GPU is healthy", "none", "support"),
    (44, "fault in a context switch", "none", "support"),
    (45, "an application was removed from the GPU: it was aborted, or an error came before", "cleanup", ""),
    (46, "the GPU stopped processing", "reset", "support"),
    (48, "uncorrectable (double-bit) ECC error", "ecc", "support"),
    (54, "auxiliary power is not connected", "power", "support"),
    (60, "exception in the video processor", "restart_app", "software"),
    (62, "an internal controller halted", "reset", "support"),
    (63, "a row was remapped, or a page retired", "none", ""),
    (64, "a row could not be remapped, or a page not retired", "reset", "support"),
    (66, "illegal access by the driver", "none", "software"), (67, "illegal access by the driver", "none", "support"),
    (68, "exception in a video decoder", "restart_app", "support"),
    (69, "class error of the graphics engine", "restart_app", "app"),
    *((n, "unknown error of a copy engine", "restart_app", "support") for n in (70, 71, 72, 75, 76, 77, 85)),
    (74, "NVLink error: the link, or the device at its other end", "nvlink", "support"),
    (78, "vGPU could not start", "update", ""),
    (79, "the GPU has fallen off the bus", "reboot", "support"),
    (80, "corrupted data were sent to the GPU", "restart_app", "app"),
    (86, "exception in the optical flow engine", "restart_app", "support"),
    *((n, "error of a video or image decoder", "restart_app", "support")
      for n in (82, 83, 84, 88, 89, *range(96, 106))),
    (92, "high rate of single-bit ECC errors", "none", "support"),
    (93, "the InfoROM's provisioned limit of writes was reached", "none", "support"),
    (94, "memory error, contained to one application", "restart_app", ""),
    (95, "memory error that was not contained: all applications on the GPU", "reset", ""),
    (106, "test message", "none", ""), (107, "test message", "none", ""),
    (108, "an access over NVLink could not be translated at the other end, mostly an illegal one of the application",
     "none", "app"),
    (109, "a context switch timed out", "reset", "support"),
    (110, "security fault", "reset", "software"),
    (119, "the GPU's system processor (GSP) did not answer in time", "reset", "software"),
    (120, "error in the GPU's system processor (GSP)", "reset", "software"),
    (121, "corrected errors on the chip-to-chip link", "none", "support"),
    *((n, "unknown error of a copy engine", "restart_app", "support") for n in range(126, 136)),
    (136, "training of a link failed", "reset", "link"),
    (137, "illegal access over NVLink, mostly by the application", "none", "app"),
    (139, "error of the optical flow engine", "restart_app", "support"),
    (140, "unrecovered ECC error", "reset", "support"),
    (141, "error of the CUDA fast path", "none", "support"),
    (142, "error of a video encoder", "support", ""),
    (143, "the GPU could not be initialised", "reset", "support"),
    *((n, "NVLink error", "nvlink5", "link") for n in range(144, 151)),
    (151, "key rotation failed", "restart_vm", "support"),
    (152, "error of the deep-learning accelerator's memory unit", "none", "support"),
    (153, "the deep-learning accelerator timed out", "none", "support"),
    (154, "the recovery action that the driver asks for has changed", "recovery", ""),
    (155, "NVLink error defined by software, also a link taken down on purpose", "reset", "software"),
    (156, "a resource was retired", "reset", ""), (157, "a resource could not be retired", "none", "support"),
    (158, "the GPU timed out fatally", "reset", "support"),
    (159, "error on the chip-to-chip link", "uvm", "support"),
    (160, "a channel was retired", "none", "software"), (161, "a channel could not be retired", "none", "software"),
)  # fmt: skip


@dataclass(frozen=True)
class Xid:
    """One number: meaning, immediate action, what to look into, and how grave."""

    number: int
    meaning: str
    action: str
    then: str
    severity: Severity


XIDS: dict[int, Xid] = {n: Xid(n, meaning, ACTIONS[b][0], _NEXT[then], ACTIONS[b][1]) for n, meaning, b, then in _TABLE}


def xid(number: int) -> Xid:
    """What is known of an XID; for a number that the catalogue does not explain, that it is unknown."""
    known = XIDS.get(number)
    if known is not None:
        return known
    return Xid(number, "not explained in the catalogue", "look it up with the driver's version", "not known", "warning")
