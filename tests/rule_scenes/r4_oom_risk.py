"""A model of 70 billion parameters on one GPU of 80 GiB."""

from __future__ import annotations

from tests.served import Served, Traffic


def scenes() -> list[Served]:
    """140 GB of weights on one GPU."""
    return [Traffic(model="meta-llama/Llama-3.1-70B-Instruct", settings={"dtype": "bfloat16"}).scene()]
