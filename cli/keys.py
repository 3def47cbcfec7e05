"""``audit keys``: the identity that signs evidence and the key that signs reports."""

from __future__ import annotations

import click


@click.group()
def command() -> None:
    """Make, show and export the keys of this host.

    The identity (Ed25519) signs evidence, the report signer (ECDSA P-256, X.509) signs PDFs. They live in
    $XDG_CONFIG_HOME/gpu-audit, for root in /etc/gpu-audit, or where GPU_AUDIT_KEYS says.

    \b
    Example:
      audit keys export --identity --public > this-host.pem
    """
