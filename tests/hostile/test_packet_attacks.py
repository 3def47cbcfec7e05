"""Whoever changes a packet is found, even with the sums made again, even with the identity key in hand."""

from __future__ import annotations

import hashlib
import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pyhanko.pdf_utils import generic
from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter

from gpuaudit.bundle.canonical import dumps, loads
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.bundle.keys import FileSigner, Identity
from gpuaudit.report.packet_check import PacketVerification, verify_packet
from gpuaudit.report.sign import sign_pdf
from tests.packets import made, report_signer, sum_again


def refused(packet: Path, check: str, naming: str) -> PacketVerification:
    """The packet does not verify, and the check that says so names the thing."""
    answer = verify_packet(packet, trust=made().trust)
    assert answer.status == "NOT VERIFIED"
    assert answer.exit_code == 1
    said = {c.name: c.detail for c in answer.checks if not c.ok}
    assert check in said, said
    assert naming in said[check], said
    return answer


def replace(packet: Path, name: str, old: bytes, new: bytes) -> None:
    body = (packet / name).read_bytes()
    assert old in body
    (packet / name).write_bytes(body.replace(old, new, 1))


def test_untouched_packet_verifies(tmp_path: Path) -> None:
    answer = verify_packet(made().copy(tmp_path), trust=made().trust)
    assert [c for c in answer.checks if not c.ok] == []
    assert answer.status == "VERIFIED"
    assert answer.exit_code == 0
    assert answer.identity_sha256 == made().identity.identity.fingerprint
    assert "report.html from findings.json" in {c.name for c in answer.checks}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("report.html", b"Grade B", b"Grade A"),
        ("findings.json", b'"grade":"B"', b'"grade":"A"'),
        ("manifest.json", b'"synthetic":true', b'"synthetic":false'),
        ("VERIFY.txt", b"stop here", b"never mind"),
    ],
)
def test_edited_file(tmp_path: Path, name: str, old: bytes, new: bytes) -> None:
    packet = made().copy(tmp_path)
    replace(packet, name, old, new)
    refused(packet, "SHA256SUMS", name)
    sum_again(packet)
    refused(packet, "SHA256SUMS.sig", "not a signature of SHA256SUMS")


def test_edited_and_signed_by_another_identity(tmp_path: Path) -> None:
    packet, other = made().copy(tmp_path), FileSigner(Ed25519PrivateKey.generate())
    replace(packet, "report.html", b"Grade B", b"Grade A")
    sum_again(packet, other)
    refused(packet, "SHA256SUMS.sig", other.identity.fingerprint)


def test_an_insider_with_the_identity_key_cannot_change_the_html(tmp_path: Path) -> None:
    packet = made().copy(tmp_path)
    replace(packet, "report.html", b"Grade B", b"Grade A")
    manifest = loads((packet / "manifest.json").read_bytes())
    manifest["content"]["html_sha256"] = hashlib.sha256((packet / "report.html").read_bytes()).hexdigest()
    (packet / "manifest.json").write_bytes(dumps(manifest))
    sum_again(packet, made().identity)
    refused(packet, "report.html from findings.json", "report.html is not what findings.json prints")
    refused(packet, "PDF attachments", "content.json")


def test_an_insider_with_the_identity_key_cannot_change_the_findings(tmp_path: Path) -> None:
    packet = made().copy(tmp_path)
    replace(packet, "findings.json", b'"grade":"B"', b'"grade":"A"')
    sum_again(packet, made().identity)
    refused(packet, "manifest.json", "findings.json")


@pytest.mark.parametrize("place", [1_000, 100_000, -9_000, -200])
def test_pdf_with_one_byte_flipped(tmp_path: Path, place: int) -> None:
    packet = made().copy(tmp_path)
    body = bytearray((packet / "report.pdf").read_bytes())
    body[place] ^= 1
    (packet / "report.pdf").write_bytes(body)
    refused(packet, "SHA256SUMS", "report.pdf")
    sum_again(packet, made().identity)
    answer = verify_packet(packet, trust=made().trust)
    assert not answer.ok
    assert all(c.name.startswith("PDF") for c in answer.checks if not c.ok)


