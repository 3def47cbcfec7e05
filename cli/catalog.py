"""``audit catalog``: the facts on GPUs, models and prices that estimates rest on."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuaudit.bundle.rounding import half_even
from gpuaudit.cli.output import json_option, print_json, print_line, print_table
from gpuaudit.cli.values import decimal_text

if TYPE_CHECKING:
    from gpuaudit.analyze.catalogue import Catalogue
    from gpuaudit.analyze.catalogue_rows import GpuRow, ModelRow

overlay_option = click.option(
    "--overlay", "overlays", type=click.Path(path_type=Path), multiple=True,
    help="CSV of GPUs or models that come before the catalogue's; may be given again.",
)  # fmt: skip


@click.group()
def command() -> None:
    """Show and check the catalogue of GPUs, models and prices, and overlays of it.

    What engines and their files tell counts before the catalogue; what is computed from it is labelled (est).
    """


@command.command("list")
@click.argument("kind", type=click.Choice(["gpus", "models", "prices"]), default="gpus")
@overlay_option
@json_option
def list_(*, kind: str, overlays: tuple[Path, ...], as_json: bool) -> None:
    """List the rows of one kind.

    \b
    Example:
      audit catalog list models
    """
    from gpuaudit.analyze.catalogue import Catalogue

    catalogue = Catalogue.load(overlays)
    if kind == "gpus":
        rows = [_gpu(r, catalogue) for r in catalogue.gpus]
    elif kind == "models":
        rows = [_model(r) for r in catalogue.models]
    else:
        rows = [
            {"gpu": p.gpu, "per_hour": text(p.per_hour), "currency": p.currency, "date": p.date, "source": p.source,
             "doubtful": p.doubtful}
            for p in catalogue.prices
        ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    columns = {"gpus": GPU_TABLE, "models": MODEL_TABLE, "prices": PRICE_TABLE}[kind]
    print_table(columns, [["yes" if r[c] is True else "" if r[c] is False else r[c] for c in columns] for r in rows])


GPU_TABLE = ("name", "arch", "bandwidth_gbs", "bf16_tflops", "fp8_tflops", "ridge_bf16", "price", "doubtful", "date")
MODEL_TABLE = ("name", "total_params", "active_params", "weight_dtype", "doubtful", "date")
PRICE_TABLE = ("gpu", "per_hour", "currency", "date", "doubtful")


@command.command()
@click.argument("name")
@overlay_option
@json_option
def show(*, name: str, overlays: tuple[Path, ...], as_json: bool) -> None:
    """Show what the catalogue knows under the NAME that a GPU or model gives itself; ends with 1 where nothing fits.

    A name is matched by whole words, all of them, or not at all.

    \b
    Examples:
      audit catalog show "NVIDIA H100 80GB HBM3"
      audit catalog show meta-llama/Llama-3.1-70B-Instruct
    """
    from gpuaudit.analyze.catalogue import Catalogue
    from gpuaudit.bundle.errors import NegativeAnswer

    catalogue = Catalogue.load(overlays)
    gpu, model = _by_name(catalogue, name)
    found = {**({"gpu": _gpu(gpu, catalogue)} if gpu else {}), **({"model": _model(model)} if model else {})}
    if not found:
        raise NegativeAnswer(
            f"no row of the catalogue explains every word of {name!r}", hint="audit catalog list shows what there is"
        )
    if as_json:
        print_json(found)
        return
    for kind, row in found.items():
        print_line(kind)
        for key, value in row.items():
            print_line(f"  {key:18} {'–' if value is None else value}")


@command.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@json_option
def check(*, files: tuple[Path, ...], as_json: bool) -> None:
    """Check the catalogue with overlay FILES: every line, and that the words of a row find that row alone.

    \b
    Example:
      audit catalog check our-models.csv
    """
    from gpuaudit.analyze.catalogue import Catalogue
    from gpuaudit.bundle.errors import NegativeAnswer

    catalogue = Catalogue.load(files)
    if clashes := catalogue.clashes():
        raise NegativeAnswer("; ".join(clashes), hint="change the columns match and also")
    rows: list[GpuRow | ModelRow] = [*catalogue.gpus, *catalogue.models]
    unmatched = sorted(r.name for r in rows if not r.pattern.alternatives)
    doubtful = sorted(r.name for r in rows if r.doubtful)
    result = {
        "gpus": len(catalogue.gpus), "models": len(catalogue.models), "prices": len(catalogue.prices),
        "doubtful": doubtful, "never_matched": unmatched,
        "overlays": [
            {"file": o.name, "kind": o.kind, "rows": o.rows, "sha256": o.sha256} for o in catalogue.overlays
        ],
    }  # fmt: skip
    if as_json:
        print_json(result)
        return
    print_line(f"{result['gpus']} GPUs, {result['models']} models, {result['prices']} prices")
    print_line(f"doubtful: {', '.join(doubtful) or 'none'}")
    print_line(f"never matched by name: {', '.join(unmatched) or 'none'}")
    for o in catalogue.overlays:
        print_line(f"{o.name}: {o.rows} {o.kind}, sha256 {o.sha256}")


def _by_name(catalogue: Catalogue, name: str) -> tuple[GpuRow | None, ModelRow | None]:
    """By the name of a row itself, else by what a GPU or model calls itself."""
    gpu = next((r for r in catalogue.gpus if r.name == name), None) or catalogue.gpu(name)
    model = next((r for r in catalogue.models if r.name == name), None) or catalogue.model(name)
    return gpu, model


def _gpu(row: GpuRow, catalogue: Catalogue) -> dict[str, object]:
    from gpuaudit.analyze.catalogue_rows import TENSOR_TYPES
    from gpuaudit.analyze.inference.formulas import ridge_batch

    price = catalogue.price(row)
    peaks = {f"{t}_tflops": text(row.peaks.get(t)) for t in TENSOR_TYPES if t != "fp16"}
    ridge = ridge_batch(row.tflops("bf16"), row.bandwidth_gbs, 16)
    return {
        "name": row.name, "arch": row.arch, "bandwidth_gbs": text(row.bandwidth_gbs), **peaks,
        "ridge_bf16": None if ridge is None else half_even(ridge, 2),
        "price": None if price is None else f"{text(price.per_hour)} {price.currency} ({price.date}, est)",
        "source": row.source, "date": row.date, "doubtful": row.doubtful, "note": row.note, "origin": row.origin,
    }  # fmt: skip


def _model(row: ModelRow) -> dict[str, object]:
    shape = row.kv_shape
    return {
        "name": row.name, "total_params": row.total_params, "active_params": row.active_params, "layers": row.layers,
        "hidden_dim": row.hidden_dim, "kv_layers": shape.layers, "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "swa_window": shape.swa_window, "swa_layers": shape.swa_layers,
        "experts": row.experts, "experts_per_token": row.experts_per_token, "weight_dtype": row.weight_dtype,
        "source": row.source, "date": row.date, "doubtful": row.doubtful, "note": row.note, "origin": row.origin,
    }  # fmt: skip


def text(value: Fraction | None) -> str | None:
    """A number of the catalogue as it stands there."""
    return None if value is None else decimal_text(value)
