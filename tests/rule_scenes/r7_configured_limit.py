"""A server with fewer seats than its cache holds sequences, most of them taken."""

from __future__ import annotations

from tests.served import Served, Traffic


def scenes() -> list[Served]:
    """Twenty of 32 seats; the cache holds 54 sequences."""
    return [Traffic(running=20, settings={"max_num_seqs": "32", "max_model_len": "8192"}).scene()]
