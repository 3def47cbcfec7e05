"""What verification says of evidence that never was in a file: for tests that begin with tables."""

from __future__ import annotations

from gpuaudit.bundle.verify import Verification

SEALED = Verification(
    status="SEALED", exit_code=0, origin="test/host/capture", root_b64="AAAA", size=1, file_sha256="00" * 32,
    identity_sha256="11" * 32, challenge="",
)  # fmt: skip


def with_status(status: str) -> Verification:
    """The same, with another status word."""
    return Verification(**{**vars(SEALED), "status": status})
