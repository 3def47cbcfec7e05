"""Decoding bytes of unknown origin in a child process with limits; the parent only checks sizes.

One child serves one reader. It gets a header and its payload, decodes, and sends plain arrays and texts back. A child
that dies, hangs or answers nonsense is a :class:`BundleInvalid` of that leaf, never harm to the parent.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

import gpuaudit
from gpuaudit.bundle import canonical, segment
from gpuaudit.bundle.columns import ColumnData, Rows
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.harden import limit_decoder
from gpuaudit.bundle.header import Header, parse
from gpuaudit.bundle.limits import MAX_RAW_BYTES
from gpuaudit.bundle.table import NUMPY_DTYPE

ADDRESS_SPACE_BYTES = 3 << 30
"""Room for a payload, its content and its columns at their limits (132 + 128 + 3 × 128 MiB), texts and libraries."""
CPU_S = 3600
"""Over the life of the child; one segment at its limits takes less than 5 s."""
LEAF_DEADLINE_S = 120
"""Wall-clock time for one leaf, far above what the slowest machine needs."""

_CHECK_ONLY = False
"""In place of column names in a request: decode all, answer nothing."""
_LENGTHS = struct.Struct("<III")
_REPLY = struct.Struct("<II")


class Decoder:
    """A child process that decodes segments; a context manager. It starts with the first leaf."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def decode(self, header: Header, payload: bytes, columns: Sequence[str] | None = None) -> Rows:
        """What :func:`gpuaudit.bundle.segment.decode` gives; BundleInvalid where it cannot."""
        shape, data = self._ask(header, payload, None if columns is None else list(columns))
        try:
            return _rebuild(header, shape, memoryview(data))
        except (ValueError, KeyError, TypeError, IndexError):
            raise BundleInvalid(f"leaf {header.idx}: its payload decodes to something else than its header") from None

    def check(self, header: Header, payload: bytes) -> None:
        """Decode everything and keep nothing; BundleInvalid where it cannot be decoded."""
        self._ask(header, payload, _CHECK_ONLY)

    def _ask(self, header: Header, payload: bytes, columns: list[str] | bool | None) -> tuple[Any, bytes]:
        """One request and its reply: the description of the columns, and their bytes."""
        child = self._child = self._child or _start()
        source, sink = child.stdout, child.stdin
        if source is None or sink is None:
            raise ValueError("the decoder's pipes are closed")
        wanted = canonical.dumps(columns)
        body = header.to_bytes()
        deadline = threading.Timer(LEAF_DEADLINE_S, child.kill)
        deadline.start()
        try:
            sink.write(_LENGTHS.pack(len(body), len(payload), len(wanted)) + body + wanted)
            sink.write(payload)
            sink.flush()
            reply, size = _REPLY.unpack(_read(source, _REPLY.size))
            shape = canonical.loads(_read(source, min(reply, 1 << 20)))
            data = _read(source, min(size, 4 * MAX_RAW_BYTES))
        except (OSError, EOFError, BundleInvalid):
            self.close()
            raise BundleInvalid(f"leaf {header.idx}: its payload cannot be decoded within the limits") from None
        finally:
            deadline.cancel()
        if isinstance(shape, str):
            raise BundleInvalid(shape)
        return shape, data


def _start() -> subprocess.Popen[bytes]:
    """Run this module as a program: an exec, so that the child shares no memory with a process that holds keys."""
    here = str(Path(gpuaudit.__file__).parent.parent)
    path = os.pathsep.join([here, *(p for p in sys.path if p)])
    env = {
        "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/",  # without one, Python would ask the user database, and so open a socket to its cache
    }  # fmt: skip
    command = [sys.executable, "-P", "-s", "-m", "gpuaudit.bundle.guard"]
    return subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=True
    )  # fmt: skip


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _flatten(rows: Rows) -> tuple[list[Any], list[bytes]]:
    """Columns as a description and raw parts: values, validity, lengths of the dictionary's texts, the texts."""
    shape: list[Any] = []
    parts: list[bytes] = []
    for name, c in rows.items():
        texts = None if c.dictionary is None else [t.encode("utf-8") for t in c.dictionary]
        shape.append([name, f"<{c.values.dtype.kind}{c.values.dtype.itemsize}", c.valid is not None,
                      None if texts is None else len(texts)])  # fmt: skip
        parts.append(c.values.tobytes())
        if c.valid is not None:
            parts.append(c.valid.tobytes())
        if texts is not None:
            parts += [np.array([len(t) for t in texts], dtype="<u4").tobytes(), b"".join(texts)]
    return shape, parts


def _rebuild(header: Header, shape: list[Any], data: memoryview) -> Rows:
    """The columns of a reply; any exception means that the reply does not fit the header."""
    rows = header.rows or 0
    specs = {c.name: c for c in header.columns or ()}
    out: Rows = {}
    at = 0
    for name, dtype, has_valid, entries in shape:
        spec = specs.pop(name)
        if dtype != (NUMPY_DTYPE["text"] if spec.is_text else spec.dtype) or (entries is not None) != spec.is_text:
            raise ValueError(name)
        values = np.frombuffer(data, dtype, rows, at)
        at += values.nbytes
        valid = None
        if has_valid:
            valid = np.frombuffer(data, np.uint8, rows, at).astype(bool)
            at += rows
        texts: list[str] | None = None
        if entries is not None:
            lengths = np.frombuffer(data, "<u4", entries, at).tolist()
            at += 4 * entries
            texts = []
            for n in lengths:
                texts.append(bytes(data[at : at + n]).decode("utf-8"))
                at += n
            used = values if valid is None else values[valid]
            if len(used) and int(used.max()) >= len(texts):
                raise ValueError(name)
        out[name] = ColumnData(values, valid, None if texts is None else tuple(texts))
    if at != len(data):
        raise ValueError(at)
    return out


def _serve() -> None:
    """The child: requests on stdin, replies on stdout, until stdin ends."""
    limit_decoder(ADDRESS_SPACE_BYTES, CPU_S)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(_LENGTHS.size):
        header_len, payload_len, wanted_len = _LENGTHS.unpack(head)
        body, wanted, payload = source.read(header_len), source.read(wanted_len), source.read(payload_len)
        parts: list[bytes] = []
        shape: Any
        try:
            idx = int(canonical.loads(body)["idx"])
            columns = canonical.loads(wanted)
            rows = segment.decode(parse(body, idx), payload, None if columns is _CHECK_ONLY else columns)
            shape, parts = ([], []) if columns is _CHECK_ONLY else _flatten(rows)
        except BundleInvalid as e:
            shape = e.message
        except MemoryError:
            parts, shape = [], "a payload needs more memory than it may have"
        reply = canonical.dumps(shape)
        sink.write(_REPLY.pack(len(reply), sum(map(len, parts))) + reply)
        for part in parts:
            sink.write(part)
        sink.flush()


if __name__ == "__main__":
    _serve()
