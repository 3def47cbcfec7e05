"""Metrics of a findings document, read back by the parser that reads an engine's."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpuaudit.analyze.finding import Document, Quantity, Section, SectionTable
from gpuaudit.analyze.prometheus import BYTES, RATIO, exposition
from gpuaudit.analyze.run import document_bytes
from gpuaudit.analyze.sections import vram
from gpuaudit.bundle.errors import InputUnusable, OutputExists
from gpuaudit.capture.exposition import parse
from gpuaudit.cli.export import command
from tests.scenes import MS, T0, S, Scene
from tests.unit.analyze.sections.test_compute_stall import half_blocked

GIB = 1 << 30


def read(text: str) -> dict[tuple[str, ...], float]:
    """Metric and label values, in the order of the labels' names."""
    return {
        (s.metric, *(v for _, v in sorted(s.labels.items()))): s.value for s in parse(text).samples
    }  # fmt: skip


def scene() -> Scene:
    out = half_blocked()
    for row in out.rows["nvml_samples"]:
        row["memory_used_bytes"] = 3 * GIB
        row["memory_reserved_bytes"] = 512 << 20
    return out


@pytest.fixture(scope="module")
def document() -> Document:
    return scene().document()


def test_every_ratio_and_every_part_has_a_line(document: Document) -> None:
    found = read(exposition(document))
    ratios = {k[1:]: v for k, v in found.items() if k[0] == RATIO}
    assert ratios["GPU-0", "7", "", "1s"] == pytest.approx(0.6666, abs=1e-12)
    assert ratios["GPU-0", "", "", "capture"] == pytest.approx(2 / 3, rel=1e-15)
    assert {k[3] for k in ratios} == {"1s", "1m", "capture"}
    memory = {k[1:]: v for k, v in found.items() if k[0] == BYTES}
    assert memory["driver_reserved", "GPU-0", ""] == 512 << 20
    assert sum(memory.values()) == 3 * GIB + (512 << 20)


def test_the_names_are_those_that_dashboards_know(document: Document) -> None:
    text = exposition(document)
    assert [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")] == [
        "arca_gpu_compute_efficiency_ratio", "arca_vram_topology_bytes",
    ]  # fmt: skip
    assert 'arca_gpu_compute_efficiency_ratio{gpu="GPU-0",pid="7",shard="",window="1s"} 0.6666' in text
    assert 'arca_vram_topology_bytes{gpu="GPU-0",category="driver_reserved",precision=""} 536870912' in text


def test_memory_of_more_processes_than_a_table_has_rows_still_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vram, "MAX_ROWS", 5)
    out = Scene().clock().sample(T0, 250 * MS, memory_used_bytes=90 * GIB)
    for pid in range(1, 20):
        out.add("nvml_processes", start_ns=T0, duration_ns=250 * MS, gpu_index=0, gpu_uuid="GPU-0", pid=pid,
                op="compute", memory_used_bytes=GIB)  # fmt: skip
    context = out.context()
    section = vram.evaluate(context)
    assert next(t for t in section.tables if t.id == "topology").omitted
    made = exposition(replace(Scene().clock().document(), sections=[section]))
    assert sum(read(made).values()) == 90 * GIB


def test_subjects_without_a_row_are_said() -> None:
    made = named("u", "")
    (section,) = made.sections
    cut = replace(section, tables=(replace(section.tables[0], omitted=3),))
    assert "# 3 subjects of the ratio are left out" in exposition(replace(made, sections=[cut]))


def test_what_was_not_observed_has_no_line() -> None:
    text = exposition(Scene().clock().samples(T0, T0 + S, memory_used_bytes=GIB).document())
    assert {k[0] for k in read(text)} == {BYTES}
    assert f"# TYPE {RATIO} gauge" in text


def test_a_document_without_either_is_refused_with_the_reasons() -> None:
    with pytest.raises(InputUnusable, match="no NVML sample of any GPU"):
        exposition(Scene().clock().cuda(7, "cudaMalloc", T0, MS).document())


def named(uuid: str, shard: str, rows: int = 1) -> Document:
    ratio = Quantity(Fraction(1, 3), "ratio", "assumed")
    columns = (("gpu", ""), ("pid", ""), ("shard", ""), ("ratio", ""))
    table = SectionTable("ratios", "", columns, ((f"0 ({uuid})", "7", shard, ratio),) * rows)
    return replace(
        Scene().clock().document(), sections=[Section("compute_stall", "", "", "evaluated", "", tables=(table,))]
    )


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", 'a\\"b\\n', "é{},=", "\\"])
def test_labels_survive_whatever_stands_in_them(name: str) -> None:
    (key,) = read(exposition(named(name, name)))
    assert key == (RATIO, name, "7", name, "capture")


def test_digits_are_rounded_half_to_even_at_seventeen() -> None:
    assert exposition(named("u", "")).splitlines()[2].endswith(" 0.33333333333333333")


def test_one_subject_twice_is_refused() -> None:
    with pytest.raises(InputUnusable, match="same subject"):
        exposition(named("u", "", rows=2))


def test_the_command_writes_and_does_not_overwrite(document: Document, tmp_path: Path) -> None:
    findings, out = tmp_path / "a.findings.json", tmp_path / "a.prom"
    findings.write_bytes(document_bytes(document))
    args = [str(findings), "--out", str(out)]
    done = CliRunner().invoke(command, args, catch_exceptions=False)
    assert done.exit_code == 0
    assert "a.prom" in done.output
    assert read(out.read_text("utf-8")) == read(exposition(document))
    assert CliRunner().invoke(command, args).exit_code == 0, "the same bytes are no conflict"
    out.write_text("something else", encoding="utf-8")
    refused = CliRunner().invoke(command, args)
    assert isinstance(refused.exception, OutputExists)
    assert out.read_text("utf-8") == "something else"
    done = CliRunner().invoke(command, [*args, "--force", "--json"], catch_exceptions=False)
    assert '"samples"' in done.output
