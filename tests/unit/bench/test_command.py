"""``python -m bench`` itself: its options, and that no figure hinders the next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import pages
from bench.figures import drain, render, seal, verify
from bench.result import Plan, Result
from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.bundle.tables import TABLES


def test_an_unknown_figure_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["drain", "nonsense"]) == 2
    assert "there is no figure 'nonsense'; there are: drain, seal" in capsys.readouterr().err


def test_a_figure_that_cannot_be_had_does_not_hinder_the_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def unfit(plan: Plan) -> None:
        assert plan.folder.is_dir()
        raise HostUnfit("one CPU", hint="take two")

    monkeypatch.setattr(drain, "measure", unfit)
    saved = tmp_path / "results" / "r.json"
    assert command.main(["drain", "seal", "--quick", "--repeats", "1", "--json", "--save", str(saved)]) == 4
    printed = capsys.readouterr().out
    result = Result.from_json(printed)
    assert [(n.name, n.reason) for n in result.not_measured] == [("drain", "one CPU; take two")]
    assert [f.name for f in result.figures] == ["seal"]
    assert result.command.startswith("python -m bench drain seal --quick --repeats 1 --json --save ")
    assert json.loads(saved.read_text("utf-8")) == json.loads(printed)


def test_every_figure_is_declared() -> None:
    folder = Path(command.__file__).parent / "figures"
    assert {p.stem for p in folder.glob("*.py")} - {"__init__"} == set(command.FIGURES)


def test_the_kept_result_has_every_figure() -> None:
    """A figure that was declared and never measured, or not on this kind of machine, has to show."""
    kept = Result.from_json((pages.ROOT / pages.KEPT).read_text("utf-8"))
    assert [f.name for f in kept.figures] == list(command.FIGURES)
    assert kept.not_measured == ()


def test_sealing_is_told_in_ratios(tmp_path: Path) -> None:
    figure = seal.measure(Plan(2, 60, 0.01, tmp_path))
    values = {v.what: v.spread for v in figure.values}
    record = TABLES["cuda_calls"].record_dtype().itemsize
    assert figure.parameters == {"events": "20,000", "a record": f"{record} bytes", "segments": "1"}
    size, share = values["bundle: bytes per event"], values["bundle ÷ ring records, bytes"]
    assert share.median == pytest.approx(size.median / record)
    assert 5 < size.median < 60
    assert values["seal ÷ sha256sum, CPU"].repeats == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "records.raw"]


def test_verifying_is_told_in_ratios(tmp_path: Path) -> None:
    figure = verify.measure(Plan(1, 60, 0.001, tmp_path))
    values = {v.what: v.spread.median for v in figure.values}
    assert figure.parameters["rows"] == "10,000"
    assert values["audit verify ÷ sha256sum, elapsed"] == pytest.approx(values["audit verify"] / values["sha256sum"])


def test_pages_are_counted_by_reading_the_pdf(tmp_path: Path) -> None:
    if shutil.which("pdfinfo") is None:
        pytest.skip("pdfinfo is not installed")
    weasyprint = pytest.importorskip("weasyprint")
    pdf = weasyprint.HTML(
        string="<p>1</p><p style='break-before: page'>2</p><p style='break-before: page'>3</p>"
    ).write_pdf()
    assert render._pages(pdf) == 3
