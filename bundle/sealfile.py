"""``bundle.db.seal``: the text file of detached signatures that lies beside a bundle.

It is a sequence of records, each a signed note followed by an empty line. The first line of a record names its kind.
Countersigning adds signature lines or records here and never changes the evidence file.

``gpu-audit file v1``: origin, size, root, SHA-256 and length of the whole file; signed by the last epoch key, and by
the identity where it was there. ``gpu-audit withheld v1``: the same lines for the file as it is after payloads were
withheld, then one line ``<leaf> <SHA-256 of the payload>`` each; signed by the identity. The last record that has a
file digest speaks for the file; those before it are its history.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gpuaudit.bundle import limits, note
from gpuaudit.bundle.errors import BundleInvalid, InputUnusable

FILE_KIND = "gpu-audit file v1"
WITHHELD_KIND = "gpu-audit withheld v1"
_DIGEST_KINDS = (FILE_KIND, WITHHELD_KIND)
_HEX32 = re.compile(r"[0-9a-f]{64}\Z")
_COUNT = re.compile(r"(0|[1-9][0-9]{0,18})\Z")


@dataclass(frozen=True)
class Record:
    """One record of a ``.seal``. The fields after ``signatures`` are empty for a kind this version does not know."""

    kind: str
    text: str
    signatures: tuple[note.Signature, ...]
    origin: str = ""
    size: int = 0
    root: bytes = b""
    file_sha256: str = ""
    file_len: int = 0
    withheld: dict[int, str] = field(default_factory=dict)

    @property
    def has_digest(self) -> bool:
        """Whether the record speaks for the whole file."""
        return self.kind in _DIGEST_KINDS


def path_beside(bundle: Path) -> Path:
    """Where the ``.seal`` of a bundle lies."""
    return bundle.with_name(bundle.name + ".seal")


def read_beside(bundle: Path) -> list[Record]:
    """The records of the ``.seal`` of a bundle, empty when there is none; InputUnusable when it cannot be read."""
    path = path_beside(bundle)
    if not os.path.lexists(path):
        return []
    try:
        # a FIFO must not hold us up
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
            if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
                raise BundleInvalid(f"{path.name} is not a file")
            return parse(f.read(limits.MAX_SEAL_BYTES + 1))
    except OSError as e:
        raise InputUnusable(f"cannot read {path.name}: {e.strerror}", hint="give the bundle with its .seal") from None


def record_text(
    origin: str, size: int, root: bytes, *, file_sha256: str, file_len: int, withheld: dict[int, str] | None = None
) -> str:
    """The lines that are signed; with ``withheld`` (leaf → payload SHA-256) the record is of that kind."""
    kind = FILE_KIND if withheld is None else WITHHELD_KIND
    lines = [kind, origin, str(size), base64.b64encode(root).decode(), file_sha256, str(file_len)]
    lines += [f"{idx} {digest}" for idx, digest in sorted((withheld or {}).items())]
    return "".join(f"{line}\n" for line in lines)


def assemble(notes: Iterable[str]) -> str:
    """The content of a ``.seal`` from signed notes."""
    return "".join(f"{n}\n" for n in notes)


def parse(data: bytes) -> list[Record]:
    """The records of a ``.seal``, signatures not yet checked; BundleInvalid for anything else."""
    if len(data) > limits.MAX_SEAL_BYTES:
        raise BundleInvalid(f".seal has {len(data)} bytes, more than {limits.MAX_SEAL_BYTES}")
    try:
        blocks = data.decode("utf-8").split("\n\n")
    except UnicodeDecodeError:
        raise BundleInvalid(".seal is not UTF-8 text") from None
    if blocks.pop() != "" or not blocks or len(blocks) % 2:
        raise BundleInvalid(".seal is cut off, or not made of signed notes")
    try:
        return [_record(*note.parse(f"{t}\n\n{s}\n")) for t, s in zip(blocks[::2], blocks[1::2], strict=True)]
    except BundleInvalid as e:
        raise BundleInvalid(f".seal: {e.message}") from None


def _record(text: str, signatures: list[note.Signature]) -> Record:
    kind, *lines = text[:-1].split("\n")
    if kind not in _DIGEST_KINDS:
        return Record(kind, text, tuple(signatures))
    if len(lines) < 5 or (kind == FILE_KIND) != (len(lines) == 5):
        raise BundleInvalid(f"record {kind} has {len(lines)} lines")
    origin, size, root, digest, length, *withheld = lines
    if not _HEX32.match(digest) or not _COUNT.match(size) or not _COUNT.match(length):
        raise BundleInvalid(f"record {kind}: a number or digest is malformed")
    named: dict[int, str] = {}
    for line in withheld:
        idx, _, payload = line.partition(" ")
        if not _COUNT.match(idx) or not _HEX32.match(payload):
            raise BundleInvalid(f"record {kind}: not a leaf and its payload's digest: {line!r:.80}")
        named[int(idx)] = payload
    try:
        root_bytes = base64.b64decode(root, validate=True)
    except ValueError:
        raise BundleInvalid(f"record {kind}: the root is not base64") from None
    payloads = named if kind == WITHHELD_KIND else None
    expected = record_text(
        origin, int(size), root_bytes, file_sha256=digest, file_len=int(length), withheld=payloads
    )  # fmt: skip
    if expected != text:
        raise BundleInvalid(f"record {kind} is not in its exact form")
    return Record(kind, text, tuple(signatures), origin, int(size), root_bytes, digest, int(length), named)
