"""What a report's PDF must be: one print, one signature after it over every byte, and nothing that acts.

``pdfsig`` calls a file valid to which JavaScript was appended; here the file must end where the signature's cover ends,
hold exactly two revisions, no action of any kind, and exactly the two attachments of the packet.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from pyhanko.pdf_utils.misc import PdfError
from pyhanko.sign.fields import MDPPerm
from pyhanko.sign.validation import validate_pdf_signature
from pyhanko.sign.validation.errors import SignatureValidationError
from pyhanko_certvalidator import ValidationContext

from gpuaudit.bundle.display import printable
from gpuaudit.bundle.verify import Check
from gpuaudit.report.pdf import CONTENT_NAME, FINDINGS_NAME
from gpuaudit.report.pdf_reader import StrictReader, dictionaries

FORBIDDEN_KEYS = frozenset({
    "/JavaScript", "/JS", "/OpenAction", "/AA", "/Launch", "/RichMedia", "/RichMediaContent", "/XFA", "/Collection",
    "/URI", "/SubmitForm", "/ImportData", "/GoToE", "/GoToR",
})  # fmt: skip
"""Keys of things that act or reach out (ISO 32000-2, 12.6 and 13): a report has none of them."""

ACTIONS = frozenset({
    "/GoTo", "/GoToR", "/GoToE", "/GoToDp", "/Launch", "/Thread", "/URI", "/Sound", "/Movie", "/Hide", "/Named",
    "/SubmitForm", "/ResetForm", "/ImportData", "/JavaScript", "/SetOCGState", "/Rendition", "/Trans", "/GoTo3DView",
    "/RichMediaExecute",
})  # fmt: skip
"""Every action type of ISO 32000-2, table 201. Links within the report are plain destinations."""

UNREADABLE = (
    PdfError, SignatureValidationError, zlib.error, ValueError, KeyError, TypeError, IndexError, AttributeError,
    OSError, AssertionError, RecursionError, NotImplementedError,
)  # fmt: skip
"""What a damaged PDF or CMS can raise out of the parsers."""


@dataclass(frozen=True)
class Expected:
    """What the manifest says of the PDF, and the attachments it must hold."""

    unsigned_size: int
    unsigned_sha256: str
    signer_sha256: str
    attachments: dict[str, bytes]


def check_pdf(pdf: bytes, expected: Expected) -> list[Check]:
    """Every check of the PDF, each with what was found; a file that cannot be read fails the first."""
    checks = [_prefix(pdf, expected)]
    try:
        reader = StrictReader(pdf)
        parts = dictionaries(reader)
        checks += [
            _signature(reader, pdf, expected),
            _revisions(reader),
            _inert(parts),
            _attachments(parts, expected),
        ]
    except UNREADABLE as error:
        detail = f"report.pdf cannot be read as a report: {printable(str(error), 160)}"
        checks.append(Check("PDF structure", False, detail))
    return checks


def signature_place(pdf: bytes) -> tuple[int, int, int]:
    """The ByteRange of the one signature: length before it, start and length after it."""
    first, before, start, after = StrictReader(pdf).embedded_regular_signatures[0].byte_range
    if first != 0:
        raise ValueError("the signature does not cover the beginning of the file")
    return int(before), int(start), int(after)


def _prefix(pdf: bytes, expected: Expected) -> Check:
    got = hashlib.sha256(pdf[: expected.unsigned_size]).hexdigest()
    ok = len(pdf) > expected.unsigned_size and got == expected.unsigned_sha256
    detail = f"the first {expected.unsigned_size} bytes of report.pdf have SHA-256 {got}"
    return Check("PDF print", ok, detail if ok else f"{detail}; the manifest says {expected.unsigned_sha256}")


def _signature(reader: Any, pdf: bytes, expected: Expected) -> Check:
    signatures = reader.embedded_signatures
    if len(signatures) != 1:
        return _no(f"report.pdf holds {len(signatures)} signatures; a report has one")
    one = signatures[0]
    first, before, start, after = (int(n) for n in one.byte_range)
    gap = pdf[before:start]
    if first != 0 or start + after != len(pdf) or not (gap[:1] == b"<" and gap[-1:] == b">"):
        left = len(pdf) - start - after
        return _no(f"the signature of report.pdf does not cover the whole file ({left} bytes follow)")
    certificate = x509.load_der_x509_certificate(one.signer_cert.dump())
    fingerprint = hashlib.sha256(one.signer_cert.dump()).hexdigest()
    if fingerprint != expected.signer_sha256:
        return _no(f"report.pdf is signed with certificate {fingerprint}; the manifest pins another")
    status = validate_pdf_signature(
        one, ValidationContext(trust_roots=[one.signer_cert], allow_fetching=False), skip_diff=True
    )
    if not (status.intact and status.valid):
        return _no("the signature of report.pdf does not match its bytes")
    if one.docmdp_level != MDPPerm.FILL_FORMS:
        return _no("the signature of report.pdf does not forbid changes (DocMDP level 2 expected)")
    name = printable(certificate.subject.rfc4514_string(), 120)
    return Check("PDF signature", True, f"covers every byte; certificate {fingerprint} ({name})")


def _no(detail: str) -> Check:
    return Check("PDF signature", False, detail)


def _revisions(reader: Any) -> Check:
    n = reader.total_revisions
    return Check("PDF revisions", n == 2, f"report.pdf has {n} revisions; a print and its signature are two")


def _inert(parts: list[Any]) -> Check:
    for where in parts:
        acting = sorted(FORBIDDEN_KEYS & set(where))
        if acting or where.get("/S") in ACTIONS or ("/A" in where and where.get("/Type") == "/Annot"):
            what = acting[0] if acting else where.get("/S", "/A")
            detail = f"report.pdf holds {printable(str(what), 40)}; a report does nothing"
            return Check("PDF without actions", False, detail)
    return Check("PDF without actions", True, "no script, action, link or form data")


def _attachments(parts: list[Any], expected: Expected) -> Check:
    found: dict[str, bytes] = {}
    files = 0
    for where in parts:
        if where.get("/Type") == "/EmbeddedFile" or where.get("/Subtype") == "/FileAttachment":
            files += 1
        if "/EF" in where:
            found[str(where["/UF"])] = where["/EF"]["/F"].data
    names = ", ".join(printable(n, 60) for n in sorted(found))
    if set(found) != set(expected.attachments) or files != len(found):
        detail = f"report.pdf holds {names or 'none'}; expected {CONTENT_NAME}, {FINDINGS_NAME}"
        return Check("PDF attachments", False, detail)
    for name, body in sorted(expected.attachments.items()):
        if found[name] != body:
            return Check("PDF attachments", False, f"{name} inside report.pdf is not the packet's")
    return Check("PDF attachments", True, f"{names}, as in the packet")
