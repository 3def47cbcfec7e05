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
_SINGLE_SEGMENT = 0x20
"""Bit of the frame header descriptor: no window descriptor follows, the window is the content (RFC 8878, 3.1.1.1.1)."""


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
        if _window(frame, size) > 1 << MAX_WINDOW_LOG:  # the library looks at it only when it decodes piece by piece
            raise BundleInvalid(f"a zstd frame wants a window of {_window(frame, size)} bytes")
        decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG})
        out = bytes(decoder.decompress(frame, max_length=size + 1))
        if not decoder.eof or decoder.unused_data or len(out) != size:
            raise BundleInvalid(f"a zstd frame does not hold the {size} bytes it says, or not in its place")
    except zstd.ZstdError as e:
        raise BundleInvalid(f"a zstd frame cannot be decoded: {e}") from None
    return out


def _window(frame: bytes | memoryview, size: int) -> int:
    """Bytes of history that a frame may refer to (RFC 8878, section 3.1.1.1.2)."""
    if frame[4] & _SINGLE_SEGMENT:
        return size
    base = 1 << (10 + (frame[5] >> 3))
    return base + base // 8 * (frame[5] & 7)
