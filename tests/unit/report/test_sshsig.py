"""Signatures in the SSHSIG format: exact bytes, one form, nobody else's."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuaudit.bundle.keys import FileSigner
from gpuaudit.report.sshsig import sign, signer_key, verifies

KEY = FileSigner(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = FileSigner(Ed25519PrivateKey.from_private_bytes(bytes(32)))


def test_round_trip() -> None:
    made = sign(b"sums", KEY)
    assert verifies(b"sums", made, KEY.public_key)
    assert not verifies(b"sums ", made, KEY.public_key)
    assert not verifies(b"sums", made, OTHER.public_key)
    assert signer_key(made) == KEY.public_key


def test_every_changed_byte_is_refused() -> None:
    made = sign(b"sums", KEY)
    for at in range(len(made)):
        for bit in (1, 0x20):
            changed = made[:at] + bytes([made[at] ^ bit]) + made[at + 1 :]
            assert not verifies(b"sums", changed, KEY.public_key), at


@pytest.mark.parametrize("made", [b"", b"\n\n", b"-----BEGIN SSH SIGNATURE-----\n", b"\xff" * 300, b"x\n" * 9])
def test_nonsense_is_no_signature(made: bytes) -> None:
    assert not verifies(b"sums", made, KEY.public_key)
    assert signer_key(made) is None or len(signer_key(made) or b"") <= 32