def test_pdf_appended_with_javascript(tmp_path: Path) -> None:
    packet = made().copy(tmp_path)
    writer: Any = IncrementalPdfFileWriter(io.BytesIO((packet / "report.pdf").read_bytes()))
    script = {"/S": generic.NameObject("/JavaScript"), "/JS": generic.TextStringObject("app.alert(1)")}
    action: Any = generic.DictionaryObject
    writer.root["/OpenAction"] = action({generic.NameObject(k): v for k, v in script.items()})
    writer.update_root()
    out = io.BytesIO()
    writer.write(out)
    (packet / "report.pdf").write_bytes(out.getvalue())
    said = subprocess.run(
        ["pdfsig", "-nocert", packet / "report.pdf"], capture_output=True, text=True, check=False
    ).stdout
    assert "Signature is Valid" in said, "the reason for looking closer than pdfsig"
    sum_again(packet, made().identity)
    refused(packet, "PDF signature", "does not cover the whole file")
    refused(packet, "PDF revisions", "3 revisions")
    refused(packet, "PDF without actions", "/OpenAction")


def test_pdf_signed_again_by_another_key(tmp_path: Path) -> None:
    packet = made().copy(tmp_path)
    size = int(loads((packet / "manifest.json").read_bytes())["pdf"]["unsigned_size"])
    unsigned = (packet / "report.pdf").read_bytes()[:size]
    (packet / "report.pdf").write_bytes(sign_pdf(unsigned, report_signer(tmp_path / "keys")))
    sum_again(packet, made().identity)
    refused(packet, "PDF signature", "manifest pins another")


def test_pdf_replaced_by_the_unsigned_print(tmp_path: Path) -> None:
    packet = made().copy(tmp_path)
    size = int(loads((packet / "manifest.json").read_bytes())["pdf"]["unsigned_size"])
    (packet / "report.pdf").write_bytes((packet / "report.pdf").read_bytes()[:size])
    sum_again(packet, made().identity)
    refused(packet, "PDF signature", "0 signatures")


def test_pdf_that_is_no_pdf(tmp_path: Path) -> None:
    packet = made().copy(tmp_path)
    (packet / "report.pdf").write_bytes(b"%PDF-1.7\n" + b"\x00" * 5_000)
    sum_again(packet, made().identity)
    refused(packet, "PDF structure", "cannot be read")


@pytest.mark.parametrize("name", ["findings.json", "SHA256SUMS.sig", "VERIFY.txt"])
def test_removed_file(tmp_path: Path, name: str) -> None:
    packet = made().copy(tmp_path)
    (packet / name).unlink()
    refused(packet, "files", f"lacks {name}")


def test_added_file(tmp_path: Path) -> None:
    packet = made().copy(tmp_path)
    (packet / "report (final).html").write_text("another report")
    refused(packet, "files", "also holds report (final).html")


def test_file_replaced_by_a_link(tmp_path: Path) -> None:
    packet = made().copy(tmp_path)
    (packet / "report.html").rename(tmp_path / "elsewhere.html")
    (packet / "report.html").symlink_to(tmp_path / "elsewhere.html")
    refused(packet, "files", "report.html")


@pytest.mark.parametrize("tail", [b"0" * 64 + b"  /etc/passwd\n", b"\n", b"# comment\n"])
def test_line_added_to_the_sums(tmp_path: Path, tail: bytes) -> None:
    packet = made().copy(tmp_path)
    with (packet / "SHA256SUMS").open("ab") as sums:
        sums.write(tail)
    refused(packet, "SHA256SUMS", "other things")


def test_nobody_is_trusted_by_default(tmp_path: Path) -> None:
    answer = verify_packet(made().copy(tmp_path), trust=[])
    assert not answer.ok
    stranger = Identity(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    assert not verify_packet(made().copy(tmp_path / "b"), trust=[stranger]).ok


def test_not_a_packet(tmp_path: Path) -> None:
    with pytest.raises(InputUnusable, match="not a packet"):
        verify_packet(tmp_path, trust=made().trust)
