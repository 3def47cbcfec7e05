"""The keys of a host: its identity, its report signer, and the identities it trusts.

One folder: ``identity.pem`` and ``identity.pub.pem`` (Ed25519), ``report.pem`` and ``report.crt.pem`` (P-256 with a
self-signed certificate), ``trusted/*.pem`` (pinned identities, the host's own among them). The folder has mode 0755,
public files 0644, private ones 0600; a private file that others can read, or a folder that others can write, is
refused. Root's folder is ``/etc/gpu-audit``, everybody else's ``$XDG_CONFIG_HOME/gpu-audit``; the variable
``GPU_AUDIT_KEYS`` names another one, and then no other is looked at.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from gpuaudit.bundle.errors import AuditError, HostUnfit, InputUnusable
from gpuaudit.bundle.note import spki_sha256
from gpuaudit.bundle.sqlite_file import sync_folder

SYSTEM_FOLDER = Path("/etc/gpu-audit")
FOLDER_VARIABLE = "GPU_AUDIT_KEYS"
_VALID_DAYS = 3652
"""Ten years: an audit report is kept longer than a key is used, and there is no authority that could renew it."""
_DOCUMENT_SIGNING = ObjectIdentifier("1.3.6.1.5.5.7.3.36")
"""id-kp-documentSigning (RFC 9336)."""
_MAX_KEY_FILE_BYTES = 1 << 16


class KeysUnusable(AuditError):
    """A key file is missing, damaged, or readable by others."""

    exit_code = HostUnfit.exit_code


@dataclass(frozen=True)
class Identity:
    """A public identity: raw Ed25519 key (32 bytes), and where it was found, for messages."""

    public_key: bytes
    source: str = ""

    @property
    def fingerprint(self) -> str:
        """What the identity is pinned by: SHA-256 of its SubjectPublicKeyInfo, hex."""
        return spki_sha256(self.public_key)

    def to_pem(self) -> str:
        """SubjectPublicKeyInfo in PEM, as ``openssl`` reads it."""
        key = Ed25519PublicKey.from_public_bytes(self.public_key)
        return key.public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo).decode()

    @classmethod
    def from_pem(cls, data: bytes, source: str = "") -> Identity:
        """Read a PEM public key; InputUnusable unless it is an Ed25519 key."""
        try:
            key = ser.load_pem_public_key(data)
        except (ValueError, TypeError, UnsupportedAlgorithm) as e:
            raise InputUnusable(f"{source or 'key'} is not a public key in PEM: {e!s:.100}") from None
        if not isinstance(key, Ed25519PublicKey):
            raise InputUnusable(f"{source or 'key'} is not an Ed25519 public key", hint="audit keys export --identity")
        return cls(key.public_bytes_raw(), source)

    @classmethod
    def from_file(cls, path: Path | str) -> Identity:
        """The identity in a PEM file; InputUnusable when there is none."""
        return cls.from_pem(_read_public(Path(path)), str(path))


class FileSigner:
    """An identity whose private key was read from a file."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key = private.public_key().public_bytes_raw()

    @property
    def identity(self) -> Identity:
        """The public half."""
        return Identity(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature, 64 bytes."""
        return self._private.sign(message)


@dataclass(frozen=True)
class ReportSigner:
    """The key and the self-signed certificate that sign reports."""

    private_key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def folder() -> Path:
    """The key folder of this user; it need not exist."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    if os.geteuid() == 0:
        return SYSTEM_FOLDER
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "gpu-audit"


def init() -> list[str]:
    """Make what is missing, keep what is there; the names of the files that were made."""
    before = set(_files())
    load_identity()
    load_report_signer()
    return sorted(set(_files()) - before)


def _files() -> list[str]:
    at = folder()
    return [str(p.relative_to(at)) for p in at.rglob("*.pem")] if at.is_dir() else []


def load_identity(create: bool = True) -> tuple[FileSigner, bool]:
    """The identity of this host, and whether it was made just now; KeysUnusable when it cannot be used."""
    path = folder() / "identity.pem"
    created = False
    if create and not os.path.lexists(path):
        _prepare_folder()
        created = _store(path, _pkcs8(Ed25519PrivateKey.generate()), 0o600)
    key = _load_private(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeysUnusable(f"{path} is not an Ed25519 private key", hint="move it away and run audit keys init")
    signer = FileSigner(key)
    if create:
        pem = signer.identity.to_pem().encode()
        for public in (path.with_name("identity.pub.pem"), folder() / "trusted" / "this-host.pem"):
            if not os.path.lexists(public):
                _prepare_folder()
                _store(public, pem, 0o644)
    return signer, created


def load_report_signer(create: bool = True) -> ReportSigner:
    """The report signer of this host; KeysUnusable when it cannot be used."""
    path, at = folder() / "report.pem", folder() / "report.crt.pem"
    if create and not os.path.lexists(path):
        _prepare_folder()
        _store(path, _pkcs8(ec.generate_private_key(ec.SECP256R1())), 0o600)
    key = _load_private(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeysUnusable(f"{path} is not a P-256 private key", hint="move it away and run audit keys init")
    if create and not os.path.lexists(at):
        _store(at, _self_signed(key).public_bytes(ser.Encoding.PEM), 0o644)
    try:
        certificate = x509.load_pem_x509_certificate(_read_public(at))
    except ValueError:
        raise KeysUnusable(f"{at} is not a certificate in PEM", hint="move it away and run audit keys init") from None
    if certificate.public_key() != key.public_key():
        raise KeysUnusable(f"{at} is not the certificate of {path.name}", hint="move it away and run audit keys init")
    return ReportSigner(key, certificate)


def trusted_identities() -> list[Identity]:
    """The pinned identities: this user's, and the host's own where they can be read. An empty list if there is none.

    KeysUnusable when others can write to a trust store, InputUnusable for a file in it that is no identity.
    """
    folders = [folder()] if os.environ.get(FOLDER_VARIABLE) else [folder(), SYSTEM_FOLDER]
    found: dict[str, Identity] = {}
    for at in dict.fromkeys(folders):
        own = at / "identity.pub.pem"
        store = at / "trusted"
        for place in (at, store):
            if place.is_dir():
                _refuse_writable(place)
        for path in [*([own] if own.is_file() else []), *(sorted(store.glob("*.pem")) if store.is_dir() else [])]:
            _refuse_writable(path)
            identity = Identity.from_file(path)
            found.setdefault(identity.fingerprint, identity)
    return list(found.values())


def _prepare_folder() -> None:
    at = folder()
    try:
        for place in (at, at / "trusted"):
            if not place.is_dir():
                place.mkdir(mode=0o755, parents=True, exist_ok=True)
                place.chmod(0o755)  # whatever the umask says: others must be able to read public files
                sync_folder(place)
    except OSError as e:
        raise KeysUnusable(f"cannot make the key folder {at}: {e.strerror}", hint=f"set {FOLDER_VARIABLE}") from None
    _refuse_writable(at)


def _refuse_writable(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o022:
        raise KeysUnusable(f"{path} has mode {mode:04o}: others could replace keys", hint=f"chmod go-w {path}")


def _store(path: Path, data: bytes, mode: int) -> bool:
    """Write a file as a whole or not at all; False when somebody else was faster."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as f:
            os.fchmod(fd, mode)
            f.write(data)
            f.flush()
            os.fsync(fd)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        sync_folder(path)  # a capture is signed with it, and a receipt shown, right after
    except OSError as e:
        raise KeysUnusable(f"cannot write {path}: {e.strerror}", hint=f"set {FOLDER_VARIABLE}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return True


def _load_private(path: Path) -> object:
    """A private key from a file that nobody else can read."""
    try:
        with path.open("rb") as f:
            mode = stat.S_IMODE(os.fstat(f.fileno()).st_mode)
            if mode & 0o077:
                raise KeysUnusable(f"{path} has mode {mode:04o}, expected 0600", hint=f"chmod 600 {path}")
            data = f.read(_MAX_KEY_FILE_BYTES)
    except OSError as e:
        raise KeysUnusable(f"cannot read {path}: {e.strerror}", hint="audit keys init makes keys") from None
    try:
        return ser.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # its own message could show key bytes
        raise KeysUnusable(f"{path} is not a private key in PEM", hint="move it away and run audit keys init") from None


def _read_public(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            return f.read(_MAX_KEY_FILE_BYTES)
    except OSError as e:
        raise InputUnusable(f"cannot read {path}: {e.strerror}", hint="a public key in PEM is expected") from None


def _pkcs8(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A certificate whose uses are digital signature and non-repudiation: what PDF readers ask of a signer."""
    name = x509.Name([
        x509.NameAttribute(NameOID.COMMON_NAME, f"gpu-audit report signer, {socket.gethostname()}"[:64]),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "gpu-audit"),
    ])  # fmt: skip
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=True, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([_DOCUMENT_SIGNING, ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
