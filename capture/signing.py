"""Signing with the host's identity, whose private key never enters the recorder.

The recorder asks over the channel (:class:`ChannelSigner`); the attacher answers (:class:`SigningDesk`), but only for
what a capture needs: the checkpoint of size 1 at the start, and at the end the seal's checkpoint and the digest of the
file that has just been sealed. A recorder that was taken over cannot make the identity sign anything else.
"""

from __future__ import annotations

import base64
import binascii

from gpuaudit.bundle import sealfile
from gpuaudit.bundle.errors import AuditError
from gpuaudit.bundle.note import Signer, SignerUnavailable
from gpuaudit.capture.channel import Channel, ChannelBroken

SIGN_DEADLINE_S = 60.0
"""How long the recorder waits for a signature: a key on a token may want a touch."""

SEAL_ATTEMPTS = 4
"""Checkpoints signed for the seal: one, and some more where a full disk made a commit fail."""

_ROOT_BYTES = 32


class SigningRefused(AuditError):
    """The recorder asked for a signature that no capture needs."""


class ChannelSigner:
    """The recorder's side: looks like a key, and asks the attacher."""

    def __init__(self, channel: Channel, public_key: bytes) -> None:
        self._channel = channel
        self.public_key = public_key

    def sign(self, message: bytes) -> bytes:
        """64 bytes; SignerUnavailable when the attacher is gone or refuses."""
        try:
            self._channel.send("sign", message=base64.b64encode(message).decode())
            answer = self._channel.wait_for("signature", SIGN_DEADLINE_S)
            signature = base64.b64decode(str(answer.get("signature", "")), validate=True)
        except (ChannelBroken, binascii.Error) as e:
            raise SignerUnavailable(f"the identity cannot sign: {e}") from None
        if len(signature) != 64:
            raise SignerUnavailable(f"the identity did not sign: {str(answer.get('reason', ''))[:200]}")
        return signature


class SigningDesk:
    """The attacher's side. ``origin`` is this capture's; :attr:`sealing` is set once the end was asked for."""

    def __init__(self, signer: Signer, origin: str) -> None:
        self._signer = signer
        self._origin = origin
        self._first_signed = False
        self._seals: list[tuple[int, str]] = []
        self._file_signed = False

    def answer(self, request: dict[str, object], channel: Channel) -> None:
        """Sign and send, or send an empty signature with the reason."""
        try:
            message = base64.b64decode(str(request.get("message", "")), validate=True)
            signature = self.sign(message)
        except (SigningRefused, SignerUnavailable, binascii.Error) as e:
            channel.send("signature", signature="", reason=str(e))
            return
        channel.send("signature", signature=base64.b64encode(signature).decode())

    def sign(self, message: bytes) -> bytes:
        """The signature over ``message``; SigningRefused unless the capture needs it at this point."""
        try:
            text = message.decode("ascii")
        except UnicodeDecodeError:
            raise SigningRefused("the recorder asked to sign bytes that are no checkpoint") from None
        if text.startswith(f"{sealfile.FILE_KIND}\n"):
            self._check_file_record(text)
        else:
            self._check_checkpoint(text)
        return self._signer.sign(message)

    def _check_checkpoint(self, text: str) -> None:
        origin, size, root, *rest = (*text.split("\n"), "", "", "")
        if origin != self._origin or not text.endswith("\n") or any(rest) or text.count("\n") != 3:
            raise SigningRefused(f"asked to sign a text that is no checkpoint of {self._origin}")
        if not size.isdecimal() or not size.isascii() or size.startswith("0") or not _is_root(root):
            raise SigningRefused("asked to sign a checkpoint with a malformed size or root")
        if int(size) == 1 and not self._first_signed:
            self._first_signed = True
            return
        if int(size) == 1 or not self._first_signed or self._file_signed:
            raise SigningRefused(f"asked to sign a checkpoint of size {size} out of turn")
        if len(self._seals) >= SEAL_ATTEMPTS or (self._seals and int(size) < self._seals[-1][0]):
            raise SigningRefused(f"asked to sign more than {SEAL_ATTEMPTS} seals, or a smaller one after a larger")
        self._seals.append((int(size), root))

    def _check_file_record(self, text: str) -> None:
        lines = text.split("\n")
        if len(lines) != 7 or lines[6] or lines[1] != self._origin or self._file_signed:
            raise SigningRefused("asked to sign a file record that is not this capture's, or a second one")
        if not self._seals or (lines[2], lines[3]) != (str(self._seals[-1][0]), self._seals[-1][1]):
            raise SigningRefused("asked to sign a file whose seal was not signed")
        self._file_signed = True


def _is_root(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == _ROOT_BYTES
    except (binascii.Error, ValueError):
        return False
