"""What the programs are told once, before they are attached: ``struct config`` of capture/bpf/shared.h."""

from __future__ import annotations

import struct
from dataclasses import dataclass

SLOW_NS = 1_000_000
"""From this duration on a call is slow: it has a row of its own whatever there are, and its stacks. 1 ms, as the
shortest that a person who looks at a training step cares for. ours"""

BUDGET_PER_S = 200_000
"""Rows of calls in a second, of all CPUs together, before fast calls are added up instead.

Chosen from what a row costs the recorder, from the ring to the sealed file: 0.42 µs of CPU and 6 to 12 bytes
(``python -m bench flow``, AMD EPYC, two CPUs). So a storm costs the host at most a twelfth of a core and 2 MB/s; eight
ranks that launch 20,000 kernels a second each stay below it. ours"""

WINDOW_NS = 1 << 26
"""The budget is given out in windows of this length: ``WINDOW_SHIFT`` of capture/bpf/totals.h, 67 ms."""

CONFIG_STACKS, CONFIG_NO_ENTRIES, CONFIG_NO_RETURNS = 1, 2, 4
"""``enum config_flags``."""

_CONFIG = struct.Struct("<IIQII")
CONFIG_BYTES = _CONFIG.size


@dataclass(frozen=True)
class Settings:
    """``budget_per_s`` 0: every call is a row, and what finds the ring full is lost. ``sample_every`` N: of the calls
    that are not slow, one in N is a row, with its stacks; 0: none."""

    slow_ns: int = SLOW_NS
    sample_every: int = 0
    budget_per_s: int = BUDGET_PER_S
    stacks: bool = False

    def pack(self, *, selected_only: bool) -> bytes:
        """The ``struct config``. A budget is at least one row in a window."""
        budget = self.budget_per_s and min(max(1, self.budget_per_s * WINDOW_NS // 1_000_000_000), 0xFFFFFFFF)
        flags = CONFIG_STACKS if self.stacks else 0
        return _CONFIG.pack(selected_only, flags, self.slow_ns, self.sample_every, budget)


def silenced(config: bytes, *, at_return: bool) -> bytes:
    """The ``struct config`` with which the entry programs do nothing, or the return programs."""
    selected_only, flags, *rest = _CONFIG.unpack(config)
    return _CONFIG.pack(selected_only, flags | (CONFIG_NO_RETURNS if at_return else CONFIG_NO_ENTRIES), *rest)
