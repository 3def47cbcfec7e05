"""``audit verify packet/``: offline, against a pinned identity; every check named, and what it found."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuaudit.analyze.load import parse_document
from gpuaudit.bundle.canonical import dumps, loads
from gpuaudit.bundle.display import printable
from gpuaudit.bundle.errors import EXIT_DONE, EXIT_NEGATIVE, AuditError, InputUnusable
from gpuaudit.bundle.keys import Identity
from gpuaudit.bundle.verify import Check
from gpuaudit.bundle.verify import verify as verify_bundle
from gpuaudit.report import html, sshsig
from gpuaudit.report.pdf import CONTENT_NAME, FINDINGS_NAME
from gpuaudit.report.pdf_check import Expected, check_pdf
from gpuaudit.report.printer import printer_digest
from gpuaudit.report.view import build_view

SUMMED_FILES = ("VERIFY.txt", "findings.json", "manifest.json", "report.html", "report.pdf")
"""Files that SHA256SUMS lists, in its order."""

ALL_FILES = ("SHA256SUMS", "SHA256SUMS.sig", *SUMMED_FILES)
"""A packet is exactly these files."""

MOST_BYTES = 1 << 30
"""Largest file of a packet that is read: a hundred times the largest report made in tests."""


@dataclass
class PacketVerification:
    """The answer: VERIFIED or NOT VERIFIED, every check, the signer's fingerprint, and what was not checked."""

    status: str = "VERIFIED"
    identity_sha256: str = ""
    checks: list[Check] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every check holds."""
        return all(c.ok for c in self.checks)

    @property
    def exit_code(self) -> int:
        """0 or 1."""
        return EXIT_DONE if self.ok else EXIT_NEGATIVE


def verify_packet(
    path: str | Path, *, trust: Sequence[Identity], bundle: str | Path | None = None, rerender: bool = True
) -> PacketVerification:
    """Check the packet at ``path`` against the identities in ``trust``; with ``bundle``, that the report is about it.

    ``rerender`` prints the HTML again where the same printer is installed. InputUnusable when ``path`` is no packet.
    """
    folder = Path(path)
    if not folder.is_dir() or not any((folder / name).is_file() for name in ("SHA256SUMS", "manifest.json")):
        raise InputUnusable(f"{printable(str(folder))} is not a packet", hint="give its folder (SHA256SUMS is in it)")
    answer = PacketVerification()
    files = _read(folder, answer)
    if answer.ok:
        _sums(files, answer)
        _sums_signature(files, trust, answer)
        manifest = _manifest(files, answer)
        if manifest is not None:
            _content(files, manifest, rerender, answer)
            if bundle is not None:
                _bundle(manifest, Path(bundle), trust, answer)
    answer.status = "VERIFIED" if answer.ok else "NOT VERIFIED"
    return answer


def _read(folder: Path, answer: PacketVerification) -> dict[str, bytes]:
    """The packet's files, each read once; a missing, extra or odd one fails the check of the folder."""
    present = {p.name: p for p in folder.iterdir()}
    missing = [name for name in ALL_FILES if name not in present]
    extra = sorted(set(present) - set(ALL_FILES))
    odd = [n for n, p in present.items() if n in ALL_FILES and (p.is_symlink() or not p.is_file())]
    large = [n for n in ALL_FILES if n in present and n not in odd and present[n].stat().st_size > MOST_BYTES]
    wrong = (("lacks", missing), ("also holds", extra), ("holds no plain file", odd), ("holds too large a file", large))
    told = "; ".join(f"{what} {', '.join(printable(n, 80) for n in names[:5])}" for what, names in wrong if names)
    if told:
        answer.checks.append(Check("files", False, f"the packet {told}"))
        return {}
    try:
        files = {name: (folder / name).read_bytes() for name in ALL_FILES}
    except OSError as error:
        raise InputUnusable(f"{printable(str(folder))} cannot be read: {error.strerror}") from error
    answer.checks.append(Check("files", True, f"{len(ALL_FILES)} files, and no other"))
    return files


def _sums(files: dict[str, bytes], answer: PacketVerification) -> None:
    """Recompute SHA256SUMS: its bytes are fixed by the files, so a line cannot hide."""
    want = [f"{hashlib.sha256(files[n]).hexdigest()}  {n}" for n in SUMMED_FILES]
    got = files["SHA256SUMS"].decode("utf-8", "replace").split("\n")
    changed = [name for name, line in zip(SUMMED_FILES, want, strict=True) if line not in got]
    if changed:
        answer.checks.append(Check("SHA256SUMS", False, f"{', '.join(changed)} changed since SHA256SUMS was made"))
    elif got != [*want, ""]:
        answer.checks.append(Check("SHA256SUMS", False, "SHA256SUMS lists other things than the packet's files"))
    else:
        answer.checks.append(Check("SHA256SUMS", True, f"all {len(want)} files match"))


