"""The packet: what is handed over. Signed PDF, HTML, findings, manifest, checksums, their signature, VERIFY.txt.

``manifest.json`` has two parts: ``content`` (digests of findings and HTML, bundle, tool, printer, renderer), which is
also attached to the PDF, and ``pdf`` (size and digest of the unsigned print, signer), which cannot be. Everything but
the signatures follows from the findings; so a packet that holds the same content already is left as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from gpuaudit import __version__
from gpuaudit.analyze.finding import Document
from gpuaudit.analyze.load import MAX_FILE_BYTES, parse_document
from gpuaudit.bundle.canonical import dumps
from gpuaudit.bundle.display import printable
from gpuaudit.bundle.errors import AuditError, HostUnfit, InputUnusable, OutputExists, UsageError
from gpuaudit.bundle.keys import Identity, ReportSigner
from gpuaudit.bundle.note import Signer
from gpuaudit.report import html, sshsig
from gpuaudit.report.packet_check import ALL_FILES, SUMMED_FILES, verify_packet
from gpuaudit.report.pdf import print_pdf
from gpuaudit.report.pdf_check import signature_place
from gpuaudit.report.printer import printer_digest
from gpuaudit.report.sign import sign_pdf
from gpuaudit.report.view import View, build_view

__all__ = ["PacketResult", "build_packet", "verify_packet"]

PACKET_SCHEMA = "gpu-audit/packet/1"


@dataclass(frozen=True)
class PacketResult:
    """Where the packet is, its files with sizes, and whether it was written now (False: it was there already)."""

    path: Path
    written: bool
    sizes: dict[str, int]
    unsigned_sha256: str
    identity_sha256: str


def build_packet(
    findings_path: str | Path,
    out_dir: str | Path,
    *,
    signer: ReportSigner,
    identity: Signer | None,
    force: bool = False,
) -> PacketResult:
    """Print, sign and write the packet of one findings document.

    ``signer`` signs the PDF; ``identity`` (Ed25519) signs SHA256SUMS. OutputExists when ``out_dir`` holds other content
    and ``force`` was not given; a folder that holds anything but a packet's files is never replaced.
    """
    if identity is None:
        raise UsageError("a packet is signed with an identity, and there is none", hint="run `audit keys init`")
    findings, out = Path(findings_path), Path(out_dir)
    _refuse_foreign(out)
    raw, document = _read(findings)
    files = _unsigned_files(raw, document, signer)
    fingerprint = Identity(identity.public_key).fingerprint
    unsigned = files.pop("unsigned.pdf")
    digest = hashlib.sha256(unsigned).hexdigest()
    if _is_there(out, files, identity):
        sizes = {name: (out / name).stat().st_size for name in ALL_FILES}
        return PacketResult(out, False, sizes, digest, fingerprint)
    if out.is_dir() and any(out.iterdir()) and not force:
        raise OutputExists(
            f"{printable(str(out))} holds another packet", hint="choose another --out, or replace it with --force"
        )
    signed = sign_pdf(unsigned, signer)
    files["report.pdf"] = signed
    files["VERIFY.txt"] = _verify_text(document, signed, unsigned, signer, fingerprint)
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in SUMMED_FILES).encode()
    files |= {"SHA256SUMS": sums, "SHA256SUMS.sig": sshsig.sign(sums, identity)}
    _write(out, files)
    return PacketResult(out, True, {name: len(body) for name, body in files.items()}, digest, fingerprint)


def _read(path: Path) -> tuple[bytes, Document]:
    """The bytes and what they say; they are canonical, so their digest is that of their content."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputUnusable(
            f"{printable(str(path))} cannot be read: {error.strerror}", hint="give a findings file of `audit analyze`"
        ) from error
    return raw, parse_document(raw, printable(path.name))


def _unsigned_files(raw: bytes, document: Document, signer: ReportSigner) -> dict[str, bytes]:
    """findings.json, report.html, manifest.json, and the unsigned PDF under a name that no packet has."""
    view: View = build_view(document)
    page = html.render(view)
    content = {
        "schema": "gpu-audit/content/1", "findings_sha256": hashlib.sha256(raw).hexdigest(),
        "html_sha256": hashlib.sha256(page).hexdigest(), "bundle": document.bundle, "tool": document.tool,
        "printer": {"version": __version__, "digest": printer_digest()},
    }  # fmt: skip
    printed = print_pdf(
        html.render(view, "pdf"), findings=raw, content=content, date=view.created,
        identifier=hashlib.sha256(page).digest()[:16],
    )  # fmt: skip
    manifest = {
        "schema": PACKET_SCHEMA,
        "content": {**content, "renderer": printed.renderer},
        "pdf": {
            "unsigned_size": str(len(printed.pdf)), "unsigned_sha256": hashlib.sha256(printed.pdf).hexdigest(),
            "signer_sha256": _fingerprint(signer),
        },
    }  # fmt: skip
    return {"findings.json": raw, "report.html": page, "manifest.json": dumps(manifest), "unsigned.pdf": printed.pdf}


def _fingerprint(signer: ReportSigner) -> str:
    """SHA-256 of the signer's certificate, DER."""
    return hashlib.sha256(signer.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def _verify_text(document: Document, signed: bytes, unsigned: bytes, signer: ReportSigner, fingerprint: str) -> bytes:
    before, start, after = signature_place(signed)
    values: dict[str, Any] = {
        "identity_sha256": fingerprint, "files": ALL_FILES, "namespace": sshsig.NAMESPACE,
        "unsigned_size": len(unsigned), "unsigned_sha256": hashlib.sha256(unsigned).hexdigest(), "before": before,
        "start": start, "after": after, "size": len(signed), "signer_sha256": _fingerprint(signer),
        **{k: printable(str(document.bundle[k])) for k in ("origin", "root", "file_sha256")},
    }  # fmt: skip
    return html.plain_text("VERIFY.txt.j2", values)


def _is_there(out: Path, files: dict[str, bytes], identity: Signer) -> bool:
    """Whether ``out`` is a packet of the same content already, and verifies with the same identity."""
    try:
        same = all((out / name).read_bytes() == body for name, body in files.items())
    except OSError:
        return False
    return same and verify_packet(out, trust=[Identity(identity.public_key)], rerender=False).ok


def _refuse_foreign(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputExists(f"{printable(str(out))} is not a folder", hint="choose another --out")
    if out.is_dir() and (foreign := sorted({p.name for p in out.iterdir()} - set(ALL_FILES))):
        raise OutputExists(
            f"{printable(str(out))} holds {printable(foreign[0], 80)}, which is no part of a packet",
            hint="choose another --out; --force replaces packets only",
        )


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Write beside ``out``, then rename: a packet is there as a whole or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise HostUnfit(f"cannot write beside {printable(str(out))}: {error.strerror}") from error
    old = scratch / "old"
    new = scratch / "new"
    try:
        new.mkdir(mode=0o755)
        for name, body in files.items():
            with (new / name).open("xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            (new / name).chmod(0o644)
        new.chmod(0o755)
        if out.is_dir():
            out.rename(old)
        new.rename(out)
    except OSError as error:
        if old.is_dir() and not out.exists():
            old.rename(out)
        raise HostUnfit(f"cannot write {printable(str(out))}: {error.strerror}", hint="free some space") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not all((out / name).is_file() for name in ALL_FILES):
        raise AuditError(f"{printable(str(out))} lacks files that were just written")
