"""``audit keys``: the identity that signs evidence and the key that signs reports."""

from __future__ import annotations

import click

from gpuaudit.cli.output import json_option, print_json, print_line


@click.group()
def command() -> None:
    """Make, show and export the keys of this host.

    The identity (Ed25519) signs evidence, the report signer (ECDSA P-256, X.509) signs PDFs. They live in
    $XDG_CONFIG_HOME/gpu-audit, for root in /etc/gpu-audit, or in the folder that GPU_AUDIT_KEYS names. Identities to
    trust are pinned by putting their public key into trusted/ there.

    \b
    Example:
      audit keys export --identity --public > this-host.pem
    """


@command.command()
@json_option
def init(*, as_json: bool) -> None:
    """Make the keys that are missing and keep those that are there.

    \b
    Example:
      sudo audit keys init
    """
    from gpuaudit.bundle import keys

    made = keys.init()
    signer, _ = keys.load_identity(create=False)
    if as_json:
        print_json({
            "folder": str(keys.folder()), "made": made, "identity_sha256": signer.identity.fingerprint,
        })  # fmt: skip
        return
    print_line(f"folder    {keys.folder()}")
    print_line(f"made      {', '.join(made) or 'nothing: all keys are there'}")
    print_line(f"identity  sha256 {signer.identity.fingerprint}")


@command.command()
@json_option
def show(*, as_json: bool) -> None:
    """Show the fingerprints of this host's keys and of every identity it trusts. Makes no key.

    \b
    Example:
      audit keys show --json
    """
    from cryptography.hazmat.primitives.hashes import SHA256

    from gpuaudit.bundle import keys

    own, _ = keys.load_identity(create=False)
    certificate = keys.load_report_signer(create=False).certificate
    trusted = keys.trusted_identities()
    report = certificate.fingerprint(SHA256()).hex()
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    if as_json:
        print_json({
            "folder": str(keys.folder()), "identity_sha256": own.identity.fingerprint,
            "report_certificate_sha256": report, "report_certificate_valid_until": until,
            "trusted": [{"identity_sha256": i.fingerprint, "source": i.source} for i in trusted],
        })  # fmt: skip
        return
    print_line(f"folder    {keys.folder()}")
    print_line(f"identity  sha256 {own.identity.fingerprint}")
    print_line(f"reports   certificate sha256 {report}, valid until {until}")
    for identity in trusted:
        print_line(f"trusted   sha256 {identity.fingerprint}  {identity.source}")


@command.command()
@click.option("--identity", "what", flag_value="identity", type=str, help="The key that signs evidence.")
@click.option("--report-signer", "what", flag_value="report", type=str, help="The certificate that signs reports.")
@click.option("--public", is_flag=True, help="The public half; the private half is never exported.")
def export(*, what: str | None, public: bool) -> None:
    """Print a public key in PEM, for those who verify what this host signs.

    \b
    Example:
      audit keys export --identity --public > this-host.pem
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    from gpuaudit.bundle import keys

    if what is None:
        raise click.UsageError("say which key: --identity or --report-signer")
    if not public:
        raise click.UsageError("private keys are never exported; add --public for the public half")
    if what == "identity":
        signer, _ = keys.load_identity(create=False)
        click.echo(signer.identity.to_pem(), nl=False)
    else:
        certificate = keys.load_report_signer(create=False).certificate
        click.echo(certificate.public_bytes(Encoding.PEM).decode("ascii"), nl=False)
