"""C2SP signed notes (c2sp.org/signed-note) with Ed25519: checkpoints of a bundle, and the records of a ``.seal``.

A note is text that ends in a newline, an empty line, and signature lines ``— <name> base64(keyid4 ‖ sig64)``. Parsing
is exact: one note has one byte form, so that no byte of it can change unseen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gpuaudit.bundle.errors import BundleInvalid, HostUnfit

ALGORITHM_ED25519 = b"\x01"
"""Signature type byte of a note key (c2sp.org/signed-note, "Signature types")."""

_DASH = "— "
_KEY_ID_BYTES = 4
_SIGNATURE_BYTES = 64
SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
"""DER of SubjectPublicKeyInfo for Ed25519 up to the 32 key bytes (RFC 8410, section 10.1)."""


class SignerUnavailable(HostUnfit):
    """The identity cannot sign now (a token was pulled out); the capture can still be sealed by its epoch key."""


class Signer(Protocol):
    """Something that signs with Ed25519: a key in memory, a process that holds one, a token."""

    @property
    def public_key(self) -> bytes:
        """The raw public key, 32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature; :class:`SignerUnavailable` when it cannot be made."""


@dataclass(frozen=True)
class Signature:
    """One signature line of a note."""

    name: str
    key_id: bytes
    signature: bytes

    def to_line(self) -> str:
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.signature).decode()}\n"


def key_id(name: str, public_key: bytes) -> bytes:
    """SHA-256(name ‖ 0A ‖ 01 ‖ public key), first four bytes. A hint which key to try, never a proof."""
    return hashlib.sha256(name.encode() + b"\n" + ALGORITHM_ED25519 + public_key).digest()[:_KEY_ID_BYTES]


def spki_sha256(public_key: bytes) -> str:
    """The fingerprint an identity is pinned by: SHA-256 of its SubjectPublicKeyInfo, hex."""
    return hashlib.sha256(SPKI_PREFIX + public_key).hexdigest()


def checkpoint_text(origin: str, size: int, root: bytes) -> str:
    """The three lines of a checkpoint (c2sp.org/tlog-checkpoint), without extension lines."""
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"


def sign(text: str, name: str, signer: Signer) -> Signature:
    """Sign ``text``, which must end in a newline, as ``name``."""
    return Signature(name, key_id(name, signer.public_key), signer.sign(text.encode()))


def assemble(text: str, signatures: Iterable[Signature]) -> str:
    """The note: text, empty line, signature lines."""
    return text + "\n" + "".join(s.to_line() for s in signatures)


def parse(note: str) -> tuple[str, list[Signature]]:
    """Split a note into its text and signatures; BundleInvalid unless it is exactly in the form of :func:`assemble`."""
    text, separator, tail = note.partition("\n\n")
    if not separator or not text or not tail.endswith("\n"):
        raise BundleInvalid("not a signed note: no empty line before the signatures, or no newline at the end")
    text += "\n"
    signatures = [_parse_line(line) for line in tail[:-1].split("\n")]
    if assemble(text, signatures) != note:
        raise BundleInvalid("a signed note is not in its exact form")
    return text, signatures


def _parse_line(line: str) -> Signature:
    name, space, data = line.removeprefix(_DASH).rpartition(" ")
    if not line.startswith(_DASH) or not space or not valid_name(name):
        raise BundleInvalid(f"not a signature line of a note: {line!r:.80}")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise BundleInvalid(f"a signature line of a note is not base64: {line!r:.80}") from None
    if len(raw) != _KEY_ID_BYTES + _SIGNATURE_BYTES:
        raise BundleInvalid(f"a signature of a note has {len(raw)} bytes, expected 68")
    return Signature(name, raw[:_KEY_ID_BYTES], raw[_KEY_ID_BYTES:])


def valid_name(name: str) -> bool:
    """Whether ``name`` can name a key: not empty, no white space, no plus sign (c2sp.org/signed-note), printable."""
    return bool(name) and name.isprintable() and "+" not in name and not any(c.isspace() for c in name)


def verifies(signature: Signature, text: str, name: str, public_key: bytes) -> bool:
    """Whether ``signature`` was made as ``name`` by the holder of ``public_key`` over ``text``."""
    if signature.name != name or signature.key_id != key_id(name, public_key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature.signature, text.encode())
    except (InvalidSignature, ValueError):
        return False
    return True