def _sums_signature(files: dict[str, bytes], trust: Sequence[Identity], answer: PacketVerification) -> None:
    for identity in trust:
        if sshsig.verifies(files["SHA256SUMS"], files["SHA256SUMS.sig"], identity.public_key):
            answer.identity_sha256 = identity.fingerprint
            answer.checks.append(Check("SHA256SUMS.sig", True, f"by the pinned identity {identity.fingerprint}"))
            return
    named = sshsig.signer_key(files["SHA256SUMS.sig"])
    if named is not None and sshsig.verifies(files["SHA256SUMS"], files["SHA256SUMS.sig"], named):
        other = Identity(named).fingerprint
        detail = f"SHA256SUMS is signed by {other}, which is not among the {len(trust)} pinned identities"
    else:
        detail = "SHA256SUMS.sig is not a signature of SHA256SUMS"
    answer.checks.append(Check("SHA256SUMS.sig", False, detail))


def _manifest(files: dict[str, bytes], answer: PacketVerification) -> dict[str, Any] | None:
    """The manifest, when it is one and fits the files; else a failed check and None."""
    try:
        manifest = loads(files["manifest.json"])
        content, pdf = manifest["content"], manifest["pdf"]
        known = manifest["schema"] == "gpu-audit/packet/1" and content["schema"] == "gpu-audit/content/1"
        canonical = dumps(manifest) == files["manifest.json"]
        sums = {"findings.json": content["findings_sha256"], "report.html": content["html_sha256"]}
        int(pdf["unsigned_size"]), pdf["unsigned_sha256"], pdf["signer_sha256"]
        content["bundle"]["file_sha256"], content["printer"]["digest"]
    except (AuditError, KeyError, TypeError, ValueError) as error:
        why = f"manifest.json is not a manifest: {printable(str(error), 120)}"
        answer.checks.append(Check("manifest.json", False, why))
        return None
    wrong = [n for n, digest in sums.items() if hashlib.sha256(files[n]).hexdigest() != digest]
    if wrong or not known or not canonical:
        why = "manifest.json has another form or version"
        if wrong:
            why = f"{', '.join(wrong)} is not what manifest.json says"
        answer.checks.append(Check("manifest.json", False, why))
        return None
    answer.checks.append(Check("manifest.json", True, "names findings.json and report.html by their digests"))
    return dict(manifest)


def _content(files: dict[str, bytes], manifest: dict[str, Any], rerender: bool, answer: PacketVerification) -> None:
    pdf = manifest["pdf"]
    attachments = {FINDINGS_NAME: files["findings.json"], CONTENT_NAME: dumps(manifest["content"])}
    expected = Expected(int(pdf["unsigned_size"]), pdf["unsigned_sha256"], pdf["signer_sha256"], attachments)
    answer.checks += check_pdf(files["report.pdf"], expected)
    if not rerender:
        return
    if manifest["content"]["printer"]["digest"] != printer_digest():
        version = printable(str(manifest["content"]["printer"].get("version", "unknown")), 40)
        answer.notices.append(
            f"report.html is of another printer (gpu-audit {version}): it was not printed again from findings.json."
        )
        return
    answer.checks.append(_printed_again(files))


def _printed_again(files: dict[str, bytes]) -> Check:
    try:
        page = html.render(build_view(parse_document(files["findings.json"], "findings.json")))
    except AuditError as error:
        return Check("report.html from findings.json", False, f"findings.json cannot be printed: {error.message}")
    same = page == files["report.html"]
    detail = "printed again, byte for byte" if same else "report.html is not what findings.json prints"
    return Check("report.html from findings.json", same, detail)


def _bundle(manifest: dict[str, Any], path: Path, trust: Sequence[Identity], answer: PacketVerification) -> None:
    """The bundle at ``path`` verifies and is the one that the report is about."""
    told = manifest["content"]["bundle"]
    found = verify_bundle(path, trust=trust)
    same = (found.origin, found.root_b64, found.size) == (told["origin"], told["root"], int(told["size"]))
    same = same and found.file_sha256 == told["file_sha256"]
    detail = f"status {found.status}, root {found.root_b64}"
    answer.checks.append(
        Check("bundle", same, detail if same else f"{detail}; the report is about root {told['root']}")
    )
