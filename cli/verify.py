"""``audit verify``: is this evidence, or this packet, what was sealed and by whom?"""

from __future__ import annotations

from pathlib import Path

import click

from gpuaudit.cli.output import json_option, print_json, print_line


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--key", "keys", type=click.Path(path_type=Path), multiple=True,
              help="Trust this public key too (PEM); may be repeated. The trust store is always asked.")  # fmt: skip
@click.option("--receipt", type=click.Path(path_type=Path), help="Start receipt that somebody else kept; must match.")
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="For a packet: the bundle it was made from; must match."
)
@click.option("--complete", is_flag=True, help="Withheld payloads are a negative answer.")
@click.option(
    "--explain", is_flag=True, help="Print the shell commands that do the same with sqlite3, openssl and xxd."
)
@json_option
def command(
    *, path: Path, keys: tuple[Path, ...], receipt: Path | None, bundle: Path | None, complete: bool, explain: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Check a bundle (a file) or a packet (a folder), offline and without changing it.

    Status 0: everything holds, and a pinned identity signed it. 1: it is genuine as far as it goes, but something that
    was asked for is not proven (unsealed, unknown signer, receipt missing). 3: it was changed, or is no bundle.

    \b
    Examples:
      audit verify train.db
      audit verify train.db --key auditor-host.pem --receipt train.db.receipt
      audit verify packet/
      audit verify train.db --explain | bash
    """
    if explain:
        from gpuaudit.bundle.explain import explain_commands

        click.echo(explain_commands(path), nl=False)
        return 0
    if path.is_dir():
        return verify_folder(path, keys, bundle, as_json)
    return verify_file(path, keys, receipt, complete, as_json)


def verify_file(path: Path, keys: tuple[Path, ...], receipt: Path | None, complete: bool, as_json: bool) -> int:
    """Verify one bundle and print what was found; returns the exit status."""
    from gpuaudit.bundle.keys import Identity, trusted_identities
    from gpuaudit.bundle.receipt import Receipt
    from gpuaudit.bundle.verify import verify

    trust = [*trusted_identities(), *(Identity.from_file(k) for k in keys)]
    expected = Receipt.from_text(receipt.read_text(encoding="utf-8")) if receipt else None
    found = verify(path, trust=trust, receipt=expected, complete=complete)
    if as_json:
        print_json({
            "status": found.status, "exit_code": found.exit_code, "origin": found.origin, "root": found.root_b64,
            "size": found.size, "file_sha256": found.file_sha256, "identity_sha256": found.identity_sha256,
            "notices": list(found.notices),
            "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in found.checks],
        })  # fmt: skip
        return found.exit_code
    print_line(f"{found.status}  {path}")
    print_line(f"origin    {found.origin}")
    print_line(f"root      {found.root_b64}, {found.size} leaves")
    print_line(f"file      sha256 {found.file_sha256}")
    print_line(f"identity  sha256 {found.identity_sha256}")
    for check in found.checks:
        print_line(f"{'ok' if check.ok else 'NO':<8}  {check.name}: {check.detail}")
    for notice in found.notices:
        print_line(f"note      {notice}")
    return found.exit_code
