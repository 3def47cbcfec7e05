"""What the identity signs for a recorder, and what not."""

from __future__ import annotations

import base64
import socket
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuaudit.bundle.keys import FileSigner
from gpuaudit.bundle.note import SignerUnavailable, checkpoint_text
from gpuaudit.bundle.sealfile import record_text
from gpuaudit.capture.channel import TO_ATTACHER, TO_RECORDER, Channel
from gpuaudit.capture.signing import SEAL_ATTEMPTS, ChannelSigner, SigningDesk, SigningRefused

ORIGIN = "site/host/00000000-0000-4000-8000-000000000000"
ROOT, OTHER = bytes(32), bytes(range(32))
DIGEST = "ab" * 32


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def desk(key: Ed25519PrivateKey) -> SigningDesk:
    return SigningDesk(FileSigner(key), ORIGIN)


def checkpoint(size: int, root: bytes = ROOT, origin: str = ORIGIN) -> bytes:
    return checkpoint_text(origin, size, root).encode()


def file_record(size: int, root: bytes, digest: str = DIGEST) -> bytes:
    return record_text(ORIGIN, size, root, file_sha256=digest, file_len=4096).encode()


def test_a_whole_capture_is_signed(desk: SigningDesk, key: Ed25519PrivateKey) -> None:
    messages = [checkpoint(1), checkpoint(9, OTHER), file_record(9, OTHER)]
    for message in messages:
        key.public_key().verify(desk.sign(message), message)


def test_a_seal_can_be_tried_again_but_not_for_ever(desk: SigningDesk) -> None:
    desk.sign(checkpoint(1))
    for attempt in range(SEAL_ATTEMPTS):
        desk.sign(checkpoint(9 + attempt))
    with pytest.raises(SigningRefused):
        desk.sign(checkpoint(9 + SEAL_ATTEMPTS))


@pytest.mark.parametrize(
    "message",
    [
        checkpoint(2),  # before the first
        checkpoint(1, origin="site/host/11111111-0000-4000-8000-000000000000"),
        checkpoint(1) + b"extension\n",
        checkpoint(1)[:-1],
        checkpoint(0),
        f"{ORIGIN}\n01\n{base64.b64encode(ROOT).decode()}\n".encode(),
        f"{ORIGIN}\n1\n{base64.b64encode(b'short').decode()}\n".encode(),
        f"{ORIGIN}\n²\n{base64.b64encode(ROOT).decode()}\n".encode(),
        file_record(1, ROOT),
        b"",
        b"transfer everything",
        b"\xff\xfe",
    ],
)
def test_nothing_else_is_signed_at_the_start(desk: SigningDesk, message: bytes) -> None:
    with pytest.raises(SigningRefused):
        desk.sign(message)


@pytest.mark.parametrize(
    "message",
    [
        checkpoint(1),  # a second first leaf: a second bundle of one origin
        checkpoint(8),  # smaller than the seal
        file_record(9, ROOT),  # of another root
        file_record(8, OTHER),
        file_record(9, OTHER) + b"more\n",
    ],
)
def test_nothing_else_is_signed_after_the_seal(desk: SigningDesk, message: bytes) -> None:
    desk.sign(checkpoint(1))
    desk.sign(checkpoint(9, OTHER))
    with pytest.raises(SigningRefused):
        desk.sign(message)


def test_nothing_is_signed_after_the_file(desk: SigningDesk) -> None:
    for message in (checkpoint(1), checkpoint(9, OTHER), file_record(9, OTHER)):
        desk.sign(message)
    for message in (checkpoint(10), file_record(9, OTHER, "cd" * 32)):
        with pytest.raises(SigningRefused):
            desk.sign(message)


def test_a_refusal_reaches_the_recorder_as_a_missing_signer(desk: SigningDesk, key: Ed25519PrivateKey) -> None:
    ours, theirs = socket.socketpair()
    attacher, recorder = Channel(ours, TO_ATTACHER), Channel(theirs, TO_RECORDER)

    def answer(count: int) -> None:
        for _ in range(count):
            desk.answer(attacher.wait_for("sign", 10), attacher)

    thread = threading.Thread(target=answer, args=(2,))
    thread.start()
    signer = ChannelSigner(recorder, key.public_key().public_bytes_raw())
    key.public_key().verify(signer.sign(checkpoint(1)), checkpoint(1))
    with pytest.raises(SignerUnavailable, match="no checkpoint"):
        signer.sign(b"anything else")
    thread.join()
    attacher.close()
    with pytest.raises(SignerUnavailable):
        signer.sign(checkpoint(5))
    recorder.close()
