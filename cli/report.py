"""``audit report``: from findings to a signed packet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuaudit.cli.output import force_option, json_option, note, print_json, print_line
from gpuaudit.cli.waiting import waiting

if TYPE_CHECKING:
    from gpuaudit.report.packet import PacketResult


@click.command()
@click.argument("findings", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the packet.")
@force_option
@json_option
def command(*, findings: Path, out: Path, force: bool, as_json: bool) -> None:
    """Render findings to one HTML file and a PDF, sign the PDF, and write checksums and instructions beside them.

    The packet needs no software of ours to be checked: VERIFY.txt in it tells how.

    \b
    Example:
      audit report train.findings.json --out packet/
    """
    result = render(findings, out, force=force)
    if as_json:
        print_json({
            "path": str(result.path), "written": result.written, "sizes": result.sizes,
            "unsigned_pdf_sha256": result.unsigned_sha256, "identity_sha256": result.identity_sha256,
        })  # fmt: skip
    else:
        print_packet(result)


def render(findings: Path, out: Path, *, force: bool) -> PacketResult:
    """Build the packet of ``findings`` in ``out``, with the keys of this host; says on stderr what it waits for."""
    from gpuaudit.bundle.keys import load_identity, load_report_signer
    from gpuaudit.report.packet import build_packet

    identity, created = load_identity()
    signer = load_report_signer()
    if created:
        note(f"made a new identity for this host: {identity.identity.fingerprint} (SHA-256 of its SPKI)")
    with waiting("rendering and signing the report"):
        return build_packet(findings, out, signer=signer, identity=identity, force=force)


def print_packet(result: PacketResult) -> None:
    """What the packet holds and where its PDF is."""
    size = sum(result.sizes.values())
    state = "signed" if result.written else "there already, and the same"
    print_line(f"packet    {result.path}, {len(result.sizes)} files, {size:,} bytes, {state}")
    print_line(f"report    {result.path / 'report.pdf'}")
    print_line(f"unsigned  sha256 {result.unsigned_sha256}")
