"""Reading a recording that somebody else made, as hostile input: bounded lines, bounded size, memory flat.

The digest is that of the very bytes that were parsed, so nothing can be swapped in between.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.capture.importers.model import Line

MAX_LINE_BYTES = 16 << 20
"""One scrape of a large vLLM server has 60 kB; no line of a log we read has more than a megabyte."""

MAX_CONTENT_BYTES = 64 << 30
"""Decompressed size of one file: as much as analysis would take (``analyze/store.py``)."""

BLOCK_BYTES = 1 << 20
HEAD_LINES = 192
_GZIP_MAGIC = b"\x1f\x8b"


class _Hashing(io.RawIOBase):
    """A file whose bytes are digested as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.digest.update(data)
        self.size += len(data)
        return len(data)


class Recording:
    """One file: its first lines, then all of its lines once, then its digest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            raise InputUnusable(f"cannot read {path}: {e.strerror}", hint="give files that exist") from None
        self._file = os.fdopen(fd, "rb")
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            self._file.close()
            raise InputUnusable(f"{path} is not an ordinary file", hint="copy its content into a file first")
        self.size_bytes = os.fstat(fd).st_size
        self._hashing = _Hashing(self._file)
        self.cut = ""
        """What is wrong with the head as lines: its last one is past the limit, and cut off there."""

    def head(self) -> list[str]:
        """The first lines, at most :data:`HEAD_LINES`; what cannot be decoded is replaced.

        A line past the limit ends the list, cut off: a format that is not made of lines may have one.
        """
        out: list[str] = []
        size = 0
        for _, text in self._lines(io.BufferedReader(_Hashing(self._file), 1 << 16), cut=True):
            out.append(text)
            size += len(text)
            if len(out) == HEAD_LINES or size > MAX_LINE_BYTES or self.cut:
                break
        self._file.seek(0)
        return out

    def lines(self) -> Iterator[Line]:
        """Every line; InputUnusable for a broken archive or content past the limits."""
        buffered = io.BufferedReader(self._hashing, 1 << 20)
        yield from self._lines(buffered)
        _exhaust(buffered)

    def blocks(self) -> Iterator[bytes]:
        """The content in pieces of at most :data:`BLOCK_BYTES`; InputUnusable as for :meth:`lines`."""
        buffered = io.BufferedReader(self._hashing, 1 << 20)
        yield from self._blocks(buffered)
        _exhaust(buffered)

    def blocks_ahead(self) -> Iterator[bytes]:
        """The same, before it is read for good, and without taking part in the digest."""
        self._file.seek(0)
        yield from self._blocks(io.BufferedReader(_Hashing(self._file), 1 << 20))
        self._file.seek(0)

    @property
    def bytes_read(self) -> int:
        """How far :meth:`lines` has come in the file."""
        return self._hashing.size

    def sha256(self) -> str:
        """Digest of the whole file, once :meth:`lines` is exhausted."""
        return self._hashing.digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _blocks(self, buffered: io.BufferedReader[_Hashing]) -> Iterator[bytes]:
        source, total = _content(buffered), 0
        try:
            while data := source.read(BLOCK_BYTES):
                total += len(data)
                if total > MAX_CONTENT_BYTES:
                    raise InputUnusable(f"{self.name}: more than {MAX_CONTENT_BYTES} bytes of content")
                yield data
        except (EOFError, OSError, zlib.error) as e:
            reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
            raise InputUnusable(f"{self.name}: broken after byte {total}: {reason}", hint="copy it again") from None

    def _lines(self, buffered: io.BufferedReader[_Hashing], *, cut: bool = False) -> Iterator[Line]:
        source = _content(buffered)
        number = total = 0
        try:
            while data := source.readline(MAX_LINE_BYTES + 1):
                number += 1
                total += len(data)
                if len(data) > MAX_LINE_BYTES:
                    self.cut = f"line {number} is longer than {MAX_LINE_BYTES} bytes"
                    if not cut:
                        raise InputUnusable(f"{self.name}: {self.cut}")
                if total > MAX_CONTENT_BYTES:
                    raise InputUnusable(f"{self.name}: more than {MAX_CONTENT_BYTES} bytes of content")
                yield number, data.decode("utf-8", "replace").rstrip("\r\n").removeprefix("\ufeff")
        except (EOFError, OSError, zlib.error) as e:
            reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
            raise InputUnusable(f"{self.name}: broken after line {number}: {reason}", hint="copy it again") from None


def _content(buffered: io.BufferedReader[_Hashing]) -> BinaryIO:
    """What the file holds, decompressed where it is an archive."""
    if buffered.peek(2)[:2] == _GZIP_MAGIC:
        return gzip.GzipFile(fileobj=buffered, mode="rb")  # type: ignore[return-value]
    return buffered


def _exhaust(buffered: io.BufferedReader[_Hashing]) -> None:
    """What follows an archive's end belongs to the file that is digested."""
    while buffered.read(1 << 20):
        pass
