"""Facts about this host that stand in leaf 0: which host it is and what it runs."""

from __future__ import annotations

import hashlib
import hmac
import os
import platform
import re
import socket
from pathlib import Path

_MACHINE_ID = Path("/etc/machine-id")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_APPLICATION_KEY = b"gpu-audit host id 1"
"""machine-id(5) asks applications not to expose the raw id but a keyed hash of it."""


def hostname() -> str:
    """The host's name, reduced to characters that are safe in an origin and a file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64].strip(".-") or "host"


def boot_id() -> str:
    """The kernel's random id of this boot; empty when /proc does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def host_id(identity_public_key: bytes) -> str:
    """16 hex digits that stay the same on this host: a keyed hash of machine-id, or of the identity without one."""
    try:
        raw = _MACHINE_ID.read_text(encoding="ascii").strip().encode()
    except (OSError, UnicodeDecodeError):
        raw = b""
    return hmac.new(_APPLICATION_KEY, raw or identity_public_key, hashlib.sha256).hexdigest()[:16]


def host_facts(identity_public_key: bytes) -> dict[str, object]:
    """The ``host`` object of leaf 0."""
    return {
        "hostname": hostname(), "kernel": platform.release(), "machine": platform.machine(),
        "cpus": os.cpu_count() or 1, "host_id": host_id(identity_public_key), "boot_id": boot_id(),
    }  # fmt: skip
