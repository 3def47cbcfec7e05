"""One zstd frame at a time, within declared sizes; from the standard library on Python 3.14, backports.zstd before."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):  # pragma: no cover
    from compression import zstd
else:
    from backports import zstd

from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.limits import MAX_WINDOW_LOG

LEVEL = 1
_MAGIC = b"\x28\xb5\x2f\xfd"


def compress(data: bytes | memoryview, level: int = LEVEL) -> bytes:
    """One frame with its content size and no dictionary; level 1 has a window of at most 512 KiB (log 19)."""
    return bytes(zstd.compress(data, level=level))


def decompress(frame: bytes | memoryview, size: int) -> bytes:
    """The content of exactly one frame, which must say that it has ``size`` bytes; BundleInvalid otherwise.

    The frame's own header is looked at before it is opened, and decoding stops one byte past ``size`` at the latest.
    """
    try:
        if bytes(frame[:4]) != _MAGIC:
            raise BundleInvalid("not a zstd frame")
        info = zstd.get_frame_info(frame)
        if info.decompressed_size != size or info.dictionary_id:
            raise BundleInvalid(f"a zstd frame says {info.decompressed_size} bytes, the header {size}")
        decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG})
        out = bytes(decoder.decompress(frame, max_length=size + 1))
        if not decoder.eof or decoder.unused_data or len(out) != size:
            raise BundleInvalid(f"a zstd frame does not hold the {size} bytes it says, or not in its place")
    except zstd.ZstdError as e:
        raise BundleInvalid(f"a zstd frame cannot be decoded: {e}") from None
    return out
