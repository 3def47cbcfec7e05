"""What the part ``syscalls`` looks for: whether ioctls and socket transfers are wanted, and on which devices."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from gpuaudit.bundle.errors import HostUnfit, UsageError
from gpuaudit.capture import libbpf

IOCTL, SOCKETS = "ioctl", "sockets"
"""Sources that the part serves."""

ANY_TYPE = 0xFFFFFFFF
"""``ANY_TYPE`` of capture/bpf/syscalls.bpf.c."""

NVIDIA_MAJOR = 195
"""Documentation/admin-guide/devices.txt, "NVIDIA graphics devices": nvidia, nvidiactl, nvidia-modeset."""

NVIDIA_TYPES = {"nvidia": ord("F"), "nvidiactl": ord("F"), "nvidia-frontend": ord("F"), "nvidia-modeset": ord("m")}
"""Type of the requests on NVIDIA_MAJOR by name of the device: NV_IOCTL_MAGIC in nv-ioctl-numbers.h and
NVKMS_IOCTL_MAGIC in nvkms-ioctl.h (open-gpu-kernel-modules). UVM's requests are small numbers without a type
(uvm_linux_ioctl.h, UVM_IOCTL_BASE), and the other devices' drivers define their own: there every type is watched."""

_DEVICES = Path("/proc/devices")

Device = tuple[int, int]
"""Major number and type of the request, or :data:`ANY_TYPE`."""


class Maps(Protocol):
    """A loaded part, as far as it is used here."""

    def map_fd(self, name: str) -> int:
        """File descriptor of a map."""


def nvidia_devices(text: str) -> frozenset[Device]:
    """Devices of the NVIDIA drivers that are loaded, from the text of /proc/devices; empty without any."""
    found: set[Device] = set()
    for line in text.partition("Block devices:")[0].splitlines():
        number, _, name = line.strip().partition(" ")
        if not number.isdecimal() or not name.startswith("nvidia"):
            continue
        major = int(number)
        found.add((major, NVIDIA_TYPES.get(name, ANY_TYPE) if major == NVIDIA_MAJOR else ANY_TYPE))
    return frozenset(found)


def parse_device(text: str) -> Device:
    """``MAJOR`` or ``MAJOR:TYPE``, where TYPE is one character (``F``) or a number (``0x46``)."""
    major, colon, kind = text.partition(":")
    is_character = len(kind) == 1 and kind.isascii() and not kind.isdecimal()
    try:
        number = int(major, 0)
        chosen = (ord(kind) if is_character else int(kind, 0)) if colon else ANY_TYPE
    except ValueError:
        number, chosen = -1, -1
    if not 0 <= number < 1 << 12 or not (chosen == ANY_TYPE or 0 <= chosen < 1 << 8):
        raise UsageError(f"{text!r} is not a device", hint="MAJOR or MAJOR:TYPE, as 195 or 195:F or 195:0x46")
    return number, chosen


def watched_now(extra: Iterable[Device]) -> frozenset[Device]:
    """The NVIDIA drivers' devices of this host and ``extra``."""
    try:
        text = _DEVICES.read_text("utf-8", "replace")
    except OSError:
        text = ""
    return nvidia_devices(text) | frozenset(extra)


class SystemCalls:
    """The part's settings. ``devices``: watched besides the NVIDIA drivers'."""

    def __init__(self, sources: Collection[str], devices: Iterable[Device] = ()) -> None:
        self._extra = frozenset(devices)
        self._watched: frozenset[Device] = frozenset()
        self._maps: Maps | None = None
        self.refused: HostUnfit | None = None
        """Why no ioctls can be recorded, where they were asked for."""
        if IOCTL in sources and not watched_now(self._extra):
            self.refused = HostUnfit(
                f"this host has no NVIDIA driver: {_DEVICES} names none", hint="load the driver before the capture"
            )
        self.sources = frozenset(sources) & {IOCTL, SOCKETS} - ({IOCTL} if self.refused else set())
        """What is really recorded."""

    def configure(self, maps: Maps) -> None:
        """Tell the loaded programs; HostUnfit when the kernel refuses."""
        self._maps = maps
        self.look_for_devices()
        value = struct.pack("<II", IOCTL in self.sources, SOCKETS in self.sources)
        try:
            libbpf.map_update(maps.map_fd("watched"), struct.pack("<I", 0), value)
        except OSError as e:
            raise HostUnfit(f"the programs for system calls cannot be set up: {e.strerror or e}") from None

    def look_for_devices(self) -> None:
        """Drivers are loaded when they are first used (UVM), and get their numbers then."""
        if self._maps is None or IOCTL not in self.sources:
            return
        now = watched_now(self._extra)
        for device in now - self._watched:
            with suppress(OSError):  # more devices than the map holds
                libbpf.map_update(self._maps.map_fd("devices"), struct.pack("<II", *device), struct.pack("<I", 1))
        self._watched |= now
