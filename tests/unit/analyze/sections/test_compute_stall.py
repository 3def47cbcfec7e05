"""The section on compute and stall: a ratio where both inputs were observed, and a reason everywhere else."""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze.finding import Quantity, Section, SectionTable
from gpuaudit.analyze.sections import compute_stall
from tests.scenes import MS, T0, S, Scene, collectives


def half_blocked(seconds: int = 70) -> Scene:
    """One GPU, one process: kernels half of the time, in every second a copy of 250 ms."""
    scene = Scene().clock(end=T0 + seconds * S).process(7)
    scene.samples(T0, T0 + seconds * S, pids=[7], gpu_utilization_percent=50)
    scene.cuda(7, "cudaMalloc", T0, MS)
    for i in range(seconds):
        scene.cuda(7, "cudaMemcpy", T0 + i * S + 100 * MS, 250 * MS, size_bytes=1 << 20, direction=1)
    return scene


def row(section: Section, number: int) -> dict[str, Quantity | str | None]:
    """The row of a subject in all tables together; a subject without a ratio stands in the first one alone."""
    out: dict[str, Quantity | str | None] = {}
    first = section.tables[0]
    for table in section.tables:
        names = [name for name, _ in table.columns]
        for cells in table.rows:
            if cells[:3] == first.rows[number][:3]:
                out |= dict(zip(names, cells, strict=True))
    return out


def value(cell: Quantity | str | None) -> int | Fraction | None:
    assert isinstance(cell, Quantity)
    return cell.value


def test_gpu_and_process_have_a_ratio_with_evidence() -> None:
    context = half_blocked().context()
    section = compute_stall.evaluate(context)
    assert section.state == "evaluated"
    gpu, process = row(section, 0), row(section, 1)
    assert (gpu["pid"], process["pid"]) == ("", "7")
    for cells in (gpu, process):
        assert value(cells["ratio"]) == Fraction(2, 3)
        assert value(cells["highest"]) == 1
        assert value(cells["last_second"]) == Fraction(6_666, 10_000)
        assert value(cells["last_minute"]) == Fraction(6_666, 10_000)
        assert cells["verdict"] == "capital trapped in the memory wall, unless copies overlapped kernels"
    assert value(gpu["busy"]) == 35 * S
    ratio = gpu["ratio"]
    assert isinstance(ratio, Quantity)
    tables = {e.id: e.table for e in context.book.entries()}
    assert {tables[i] for i in ratio.evidence} == {"nvml_samples", "cuda_calls"}


def test_the_bands_are_bounded_and_name_the_bounds() -> None:
    section = compute_stall.evaluate(half_blocked(320).context())
    assert [c.id for c in section.charts] == ["ratio_1s", "ratio_60s"]
    for chart in section.charts:
        data = chart.data
        assert len(data["times_ns"]) <= 300
        assert [b[0] for b in data["bounds"]] == [7_000, 9_000]
        for band in data["rows"]:
            assert len(band["values"]) == len(data["times_ns"])
            assert set(band["values"]) - {None} == {6_666}


def test_a_process_whose_calls_were_not_seen_has_no_ratio() -> None:
    scene = half_blocked()
    scene.samples(T0, T0 + 70 * S, 1, [9], gpu_utilization_percent=95)
    section = compute_stall.evaluate(scene.context())
    unseen = row(section, 2)
    assert value(unseen["ratio"]) is None
    assert isinstance(unseen["ratio"], Quantity)
    assert unseen["ratio"].reason == "process 9: no call of it was recorded"
    assert "busy" not in unseen


def test_a_process_on_several_gpus_has_none() -> None:
    scene = half_blocked().samples(T0, T0 + 70 * S, 1, [7])
    section = compute_stall.evaluate(scene.context())
    assert section.state == "not evaluated"
    assert "held several GPUs" in section.reason
    (table,) = section.tables
    assert isinstance(table, SectionTable)
    assert len(table.rows) == 4


def test_a_gpu_that_nobody_holds_and_no_gpu_at_all() -> None:
    section = compute_stall.evaluate(Scene().clock().samples(T0, T0 + 10 * S).context())
    assert (section.state, "no process on the GPU" in section.reason) == ("not evaluated", True)
    section = compute_stall.evaluate(Scene().clock().cuda(7, "cudaMemcpy", T0, MS).context())
    assert (section.state, section.tables) == ("not evaluated", ())
    assert "no NVML sample" in section.reason


def test_lost_records_are_said() -> None:
    scene = half_blocked()
    scene.lost["cuda_calls"] = 3
    assert "3 records of cuda_calls were lost" in compute_stall.evaluate(scene.context()).reason


def test_a_short_capture_has_no_minute() -> None:
    cells = row(compute_stall.evaluate(half_blocked(20).context()), 0)
    assert value(cells["last_minute"]) is None
    assert value(cells["last_second"]) is not None


def test_a_shard_is_named_and_gpm_is_preferred() -> None:
    scene = collectives("asynchronous", ranks=2, steps=4)
    scene.samples(T0, T0 + 10 * S, 0, [101], gpu_utilization_percent=50)
    scene.cuda(101, "cudaMemcpy", T0 + 100 * MS, 100 * MS)
    for i in range(10):
        scene.add(
            "gpm_samples", start_ns=T0 + i * S, duration_ns=S, gpu_index=0, gpu_uuid="GPU-0", unavailable="",
            sm_activity_percent=30.0,
        )  # fmt: skip
    cells = row(compute_stall.evaluate(scene.context()), 1)
    assert cells["shard"] == "rank 1 of 2 (5eed000000000001)"
    assert cells["source"] == "GPM SM activity"
    assert value(cells["busy"]) == Fraction(3, 10) * 9_900 * MS, "calls were seen from the first one on"


def test_a_process_that_comes_later_does_not_hide_what_was_before_it() -> None:
    """Process 8 is listed from 40 s and its calls are seen from 41 s: one second of the GPU is not told."""
    scene = half_blocked(40).samples(T0 + 40 * S, T0 + 60 * S, pids=[7, 8], gpu_utilization_percent=50)
    scene.cuda(8, "cudaMalloc", T0 + 41 * S, MS)
    gpu = row(compute_stall.evaluate(scene.context()), 0)
    assert value(gpu["observed"]) == 59 * S


def test_the_exact_definition_stands_in_the_appendix() -> None:
    told = {d["term"]: d["text"] for d in half_blocked(2).document().appendix["definitions"]}
    for part in ("busy / (busy + stalled)", "min(blocked, observed − busy)", "Above 0.9", "Below 0.7"):
        assert part in told["compute/stall ratio"]
