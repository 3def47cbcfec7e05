"""A server that computes 2,000 prompt tokens per second and finds few of them in its cache."""

from __future__ import annotations

from tests.served import Served, Traffic


def scenes() -> list[Served]:
    """Cache on with few hits, and cache off."""
    return [
        Traffic(hits=0.1, settings={"enable_prefix_caching": "True"}).scene(),
        Traffic(settings={"enable_prefix_caching": "False"}).scene(),
    ]
