"""VERIFY.txt keeps its word: each of its commands runs here, with tools that know nothing of us."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packets import made, sum_again

TOOLS = ("openssl", "ssh-keygen", "xxd", "pdfsig", "pdfdetach", "pdfinfo", "sha256sum")

pytestmark = pytest.mark.skipif(
    any(shutil.which(t) is None for t in TOOLS), reason=f"needs {', '.join(TOOLS)} (poppler-utils, openssh-client, xxd)"
)


def run(packet: Path, identity: Path, *, keep_going: bool = False) -> list[tuple[str, int]]:
    """Run the indented lines of VERIFY.txt in one shell; the status of each, up to the first that fails."""
    lines = [x.strip() for x in (packet / "VERIFY.txt").read_text().splitlines() if x.startswith("    ")]
    assert len(lines) >= 20
    report = packet.parent / "statuses"
    report.unlink(missing_ok=True)
    after = "|| true" if keep_going else "|| exit 1"
    body = "\n".join(f'{{ {line}\n}}\ns=$?; echo $s >> "$STATUSES"; test $s -eq 0 {after}' for line in lines)
    env = {"PATH": "/usr/bin:/bin", "IDENTITY": str(identity), "STATUSES": str(report), "LC_ALL": "C"}
    subprocess.run(["sh", "-c", body], cwd=packet, env=env, capture_output=True, check=False, timeout=120)
    statuses = [int(s) for s in report.read_text().split()]
    return list(zip(lines, statuses, strict=False))


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("identity") / "identity.pub.pem"
    path.write_text(made().identity.identity.to_pem())
    return path


def test_every_command_accepts_the_untouched_packet(tmp_path: Path, identity: Path) -> None:
    packet = made().copy(tmp_path)
    done = run(packet, identity)
    assert [line for line, status in done if status] == []
    assert len(done) == sum(x.startswith("    ") for x in (packet / "VERIFY.txt").read_text().splitlines())


def failed(packet: Path, identity: Path) -> str:
    return "\n".join(line for line, status in run(packet, identity, keep_going=True) if status)


def test_commands_refuse_an_edited_html(tmp_path: Path, identity: Path) -> None:
    packet = made().copy(tmp_path)
    body = (packet / "report.html").read_bytes()
    (packet / "report.html").write_bytes(body.replace(b"Grade B", b"Grade A"))
    assert "sha256sum --check" in failed(packet, identity)
    sum_again(packet)
    told = failed(packet, identity)
    assert "ssh-keygen -Y verify" in told
    assert "openssl pkeyutl -verify" in told


def test_commands_refuse_a_flipped_pdf_byte(tmp_path: Path, identity: Path) -> None:
    packet = made().copy(tmp_path)
    body = bytearray((packet / "report.pdf").read_bytes())
    body[20_000] ^= 1
    (packet / "report.pdf").write_bytes(body)
    told = failed(packet, identity)
    assert "openssl cms -verify" in told
    assert "head -c" in told


def test_commands_refuse_another_identity(tmp_path: Path, identity: Path) -> None:
    """``identity`` is not used, and keeps this test on the worker that has the packet."""
    packet = made().copy(tmp_path)
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "private.pem"], check=True)
    subprocess.run(["openssl", "pkey", "-in", tmp_path / "private.pem", "-pubout", "-out", other], check=True)
    told = failed(packet, other)
    assert "openssl pkey -pubin" in told
    assert "ssh-keygen -Y verify" in told
