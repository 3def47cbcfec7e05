"""Signing the PDF: PAdES B-B, ECDSA P-256, DocMDP level 2, as one incremental update after the unsigned bytes.

The signed file begins with the unsigned PDF byte for byte, so that ``head -c N report.pdf`` is reproducible. Only the
signature holds the time of signing, from the local clock; nobody else vouches for it.
"""

from __future__ import annotations

import io

from asn1crypto import keys as asn1_keys  # type: ignore[import-untyped]
from asn1crypto import x509 as asn1_x509
from cryptography.hazmat.primitives import serialization
from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
from pyhanko.sign.fields import MDPPerm, SigSeedSubFilter
from pyhanko.sign.signers import PdfSignatureMetadata, PdfSigner, SimpleSigner
from pyhanko_certvalidator.registry import SimpleCertificateStore

from gpuaudit.bundle.errors import AuditError
from gpuaudit.bundle.keys import ReportSigner

FIELD_NAME = "ReportSignature"

RESERVED_BYTES = 8_192
"""Room for the CMS in the file: a P-256 signature with one certificate takes about 1.5 kB."""


class _OnlySignature(IncrementalPdfFileWriter):
    """pyHanko's writer without its update of dates and producer: the revision holds the signature and nothing else."""

    def _update_meta(self) -> None:
        """The document's metadata is the unsigned PDF's, and PDF/A wants both copies of it to agree."""


def sign_pdf(pdf: bytes, signer: ReportSigner) -> bytes:
    """``pdf`` and a signature over all of it; AuditError if the result did not begin with ``pdf``."""
    certificate = asn1_x509.Certificate.load(signer.certificate.public_bytes(serialization.Encoding.DER))
    key = asn1_keys.PrivateKeyInfo.load(
        signer.private_key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    store = SimpleCertificateStore()  # type: ignore[no-untyped-call]
    store.register(certificate)
    meta = PdfSignatureMetadata(
        field_name=FIELD_NAME, md_algorithm="sha256", reason="Report of a GPU audit", certify=True,
        subfilter=SigSeedSubFilter.PADES, docmdp_permissions=MDPPerm.FILL_FORMS,
    )  # fmt: skip
    out = io.BytesIO()
    PdfSigner(meta, SimpleSigner(certificate, key, store)).sign_pdf(
        _OnlySignature(io.BytesIO(pdf)), bytes_reserved=RESERVED_BYTES, output=out
    )
    signed = out.getvalue()
    if not signed.startswith(pdf):
        raise AuditError("the signed PDF does not begin with the unsigned one; nothing was written")
    return signed
