"""A server whose cache is full, and that preempts."""

from __future__ import annotations

from tests.served import Served, Traffic


def scenes() -> list[Served]:
    """A preemption per second, and a queue."""
    return [Traffic(kv=0.95, preemptions=1, waiting=5).scene()]
