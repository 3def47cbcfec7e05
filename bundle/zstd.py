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
_CHUNK_BYTES = 1 << 20


def compress(data: bytes | memoryview, level: int = LEVEL) -> bytes:
    """One frame with its content size and no dictionary; level 1 has a window of at most 512 KiB (log 19)."""
    return bytes(zstd.compress(data, level=level))


def decompress(frame: bytes | memoryview, size: int) -> bytes:
    """The content of exactly one frame, which must say that it has ``size`` bytes; BundleInvalid otherwise.

    The frame's own header is looked at before it is opened, and no more than ``size`` bytes are ever held.
    """
    try:
        if bytes(frame[:4]) != _MAGIC:
            raise BundleInvalid("not a zstd frame")
        info = zstd.get_frame_info(frame)
        if info.decompressed_size != size or info.dictionary_id:
            raise BundleInvalid(f"a zstd frame says {info.decompressed_size} bytes, the header {size}")
        decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG})
        out = bytearray()
        data = bytes(frame)
        while not decoder.eof:
            chunk = decoder.decompress(data, max_length=min(_CHUNK_BYTES, size - len(out) + 1))
            data = b""
            out += chunk
            if len(out) > size:
                raise BundleInvalid(f"a zstd frame holds more than the {size} bytes it says")
            if not chunk and not decoder.eof and decoder.needs_input:
                raise BundleInvalid("a zstd frame ends too early")
        if decoder.unused_data or len(out) != size:
            raise BundleInvalid("a zstd frame is shorter than its place, or its content than its size")
    except zstd.ZstdError as e:
        raise BundleInvalid(f"a zstd frame cannot be decoded: {e}") from None
    return bytes(out)
