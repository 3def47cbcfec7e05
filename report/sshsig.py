"""Detached Ed25519 signatures that both ``ssh-keygen -Y verify`` and ``openssl pkeyutl -rawin`` can check.

The SSHSIG format (OpenSSH, PROTOCOL.sshsig): an armoured blob whose last 64 bytes are a plain Ed25519 signature over a
short preamble and the SHA-512 of the message. ``ssh-keygen`` reads the file as it is; with ``openssl`` the preamble is
written with ``printf`` and the signature is cut off the end (VERIFY.txt has both).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gpuaudit.bundle.note import Signer

NAMESPACE = "gpu-audit-packet"
"""Separates these signatures from any other use of the same key, checkpoints of a bundle among them."""

_MAGIC = b"SSHSIG"
_HASH = b"sha512"
_KEY_TYPE = b"ssh-ed25519"
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_LINE_CHARACTERS = 70
"""Width of an armoured line, as ssh-keygen writes it."""


def sign(message: bytes, signer: Signer) -> bytes:
    """The armoured signature of ``message``."""
    signature = signer.sign(_signed(message))
    blob = (
        _MAGIC + (1).to_bytes(4, "big") + _string(_string(_KEY_TYPE) + _string(signer.public_key))
        + _string(NAMESPACE.encode()) + _string(b"") + _string(_HASH) + _string(_string(_KEY_TYPE) + _string(signature))
    )  # fmt: skip
    text = base64.b64encode(blob).decode()
    lines = [text[at : at + _LINE_CHARACTERS] for at in range(0, len(text), _LINE_CHARACTERS)]
    return "\n".join([_BEGIN, *lines, _END, ""]).encode()


def verifies(message: bytes, armoured: bytes, public_key: bytes) -> bool:
    """Whether ``armoured`` is the signature of ``message`` by ``public_key`` (raw, 32 bytes), in just this format."""
    signature = _signature(armoured, public_key)
    if signature is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _signed(message))
    except InvalidSignature:
        return False
    return True


def signer_key(armoured: bytes) -> bytes | None:
    """The raw public key that a signature names, for messages; None if there is none. Proves nothing."""
    try:
        blob = base64.b64decode("".join(armoured.decode("ascii").splitlines()[1:-1]), validate=True)
    except (UnicodeDecodeError, binascii.Error):
        return None
    at = len(_MAGIC) + 4 + 4 + len(_string(_KEY_TYPE)) + 4
    return blob[at : at + 32] if len(blob) > at + 32 else None


def _signature(armoured: bytes, public_key: bytes) -> bytes | None:
    """The 64 signature bytes; None unless every other byte is the one that this format prescribes."""
    head = _MAGIC + (1).to_bytes(4, "big") + _string(_string(_KEY_TYPE) + _string(public_key))
    head += _string(NAMESPACE.encode()) + _string(b"") + _string(_HASH)
    head += (4 + len(_KEY_TYPE) + 4 + 64).to_bytes(4, "big") + _string(_KEY_TYPE) + (64).to_bytes(4, "big")
    try:
        lines = armoured.decode("ascii").split("\n")
        blob = base64.b64decode("".join(lines[1:-2]), validate=True)
    except (UnicodeDecodeError, binascii.Error):
        return None
    framed = lines[0] == _BEGIN and lines[-2:] == [_END, ""]
    return blob[-64:] if framed and hmac.compare_digest(blob[:-64], head) else None


def _signed(message: bytes) -> bytes:
    digest = hashlib.sha512(message).digest()
    return _MAGIC + _string(NAMESPACE.encode()) + _string(b"") + _string(_HASH) + _string(digest)


def _string(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value
