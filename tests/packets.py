"""A packet made once per test process, with keys of its own, to be copied and attacked."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuaudit.bundle.canonical import dumps
from gpuaudit.bundle.keys import FileSigner, Identity, ReportSigner, load_identity, load_report_signer
from gpuaudit.report import sshsig
from gpuaudit.report.packet import build_packet
from gpuaudit.report.packet_check import SUMMED_FILES
from tests.documents import document


@dataclass(frozen=True)
class Made:
    """A packet, the findings it was made from, and the keys that signed it."""

    path: Path
    findings: Path
    signer: ReportSigner
    identity: FileSigner

    @property
    def trust(self) -> list[Identity]:
        return [self.identity.identity]

    def copy(self, to: Path) -> Path:
        return shutil.copytree(self.path, to / "packet")


@cache
def made() -> Made:
    """The packet of the scenario; removed when the process ends."""
    home = Path(tempfile.mkdtemp(prefix="gpu-audit-tests-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    signer, identity = report_signer(home / "keys"), FileSigner(Ed25519PrivateKey.generate())
    findings = home / "run.findings.json"
    findings.write_bytes(dumps(document().to_json()))
    build_packet(findings, home / "packet", signer=signer, identity=identity)
    return Made(home / "packet", findings, signer, identity)


def report_signer(folder: Path) -> ReportSigner:
    """A fresh report signer, as ``audit keys init`` makes one."""
    import os

    before = os.environ.get("GPU_AUDIT_KEYS")
    os.environ["GPU_AUDIT_KEYS"] = str(folder)
    try:
        load_identity()
        return load_report_signer()
    finally:
        if before is None:
            del os.environ["GPU_AUDIT_KEYS"]
        else:
            os.environ["GPU_AUDIT_KEYS"] = before


def sum_again(packet: Path, identity: FileSigner | None = None) -> None:
    """Write SHA256SUMS anew, as an attacker would; with ``identity`` sign it too."""
    sums = "".join(f"{hashlib.sha256((packet / n).read_bytes()).hexdigest()}  {n}\n" for n in SUMMED_FILES).encode()
    (packet / "SHA256SUMS").write_bytes(sums)
    if identity is not None:
        (packet / "SHA256SUMS.sig").write_bytes(sshsig.sign(sums, identity))
