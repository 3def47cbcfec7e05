"""The Merkle tree of RFC 6962 (and RFC 9162, section 2.1.1) over leaf headers, with SHA-256.

The root is kept incrementally: appending costs one hash on average, the root at most log2(n).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(header: bytes) -> bytes:
    """SHA-256(00 ‖ header)."""
    return hashlib.sha256(b"\x00" + header).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The roots of the complete subtrees, largest first: all that is needed to append and to tell the root."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._size = 0
        self._subtrees: list[bytes] = []
        for leaf in leaves:
            self.append(leaf)

    @property
    def size(self) -> int:
        """Leaves appended so far."""
        return self._size

    def append(self, leaf: bytes) -> None:
        """Append one leaf hash."""
        node, size = leaf, self._size
        while size & 1:
            node = node_hash(self._subtrees.pop(), node)
            size >>= 1
        self._subtrees.append(node)
        self._size += 1

    def root(self) -> bytes:
        """The root over all leaves appended so far."""
        if not self._subtrees:
            return EMPTY_ROOT
        node = self._subtrees[-1]
        for left in reversed(self._subtrees[:-1]):
            node = node_hash(left, node)
        return node

    def root_with(self, leaf: bytes) -> bytes:
        """The root as it would be after :meth:`append` of ``leaf``; nothing is changed."""
        trial = Frontier()
        trial._size, trial._subtrees = self._size, list(self._subtrees)
        trial.append(leaf)
        return trial.root()
