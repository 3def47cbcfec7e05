"""A server all of whose seats are taken while requests wait."""

from __future__ import annotations

from tests.served import Served, Traffic


def scenes() -> list[Served]:
    """Eight seats, ten waiting."""
    return [Traffic(waiting=10, settings={"max_num_seqs": "8"}).scene()]
