"""``audit export``: findings as metrics for Prometheus, or a capture as a trace for Perfetto."""

from __future__ import annotations

from pathlib import Path

import click

from gpuaudit.cli.output import force_option, json_option, print_json, print_line
from gpuaudit.cli.trust import key_option, trust_with
from gpuaudit.cli.waiting import waiting
from gpuaudit.cli.write import write_output


@click.command()
@click.argument("source", metavar="FINDINGS|BUNDLE", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=click.Choice(["prometheus", "perfetto"]), default="prometheus",
              show_default=True, help="prometheus reads findings, perfetto a bundle.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
@force_option
@key_option
@json_option
def command(
    *, source: Path, format_: str, out: Path, force: bool, keys: tuple[Path, ...], as_json: bool
) -> None:  # fmt: skip
    """Write metrics for a node exporter's text file folder, or a trace for ui.perfetto.dev. Nothing is sent anywhere.

    prometheus: compute/stall ratios and memory by category,
    arca_gpu_compute_efficiency_ratio{gpu,pid,shard,window} and arca_vram_topology_bytes{gpu,category,precision}.
    What was not observed has no line.

    perfetto: calls of every thread, its time off the CPU, GPU activity and NVML counters, and every causal chain with
    its links as flows. Read it with ui.perfetto.dev ("Open trace file") or trace_processor.

    \b
    Examples:
      audit export train.findings.json --out train.prom
      audit export train.db --format perfetto --out train.pftrace
    """
    if format_ == "perfetto":
        _perfetto(source, out, keys, force=force, as_json=as_json)
        return
    from gpuaudit.analyze.load import load_document
    from gpuaudit.analyze.prometheus import exposition

    text = exposition(load_document(source))
    write_output(out, text.encode("utf-8"), force=force)
    samples = sum(1 for line in text.splitlines() if not line.startswith("#"))
    if as_json:
        print_json({"path": str(out), "samples": samples})
    else:
        print_line(f"metrics   {out}, {samples} samples")


def _perfetto(bundle: Path, out: Path, keys: tuple[Path, ...], *, force: bool, as_json: bool) -> None:
    from gpuaudit.analyze.perfetto.trace import export
    from gpuaudit.analyze.run import AnalyzeOptions, examine, read_evidence

    trust = trust_with(keys)
    with waiting("verifying, analyzing and drawing"):
        verification, store = read_evidence(bundle, trust)
        made = export(*examine(store, verification, AnalyzeOptions(trust=trust)))
        write_output(out, made.data, force=force)
    if as_json:
        print_json({
            "path": str(out), "slices": made.slices, "flows": made.flows, "chains": made.chains,
            "omitted": made.omitted,
        })  # fmt: skip
        return
    print_line(f"trace     {out}, {made.slices:,} slices, {made.chains} chains, {made.flows:,} flows")
    for line in made.omitted:
        print_line(f"left out  {line}")
