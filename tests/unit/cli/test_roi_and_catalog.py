"""``audit roi`` and ``audit catalog``: figures with their formula, facts with their source, refusals by line."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from gpuaudit.analyze.catalogue_rows import GPU_COLUMNS
from gpuaudit.bundle.errors import InputUnusable, NegativeAnswer, UsageError
from gpuaudit.cli import catalog, roi
from gpuaudit.cli.values import Share, decimal_text

ROI = ("--gpus", "64", "--rate", "4", "--reclaim", "20%")


def run(command: click.Command, *args: str | Path) -> str:
    done = CliRunner().invoke(command, list(map(str, args)), catch_exceptions=False, standalone_mode=False)
    return done.output


def as_json(command: click.Command, *args: str | Path) -> Any:
    return json.loads(run(command, *args, "--json"))


def test_a_year_of_a_fifth_of_64_gpus() -> None:
    text = run(roi.command, *ROI)
    assert "448,512 USD per year" in text
    assert "64 GPUs × 4 USD/GPU-hour × 8,760 hours × 0.2 = 448512" in text
    assert "factor for overhead that they do not name" in text
    told = as_json(roi.command, *ROI)
    assert (told["per_year"], told["per_year_rounded"], told["provenance"]) == ("448512", "448512", "assumed")


def test_the_figure_that_vendors_publish_names_its_factor_here() -> None:
    text = run(roi.command, *ROI, "--overhead", "5%")
    assert "470,938 USD per year" in text
    assert "× 0.2 × (1 + 0.05) = 470937.6" in text
    told = as_json(roi.command, *ROI, "--overhead", "5 %")
    assert (told["per_year"], told["per_year_rounded"], told["overhead"]) == ("470937.6", "470938", "0.05")


def test_every_digit_of_the_product_is_there() -> None:
    args = ("--gpus", "9999999", "--rate", "1.123456789", "--reclaim", "12.3456789%", "--overhead", "0.123456789%")
    told = as_json(roi.command, *args)
    exact = 9999999 * Fraction("1.123456789") * 8760 * Fraction("0.123456789") * (1 + Fraction("0.00123456789"))
    assert Fraction(told["per_year"]) == exact


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--gpus", "0", "--rate", "4", "--reclaim", "20%"), "not in the range"),
        (("--gpus", "64", "--rate", "-4", "--reclaim", "20%"), "'-4' is not a price"),
        (("--gpus", "64", "--rate", "nan", "--reclaim", "20%"), "'nan' is not a price"),
        (("--gpus", "64", "--rate", "4", "--reclaim", "101%"), "'101%' is not a share"),
        (("--gpus", "64", "--rate", "4", "--reclaim", "20"), "'20' is not a share"),
        (("--gpus", "64", "--rate", "4", "--reclaim", "nan%"), "'nan%' is not a share"),
        (("--gpus", "64", "--rate", "4", "--reclaim", "-1%"), "'-1%' is not a share"),
    ],
)
def test_what_is_no_share_or_price_is_refused(args: tuple[str, ...], says: str) -> None:
    with pytest.raises(click.UsageError, match=says):
        run(roi.command, *args)


def test_a_price_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="rate 0"):
        run(roi.command, "--gpus", "64", "--rate", "0", "--reclaim", "20%")


def test_shares_are_exact() -> None:
    share = Share()
    assert share.convert("20%", None, None) == share.convert("0.2", None, None) == Fraction(1, 5)
    assert share.convert(" 7.5 % ", None, None) == Fraction(3, 40)
    assert share.convert("1", None, None) == 1
    assert decimal_text(Fraction(-3, 8)) == "-0.375"
    assert decimal_text(Fraction(12)) == "12"
    assert decimal_text(Fraction(1, 10**12)) == "0.000000000001"


def test_lists_have_source_and_date_and_the_ridges_that_matter() -> None:
    gpus = {r["name"]: r for r in as_json(catalog.command, "list")}
    assert (gpus["H100 SXM"]["ridge_bf16"], gpus["A100 80GB"]["ridge_bf16"]) == ("295.22", "153.02")
    assert gpus["A10G"]["doubtful"] is True
    models, prices = as_json(catalog.command, "list", "models"), as_json(catalog.command, "list", "prices")
    for row in (*gpus.values(), *models, *prices):
        assert row["source"]
        assert row["date"]
    for kind in ("gpus", "models", "prices"):
        assert len(run(catalog.command, "list", kind).splitlines()) == 1 + len(as_json(catalog.command, "list", kind))


def test_a_name_is_shown_or_the_answer_is_no() -> None:
    shown = as_json(catalog.command, "show", "NVIDIA H100 80GB HBM3")
    assert shown["gpu"]["bf16_tflops"] == "989"
    assert shown["gpu"]["price"] == "2.99 USD (2026-08-13, est)"
    assert as_json(catalog.command, "show", "MI250X (per GCD)")["gpu"]["bandwidth_gbs"] == "1638.4"
    assert "total_params" in run(catalog.command, "show", "Qwen/Qwen3-8B")
    with pytest.raises(NegativeAnswer, match="every word"):
        run(catalog.command, "show", "microsoft/Phi-3-mini-4k-instruct")


def test_check_counts_rows_and_pins_overlays(tmp_path: Path) -> None:
    told = as_json(catalog.command, "check")
    assert told["never_matched"] == ["DeepSeek 70B", "Phi 4 32B", "Qwen3 72B", "Qwen3 7B"]
    path = tmp_path / "ours.csv"
    header = ",".join(GPU_COLUMNS)
    line = "Ours,,1000,100,,,,,,ours,,data sheet,2026-11-01,0,"
    path.write_text(f"{header}\n{line}\n", encoding="utf-8")
    assert as_json(catalog.command, "check", path)["overlays"][0]["rows"] == 1
    assert "ours.csv: 1 gpus, sha256" in run(catalog.command, "check", path)
    assert as_json(catalog.command, "show", "Ours", "--overlay", path)["gpu"]["origin"] == "user"
    path.write_text(f"{header}\n{line.replace('1000', 'fast')}\n", encoding="utf-8")
    with pytest.raises(InputUnusable, match=r"ours\.csv, line 2: bandwidth_gbs is 'fast'"):
        run(catalog.command, "check", path)
    path.write_text(f"{header}\n{line}\n{line.replace('Ours', 'Twin')}\n", encoding="utf-8")
    with pytest.raises(NegativeAnswer, match="'Twin'"):
        run(catalog.command, "check", path)
