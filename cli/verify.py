"""``audit verify``: is this evidence, or this packet, what was sealed and by whom?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.cli.output import json_option, print_json, print_line
from gpuaudit.cli.trust import key_option, trust_with
from gpuaudit.cli.waiting import waiting

if TYPE_CHECKING:
    from gpuaudit.bundle.receipt import Receipt

_FILE = click.Path(path_type=Path)
_RECEIPT_LIMIT_BYTES = 1 << 16


@click.command()
@click.argument("path", type=_FILE)
@key_option
@click.option("--receipt", type=_FILE, help="Start receipt that somebody else kept; must fit the bundle.")
@click.option("--require-receipt", is_flag=True, help="No receipt is a negative answer.")
@click.option("--challenge", help="Text that the recipient chose; must be in the first leaf.")
@click.option("--cosigner", type=_FILE, help="Public identity (PEM) that must have countersigned.")
@click.option("--ledger", type=_FILE, help="File of the roots seen before; this one is looked up and added.")
@click.option("--complete", is_flag=True, help="Withheld payloads are a negative answer.")
@click.option("--bundle", type=_FILE, help="For a packet: the bundle it was made from; must fit.")
@click.option(
    "--explain", is_flag=True, help="Print the shell commands that do the same with sqlite3, openssl and xxd."
)
@json_option
def command(
    *, path: Path, keys: tuple[Path, ...], receipt: Path | None, require_receipt: bool, challenge: str | None,
    cosigner: Path | None, ledger: Path | None, complete: bool, bundle: Path | None, explain: bool, as_json: bool,
) -> int:  # fmt: skip
    """Check a bundle (a file) or a packet (a folder), offline and without changing it.

    Status 0: everything holds, and a trusted identity signed it. 1: it is genuine as far as it goes, but something that
    was asked for is not proven (unsealed, unknown signer, receipt missing). 3: it was changed, or is no bundle.

    \b
    Examples:
      audit verify train.db
      audit verify train.db --key that-host.pem --receipt train.db.receipt
      audit verify packet/ --bundle train.db
      audit verify train.db --explain > check.sh
    """
    if path.is_dir():
        wrong = {"--receipt": receipt, "--require-receipt": require_receipt, "--challenge": challenge,
                 "--cosigner": cosigner, "--ledger": ledger, "--complete": complete, "--explain": explain}  # fmt: skip
        for option, value in wrong.items():
            if value:
                raise click.UsageError(
                    f"{option} is for a bundle, and {path} is a folder; give it with the bundle itself"
                )
        return _verify_folder(path, keys, bundle, as_json=as_json)
    if bundle is not None:
        raise click.UsageError(f"--bundle is for a packet, and {path} is not a folder")
    if explain:
        from gpuaudit.bundle.explain import explain_commands

        click.echo(explain_commands(path), nl=False)
        return 0
    from gpuaudit.bundle.keys import Identity
    from gpuaudit.bundle.verify import verify

    with waiting("verifying the bundle"):
        found = verify(
            path, trust=trust_with(keys), receipt=_read_receipt(receipt) if receipt else None, complete=complete,
            require_cosigner=Identity.from_file(cosigner) if cosigner else None, require_receipt=require_receipt,
            challenge=challenge, ledger=ledger,
        )  # fmt: skip
    if as_json:
        print_json(asdict(found))
        return found.exit_code
    print_line(f"{found.status}  {path}")
    print_line(f"origin    {found.origin}")
    print_line(f"root      {found.root_b64}, {found.size} leaves")
    print_line(f"file      sha256 {found.file_sha256}")
    print_line(f"identity  sha256 {found.identity_sha256}")
    if found.challenge:
        print_line(f"challenge {found.challenge}")
    for check in found.checks:
        print_line(f"{'ok' if check.ok else 'NO':<10}{check.name}: {check.detail}")
    for notice in found.notices:
        print_line(f"{'note':<10}{notice}")
    return found.exit_code


def _read_receipt(path: Path) -> Receipt:
    from gpuaudit.bundle.receipt import Receipt

    with path.open("rb") as f:
        data = f.read(_RECEIPT_LIMIT_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputUnusable(f"{path} is not a start receipt: it is not text") from None
    return Receipt.from_text(text)


def _verify_folder(path: Path, keys: tuple[Path, ...], bundle: Path | None, *, as_json: bool) -> int:
    from gpuaudit.report.packet import verify_packet

    with waiting("verifying the packet"):
        found = verify_packet(path, trust=trust_with(keys), bundle=bundle)
    if as_json:
        print_json({**asdict(found), "exit_code": found.exit_code})
        return found.exit_code
    print_line(f"{found.status}  {path}")
    print_line(f"identity  sha256 {found.identity_sha256}")
    for check in found.checks:
        print_line(f"{'ok' if check.ok else 'NO':<10}{check.name}: {check.detail}")
    for notice in found.notices:
        print_line(f"{'note':<10}{notice}")
    return found.exit_code
