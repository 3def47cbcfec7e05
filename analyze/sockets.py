"""Which sockets belong to the ranks of a communicator, and who is at their other end.

A socket is one end of a connection: namespace aside, a pair of addresses and ports. Its other end is known where a
followed process has a socket with the same two ends the other way round. Units: ns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze.store import NOT_OWN, Store

End = tuple[str, int, str, int]
"""Local address and port, remote address and port."""


_ENDED = """
WITH c AS (
  SELECT DISTINCT local_address AS la, local_port AS lp, remote_address AS ra, remote_port AS rp FROM tcp_retransmits
), sides AS (SELECT * FROM c UNION SELECT ra, rp, la, lp FROM c)
SELECT la, lp, ra, rp, end_ns FROM socket_io JOIN sides ON local_address = la AND local_port = lp
  AND remote_address = ra AND remote_port = rp WHERE count > errors ORDER BY end_ns
"""


MAX_ADDRESS = 64
"""Characters of an address that are shown; one of IPv6 has 39, and a stranger's bundle may hold anything."""


def shown(address: object) -> str:
    """An address from evidence, of bounded length."""
    return str(address)[:MAX_ADDRESS]


@dataclass(frozen=True)
class Sockets:
    """Processes by the ends and inodes of the sockets that they sent or received on."""

    by_end: dict[End, frozenset[int]]
    by_inode: dict[int, frozenset[int]]
    ended: dict[End, npt.NDArray[np.int64]]
    """Of connections on which packets were sent again: when windows with a successful call ended, in order."""

    def owners(self, pid: int | None, inode: int | None, end: End) -> frozenset[int]:
        """Whose socket it is: the process told, or those seen to use it."""
        if pid is not None:
            return frozenset({pid})
        if inode is not None and inode in self.by_inode:
            return self.by_inode[inode]
        return self.by_end.get(end, frozenset())

    def others(self, end: End) -> frozenset[int]:
        """Followed processes at the other end."""
        local, local_port, remote, remote_port = end
        return self.by_end.get((remote, remote_port, local, local_port), frozenset())

    def moved(self, end: End, at: int) -> int:
        """When the last window of calls on the connection, from either side, had ended by ``at``; 0 without one."""
        out = 0
        local, local_port, remote, remote_port = end
        for side in (end, (remote, remote_port, local, local_port)):
            known = self.ended.get(side)
            before = 0 if known is None else int(np.searchsorted(known, at, side="right"))
            if known is not None and before:
                out = max(out, int(known[before - 1]))
        return out

    def between(self, owners: Collection[int], end: End, ranks: Collection[int], peers: Collection[int]) -> bool:
        """Whether the connection may be one of ``ranks`` to ``peers``: an owner is a rank, and no process is known at
        the other end that is not a peer."""
        others = self.others(end)
        return bool(set(owners) & set(ranks)) and (not others or bool(others & set(peers)))


def read_sockets(store: Store) -> Sockets:
    """Every socket with addresses that a followed process sent or received on."""
    ends: dict[End, set[int]] = defaultdict(set)
    inodes: dict[int, set[int]] = defaultdict(set)
    rows = store.sql(
        "SELECT DISTINCT pid, inode, local_address, local_port, remote_address, remote_port FROM socket_io "
        f"WHERE local_address IS NOT NULL AND remote_address IS NOT NULL AND {NOT_OWN}"
    )
    for pid, inode, local, local_port, remote, remote_port in rows:
        ends[str(local), int(local_port or 0), str(remote), int(remote_port or 0)].add(int(pid))
        inodes[int(inode)].add(int(pid))
    ended: dict[End, list[int]] = defaultdict(list)
    for local, local_port, remote, remote_port, at in store.sql(_ENDED):
        ended[str(local), int(local_port), str(remote), int(remote_port)].append(int(at))
    return Sockets(
        {k: frozenset(v) for k, v in ends.items()}, {k: frozenset(v) for k, v in inodes.items()},
        {k: np.array(v, dtype=np.int64) for k, v in ended.items()},
    )  # fmt: skip
