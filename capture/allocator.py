"""How the C library keeps the recorder's memory: arrays of megabytes come and go with every drain and every segment."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""malloc.h of glibc."""

LARGEST_BYTES = 32 << 20
"""The most that glibc takes from its heap instead of mapping it (DEFAULT_MMAP_THRESHOLD_MAX)."""

KEPT_BYTES = 128 << 20
"""Free memory at the heap's end that is kept: about what one segment needs while it is sealed."""


def keep_freed_memory() -> None:
    """Have freed arrays used again. Otherwise glibc gives each back to the kernel, which then has to clear its pages
    anew: two fifths of what a row costs the recorder. Without effect on another C library."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
