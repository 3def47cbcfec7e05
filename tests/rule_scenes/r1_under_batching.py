"""A server with 256 seats on which eight sequences run and nothing waits."""

from __future__ import annotations

from tests.served import Served, Traffic


def scenes() -> list[Served]:
    """Eight of 256 seats, with a GPU that is known."""
    return [Traffic(settings={"max_num_seqs": "256"}).scene()]
