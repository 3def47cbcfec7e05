"""Keys: made once, private to their owner, refused when they are not, and readable by openssl."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7

from gpuaudit.bundle import keys
from gpuaudit.bundle.errors import EXIT_ENVIRONMENT, InputUnusable
from tests.bundles import MemorySigner


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(keys.FOLDER_VARIABLE, str(tmp_path / "etc" / "keys"))
    return tmp_path / "etc" / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_makes_what_is_missing_and_keeps_what_is_there(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        made = keys.init()
    finally:
        os.umask(before)
    assert made == ["identity.pem", "identity.pub.pem", "report.crt.pem", "report.pem", "trusted/this-host.pem"]
    assert {n: mode(folder / n) for n in ("identity.pem", "report.pem")} == {"identity.pem": 0o600, "report.pem": 0o600}
    public = ["identity.pub.pem", "report.crt.pem", "trusted/this-host.pem"]
    assert {mode(folder / n) for n in public} == {0o644}
    assert {mode(folder), mode(folder / "trusted")} == {0o755}
    content = {p: p.read_bytes() for p in folder.rglob("*.pem")}
    assert keys.init() == []
    assert {p: p.read_bytes() for p in folder.rglob("*.pem")} == content
    assert not [p for p in folder.rglob(".*") if p.is_file()]


def test_first_load_says_that_it_made_the_identity(folder: Path) -> None:
    signer, created = keys.load_identity()
    again, created_again = keys.load_identity()
    assert (created, created_again) == (True, False)
    assert again.public_key == signer.public_key
    assert [i.fingerprint for i in keys.trusted_identities()] == [signer.identity.fingerprint]


def test_fingerprint_is_what_openssl_gives(folder: Path, tmp_path: Path) -> None:
    signer, _ = keys.load_identity()
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    command = ["openssl", "pkey", "-in", str(folder / "identity.pem"), "-pubout", "-outform", "DER"]
    der = subprocess.run(command, check=True, capture_output=True).stdout
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    assert digest.finalize().hex() == signer.identity.fingerprint


@pytest.mark.parametrize("name", ["identity.pem", "report.pem"])
@pytest.mark.parametrize("wider", [0o640, 0o604, 0o660, 0o644])
def test_private_key_that_others_can_read_is_refused(folder: Path, name: str, wider: int) -> None:
    keys.init()
    (folder / name).chmod(wider)
    with pytest.raises(keys.KeysUnusable, match=f"{name} has mode {wider:04o}, expected 0600") as caught:
        keys.init()
    assert caught.value.exit_code == EXIT_ENVIRONMENT


@pytest.mark.parametrize("place", [".", "trusted", "trusted/this-host.pem"])
def test_trust_store_that_others_can_write_is_refused(folder: Path, place: str) -> None:
    keys.init()
    (folder / place).chmod(0o777)
    with pytest.raises(keys.KeysUnusable, match="others could replace keys"):
        keys.trusted_identities()


def test_pinned_identities_of_others(folder: Path) -> None:
    keys.init()
    other = MemorySigner().identity
    (folder / "trusted" / "lab.pem").write_text(other.to_pem())
    assert other.fingerprint in {i.fingerprint for i in keys.trusted_identities()}
    assert keys.Identity.from_file(folder / "trusted" / "lab.pem").public_key == other.public_key


def test_nothing_is_made_when_it_should_not(folder: Path) -> None:
    with pytest.raises(keys.KeysUnusable, match="cannot read"):
        keys.load_identity(create=False)
    with pytest.raises(keys.KeysUnusable, match="cannot read"):
        keys.load_report_signer(create=False)
    assert not folder.exists()
    assert keys.trusted_identities() == []


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff" * 90]
)
def test_damaged_private_key(folder: Path, content: bytes) -> None:
    keys.init()
    (folder / "identity.pem").write_bytes(content)
    with pytest.raises(keys.KeysUnusable, match="not a private key in PEM"):
        keys.load_identity()


def test_keys_of_the_wrong_kind(folder: Path, tmp_path: Path) -> None:
    keys.init()
    (folder / "identity.pem").write_bytes((folder / "report.pem").read_bytes())
    with pytest.raises(keys.KeysUnusable, match="not an Ed25519 private key"):
        keys.load_identity()
    pem = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    (tmp_path / "p256.pem").write_bytes(pem)
    for path in (tmp_path / "p256.pem", folder / "report.crt.pem", tmp_path / "nothing.pem"):
        with pytest.raises(InputUnusable):
            keys.Identity.from_file(path)


def test_certificate_of_another_key(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.init()
    kept = (folder / "report.crt.pem").read_bytes()
    (folder / "report.pem").unlink()
    with pytest.raises(keys.KeysUnusable, match=r"not the certificate of report\.pem"):
        keys.load_report_signer()
    assert (folder / "report.crt.pem").read_bytes() == kept


def test_report_certificate_signs_documents(folder: Path, tmp_path: Path) -> None:
    signer = keys.load_report_signer()
    usage = signer.certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.digital_signature, usage.value.content_commitment) == (True, True, True)
    assert not usage.value.key_cert_sign
    assert isinstance(signer.certificate.signature_hash_algorithm, hashes.SHA256)
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    message = pkcs7.PKCS7SignatureBuilder().set_data(b"report").add_signer(
        signer.certificate, signer.private_key, hashes.SHA256()
    ).sign(serialization.Encoding.DER, [pkcs7.PKCS7Options.Binary])  # fmt: skip
    (tmp_path / "m.der").write_bytes(message)
    command = ["openssl", "cms", "-verify", "-inform", "DER", "-in", str(tmp_path / "m.der")]
    command += ["-CAfile", str(folder / "report.crt.pem"), "-binary"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"report"), done.stderr


def test_folder_follows_user_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(keys.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert keys.folder() == keys.SYSTEM_FOLDER
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert keys.folder() == tmp_path / "gpu-audit"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert keys.folder() == tmp_path / "home" / ".config" / "gpu-audit"


def test_new_identity_is_durable_before_it_signs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receipt shows its fingerprint right after: after a power cut the key must still be in its folder."""
    synced: list[Path] = []
    real = os.fsync

    def watched(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())
        real(fd)

    monkeypatch.setattr(os, "fsync", watched)
    keys.load_identity()
    assert {folder, folder.parent, folder / "trusted"} <= set(synced)
