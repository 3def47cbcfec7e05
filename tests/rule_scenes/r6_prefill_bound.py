"""A server that computes a hundred prompt tokens for each one that it generates."""

from __future__ import annotations

from tests.served import Served, Traffic


def scenes() -> list[Served]:
    """Long prompts, short answers."""
    return [Traffic(requests=10, prompt=2000, generated=20, tpot=0.1).scene()]
