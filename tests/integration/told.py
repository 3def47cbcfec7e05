"""What the ranks of the workload wrote down about themselves, and what follows from it without any code of ours."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.integration.recording import Row, truth


@dataclass(frozen=True)
class Told:
    """``calls[rank]``: every call with before_ns and after_ns (CLOCK_BOOTTIME); ``counts`` by process and API."""

    pids: list[int]
    calls: list[list[Row]]
    counts: dict[tuple[int, str], int]

    def before(self, rank: int, op: str) -> list[int]:
        """When the rank was about to make each call of an API."""
        return [c["before_ns"] for c in self.calls[rank] if c["op"] == op]

    def inside(self, rank: int, op: str) -> list[tuple[int, int]]:
        """From when to when it was in each call of an API."""
        return [(c["before_ns"], c["after_ns"]) for c in self.calls[rank] if c["op"] == op]

    def last_rank(self) -> int:
        """The rank that entered the most all-reduces after all others."""
        entered = [self.before(r, "ncclAllReduce") for r in range(len(self.pids))]
        last = Counter(max(range(len(entered)), key=lambda r: entered[r][i]) for i in range(len(entered[0])))
        return last.most_common(1)[0][0]

    def lateness(self, late: int) -> list[int]:
        """By how many ns it entered each all-reduce after the median of the others."""
        return [a - m for a, m in self._arrivals(late)]

    def share_waited(self, late: int, op: str) -> float:
        """Of the time the other ranks spent in ``op`` (where they wait), how much lay before the late rank came."""
        waited = spent = 0
        arrivals = self._arrivals(late)
        for rank in range(len(self.pids)):
            if rank != late:
                for (begin, end), (came, others) in zip(self.inside(rank, op), arrivals, strict=True):
                    waited += max(0, min(end, came) - max(begin, others))
                    spent += end - begin
        return waited / spent

    def _arrivals(self, late: int) -> list[tuple[int, int]]:
        entered = [self.before(r, "ncclAllReduce") for r in range(len(self.pids))]
        others = [e for r, e in enumerate(entered) if r != late]
        return [(entered[late][i], int(median(e[i] for e in others))) for i in range(len(entered[late]))]


def told(out: Path, ranks: int = 4) -> Told:
    """Read what ``ranks --out OUT`` left; its own counters must agree with the calls it listed."""
    files = [truth(out.with_name(f"{out.name}.{rank}")) for rank in range(ranks)]
    pids = [int(f[0]["pid"]) for f in files]
    calls = [[c for c in f if "before_ns" in c] for f in files]
    counts = {
        (pid, op): int(n)
        for pid, f in zip(pids, files, strict=True) for op, n in f[-1]["counts"].items()
        if int(n)
    }  # fmt: skip
    listed = Counter((pid, c["op"]) for pid, of_rank in zip(pids, calls, strict=True) for c in of_rank)
    assert counts == dict(listed), "the workload's own counters and its list differ"
    return Told(pids, calls, counts)
