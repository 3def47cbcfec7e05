"""Sizes past which bytes are refused before anything is decoded. The writer stays within the same limits."""

from __future__ import annotations

SALT_BYTES = 16
"""Random bytes before the data of every payload, so that the digest of a small withheld one cannot be guessed."""

SEGMENT_ROWS = 1_000_000
SEGMENT_RAW_BYTES = 64 << 20
SEGMENT_SECONDS = 5
"""A recorder closes a segment at the first of these three."""

MAX_ROWS = 1 << 21
MAX_RAW_BYTES = 128 << 20
"""Twice what closes a segment, so that a batch may overshoot."""

MAX_PAYLOAD_BYTES = 132 << 20
"""``MAX_RAW_BYTES``, the expansion of incompressible data by zstd (1/256) and a frame header per column."""

MAX_HEADER_BYTES = 64 << 10
MAX_COLUMNS = 64
MAX_NOTE_BYTES = 4096
MAX_SEAL_BYTES = 1 << 20
MAX_LEAVES = 1 << 20
"""At one leaf every 5 s per table, 22 tables: two days and a half. The manifest in the seal (at most 87 bytes a leaf)
must stay within ``MAX_RAW_BYTES``."""

LEAVES_AT_END = 16
"""Leaves that no rows may take, so that a full bundle can still be closed: last artefacts, events and the seal."""

MAX_JSON_COMMAS = 1 << 20
"""Bounds the objects that a JSON text becomes: 128 MiB of ``[{},{},…]`` would take more than 5 GiB."""

MAX_WINDOW_LOG = 23
"""zstd window of at most 8 MiB (RFC 8878, section 3.1.1.1.2 asks every decoder for as much)."""
