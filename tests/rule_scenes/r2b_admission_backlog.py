"""A server with free seats and a full cache, before which prompts wait."""

from __future__ import annotations

from tests.served import Served, Traffic


def scenes() -> list[Served]:
    """Twenty prompts of 500 tokens wait for 1,600 tokens of cache."""
    return [
        Traffic(
            kv=0.95, waiting=20, settings={"max_num_seqs": "256", "num_gpu_blocks": "100", "block_size": "16"}
        ).scene()
    ]
