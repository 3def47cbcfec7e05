"""Which identities a command trusts: the trust store's, and those named on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gpuaudit.bundle.keys import Identity

key_option = click.option(
    "--key", "keys", type=click.Path(path_type=Path), multiple=True,
    help="Trust this public identity too (PEM); may be repeated. The trust store is always asked.",
)  # fmt: skip


def trust_with(keys: tuple[Path, ...]) -> list[Identity]:
    """The pinned identities of the trust store, the local host's among them, and those of ``keys``."""
    from gpuaudit.bundle.keys import Identity, trusted_identities

    return [*trusted_identities(), *(Identity.from_file(k) for k in keys)]
