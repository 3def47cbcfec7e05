"""``audit report``: from findings to a signed packet."""

from __future__ import annotations

from pathlib import Path

import click

from gpuaudit.cli.output import force_option, json_option, note, print_json, print_line


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
    result = render(findings, out, force=force, quiet=as_json)
    if as_json:
        print_json(result)


def render(findings: Path, out: Path, *, force: bool, quiet: bool) -> dict[str, object]:
    """Build the packet of ``findings`` in ``out``; prints what was made unless ``quiet``."""
    from gpuaudit.bundle.keys import load_identity, load_report_signer
    from gpuaudit.report.packet import build_packet

    signer = load_report_signer()
    identity, created = load_identity()
    if created:
        note("made an identity for this host, which signs the packet's checksums; see audit keys show")
    result = build_packet(findings, out, signer=signer, identity=identity, force=force)
    return {"out": str(out), "result": str(result)}
