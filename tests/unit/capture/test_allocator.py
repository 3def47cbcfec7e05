"""The recorder's freed memory is used again, and not cleared anew by the kernel for every array."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from gpuaudit.capture.allocator import keep_freed_memory
if sys.argv[1] == "kept": keep_freed_memory()
def use(): return [np.full(1 << 21, 7, "u1") for _ in range(8)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_arrays_are_used_again() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", CODE, way], check=True, capture_output=True, text=True).stdout)
        for way in ("as it is", "kept")
    }
    assert faults["kept"] < 100  # of 81,920 pages in 160 arrays
    assert faults["as it is"] > 10_000
