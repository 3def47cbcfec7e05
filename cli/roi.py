"""``audit roi``: what reclaimed GPU time is worth in a year, with the formula beside the figure."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import click

from gpuaudit.bundle.rounding import half_even
from gpuaudit.cli.output import json_option, print_json, print_line
from gpuaudit.cli.values import Currency, Rate, Share, decimal_text

ASSUMES = "every GPU is paid for in every hour of a year of 365 days, and the share is reclaimed the whole year"
OVERHEAD = (
    "Figures that vendors publish for the same inputs can be higher by a factor for overhead that they do not name; "
    "--overhead 5% makes 470,938 of 448,512 (64 GPUs, 4 per hour, 20%)."
)


@click.command()
@click.option("--gpus", type=click.IntRange(1, 10_000_000), required=True, help="GPUs that are paid for.")
@click.option("--rate", type=Rate(), required=True, help="Price of one GPU-hour.")
@click.option("--reclaim", type=Share(), required=True, help="Share of GPU time that is reclaimed, as 20%.")
@click.option("--overhead", type=Share(), default="0%", show_default=True, help="Added on top, as 5%; off by default.")
@click.option("--currency", type=Currency(), default="USD", show_default=True, help="Currency of --rate.")
@json_option
def command(
    *, gpus: int, rate: Decimal, reclaim: Fraction, overhead: Fraction, currency: str, as_json: bool
) -> None:  # fmt: skip
    """Multiply GPUs, price, the 8,760 hours of a year and the share that is reclaimed; no evidence is read.

    \b
    Examples:
      audit roi --gpus 64 --rate 4 --reclaim 20%
      audit roi --gpus 64 --rate 4 --reclaim 20% --overhead 5% --json
    """
    from gpuaudit.analyze.inference.formulas import HOURS_PER_YEAR, reclaimed_per_year
    from gpuaudit.analyze.money import Rate as Checked

    price = Checked(rate, currency).per_hour
    value = reclaimed_per_year(gpus, Fraction(price), reclaim, overhead)
    formula = f"{gpus} GPUs × {price:f} {currency}/GPU-hour × {HOURS_PER_YEAR:,} hours × {decimal_text(reclaim)}"
    if overhead:
        formula += f" × (1 + {decimal_text(overhead)})"
    if as_json:
        print_json({
            "gpus": gpus, "rate": f"{price:f}", "currency": currency, "hours_per_year": HOURS_PER_YEAR,
            "reclaim": decimal_text(reclaim), "overhead": decimal_text(overhead), "per_year": decimal_text(value),
            "per_year_rounded": str(round(value)), "formula": formula, "provenance": "assumed", "assumes": ASSUMES,
            "note": OVERHEAD,
        })  # fmt: skip
        return
    print_line(f"reclaimed  {half_even(value)} {currency} per year")
    print_line(f"formula    {formula} = {decimal_text(value)}")
    print_line(f"assumes    {ASSUMES}")
    print_line(f"note       {OVERHEAD}")
