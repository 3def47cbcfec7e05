"""``audit export``: ratios and memory of a findings document for Prometheus."""

from __future__ import annotations

from pathlib import Path

import click

from gpuaudit.cli.output import force_option, json_option, print_json, print_line
from gpuaudit.cli.write import write_output


@click.command()
@click.argument("findings", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write, Prometheus text format.")
@force_option
@json_option
def command(*, findings: Path, out: Path, force: bool, as_json: bool) -> None:
    """Write compute/stall ratios and memory by category as metrics, for a node exporter's text file folder.

    arca_gpu_compute_efficiency_ratio{gpu,pid,shard,window} and arca_vram_topology_bytes{gpu,category,precision}.
    What was not observed has no line. Nothing is sent anywhere.

    \b
    Example:
      audit export train.findings.json --out train.prom
    """
    from gpuaudit.analyze.load import load_document
    from gpuaudit.analyze.prometheus import exposition

    text = exposition(load_document(findings))
    write_output(out, text.encode("utf-8"), force=force)
    samples = sum(1 for line in text.splitlines() if not line.startswith("#"))
    if as_json:
        print_json({"path": str(out), "samples": samples})
    else:
        print_line(f"metrics   {out}, {samples} samples")
