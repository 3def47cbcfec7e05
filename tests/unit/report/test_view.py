"""The view says what the findings say: shares with denominators, reasons for what is missing, nothing of its own."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from gpuaudit.analyze.finding import Quantity, RuleOutcome
from gpuaudit.analyze.load import quantity
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.report.tables import Table
from gpuaudit.report.text import marked, number, plain
from gpuaudit.report.view import build_view
from tests.documents import document, q


def cells(table: Table) -> list[list[str]]:
    return [[plain(c.text) for c in row] for row in table.rows]


def test_sentence_of_a_chain_has_its_values_filled_in() -> None:
    chain = next(s for s in build_view(document()).statements if s.kind == "Chain")
    assert plain(chain.sentence) == (
        "Rank 2 of communicator 9e3779b97f4a7c15 arrived late at 10 of 50 collectives, by 30.2 ms in the median and "
        "31.9 ms at most; the other 3 ranks waited 918 GPU-ms for it in all."
    )
    assert chain.chain is not None
    assert [row[2] for row in cells(chain.chain.links)] == ["918 ms of 918 ms (100 %)", "302 ms of 306 ms (98.7 %)"]
    below = {title: [plain(line) for line in lines] for title, lines in chain.chain.below}
    assert below["What would refute it"][0].startswith("Rank 2 on time")
    assert below["Lines of code"] == ["ncclAllReduce from train.py:142 in step()"]
    assert below["Experiment"][0].startswith("Pin the rank's thread")
    assert below["What it could bring"] == [
        "at least 0 GPU-ns (the recording does not show what would be saved), at most 918 GPU-ms (all of what it "
        "explains)"
    ]


def test_the_table_of_shares_ends_in_its_sum() -> None:
    chain = next(s for s in build_view(document()).statements if s.chain is not None)
    assert chain.chain is not None
    assert chain.chain.shares is not None
    assert cells(chain.chain.shares) == [
        ["Preempted: stress-ng (812)", "302 ms", "98.7 %"], ["unexplained", "4.10 ms", "1.3 %"],
        ["the effect, in all", "306 ms", "100 %"],
    ]  # fmt: skip


def test_shares_that_are_not_all_do_not_say_that_they_are() -> None:
    (chain,) = document().chains
    view = build_view(document(chains=[replace(chain, shares=chain.shares[:1])]))
    shown = next(s.chain.shares for s in view.statements if s.chain is not None)
    assert shown is not None
    assert cells(shown)[-1] == ["the effect, in all", "302 ms", "98.7 %"]


def test_a_chain_of_which_nothing_more_is_known_says_so() -> None:
    (chain,) = document().chains
    bare = replace(chain, shares=(), gain=None, experiment="", code=(), against=())
    told = next(s.chain for s in build_view(document(chains=[bare])).statements if s.chain is not None)
    assert told.shares is None
    below = {title: [plain(line) for line in lines] for title, lines in told.below}
    assert below["Lines of code"] == ["no stack was recorded of these calls"]
    assert below["What speaks against it"] == ["nothing was found that does"]
    assert not {"Experiment", "What it could bring"} & set(below)


def test_severe_statements_come_first() -> None:
    assert [s.severity for s in build_view(document()).statements] == ["critical", "warning", "notice"]


def test_verdict_counts_and_tells_what_was_not_looked_at() -> None:
    told = " ".join(plain(t) for t in build_view(document()).verdict)
    assert "2 findings and 1 causal chain: 1 critical, 1 warning, 1 notice." in told
    assert "3 of 4 rules and detectors looked at the evidence; 1 could not" in told


def test_verdict_tells_what_was_avoidable_with_its_bounds_and_in_money_where_there_is_a_price() -> None:
    made = document()
    total = made.waste["total"]
    time, low, high, share = (plain(number(quantity(total[k]))) for k in ("gpu_time", "low", "high", "share"))
    money = plain(marked(quantity(total["money"])))
    observed = plain(number(quantity(made.waste["observed"])))
    told = plain(build_view(made).verdict[-1])
    bounds = f"at least {low}, at most {high}) were avoidable in principle: Waste ledger."
    assert told == f"Of {observed} observed, {time} ({share}, {money}; {bounds}"
    total["money"] = None
    assert f"({share}; {bounds}" in plain(build_view(made).verdict[-1])
    made.waste["observed"] = Quantity(None, "gpu_ns", "derived", reason="no NVML sample").to_json()
    told = plain(build_view(made).verdict[-1])
    assert told == "What became of the GPUs' time is not known (no NVML sample)."


def test_nothing_found_is_not_all_well() -> None:
    clear = document(findings=[], chains=[], outcomes=[RuleOutcome("late_rank", "clear", "")])
    told = " ".join(plain(t) for t in build_view(clear).verdict)
    assert "an answer to the questions below and to no others" in told


def test_completeness_box() -> None:
    box = build_view(document()).completeness
    assert box.grade == "B"
    assert plain(box.seal).startswith("SEALED: every row")
    assert [plain(x) for x in box.source_lines] == [
        "recorded: nccl, off_cpu, clock", "cuda partly recorded: process 4977 could not be observed",
        "nvml partly recorded: one gap of 750 ms",
    ]  # fmt: skip
    assert "nvml, from 31.0 s, for 750 ms: NVML did not answer in time" in [plain(x) for x in box.gap_lines]
    rows = [row for table in box.counts for row in cells(table)]
    assert ["off_cpu", "9,120", "9,118", "2"] in rows
    assert plain(build_view(document()).totals) == "59,655 records seen, 59,653 written, 2 lost"


def test_many_gaps_do_not_push_page_one_away() -> None:
    gap = {"source": "cuda", "start_ns": "812000000000", "duration_ns": None, "pid": 1, "reason": "r"}
    quality = {**document().quality, "gaps": [gap] * 40}
    box = build_view(document(quality=quality)).completeness
    assert len(box.gap_lines) == 5
    assert plain(box.gap_lines[-1]) == "and 36 more, listed in the appendix"
    assert len(box.gaps.rows) == 40


def test_missing_value_is_a_dash_with_its_reason_below() -> None:
    view = build_view(document())
    malloc = next(row for row in cells(view.operations) if row[0] == "cudaMalloc")
    assert malloc[7] == "–"
    assert [plain(n) for n in view.operation_notes] == ["fewer than 100 calls: the longest is given instead"]


def test_no_money_without_a_rate() -> None:
    waste = document().waste
    waste = {**waste, "rate": None, "currency": "", "prices": [], "projection": None}
    waste["rows"] = [{**r, "money": None} for r in waste["rows"]]
    waste["by_key"] = [{**r, "money": None} for r in waste["by_key"]]
    view = build_view(document(waste=waste)).waste
    assert "money" not in [c.title for c in view.by_key.columns]
    assert "money" not in [c.title for c in view.rows.columns]
    assert plain(view.rate) == "No price of a GPU-hour was given or known, so nothing is said in money."
    assert view.projection == ()


def test_money_names_its_price_and_a_projection_its_duty_cycle() -> None:
    view = build_view(document()).waste
    assert plain(view.rate) == (
        "Money is GPU time × the price of its GPU: rate given by the user: 2.99 USD per GPU-hour."
    )
    told = {name: plain(text) for name, text in view.projection}
    assert told["In a month"] == (
        "1,614.20 USD assumed, at least 1,200.00 USD, at most 1,820.50 USD; "
        "if the host works as in the capture for 60.0 % assumed of all time"
    )
    assert told["In a year"] == "19,370 USD/year assumed, at least 14,400 USD/year, at most 21,846 USD/year"
    assert told["Resting on"].startswith("97.0 % of the GPUs' time in the capture")


def test_every_part_of_the_ledger_has_bounds_and_the_sum_is_told() -> None:
    table = build_view(document()).waste.by_key
    assert [c.title for c in table.columns][1:4] == ["at least", "GPU time", "at most"]
    assert cells(table)[-1][0] == "avoidable in principle, in all"
    assert cells(table)[1][:4] == ["waiting for peers", "816 GPU-ms", "918 GPU-ms", "1.02 GPU-s"]


def test_waste_bars_add_up_to_the_observed_time() -> None:
    waste = document().waste
    parts = sum(Fraction(int(r["gpu_time"]["value"])) for r in waste["by_key"])
    assert parts == int(waste["observed"]["value"])
    assert build_view(document()).waste.figure is not None


def test_unassigned_window_says_so() -> None:
    window = {**document().window, "start_utc_ns": None, "end_utc_ns": None, "utc_uncertainty_ns": None}
    cover = dict(build_view(document(window=window)).cover)
    assert plain(cover["Recorded"]) == "60.0 s; the clock was not recorded, so no date is known"


def test_evidence_is_linked_by_our_own_anchors() -> None:
    view = build_view(document())
    links = [p for s in view.statements for _, text in s.facts for p in text if p.kind == "link"]
    anchors = {row[0].anchor for row in view.evidence.rows}
    assert links
    assert {p.target for p in links} <= anchors


def test_every_number_keeps_its_exact_value() -> None:
    found = replace(document().findings[0], impact=q(Fraction(1, 3), "gpu_ns", "derived"))
    view = build_view(document(findings=[found], chains=[]))
    impact = dict(view.statements[0].facts)["Impact"]
    assert impact[0].exact == "1/3 gpu_ns"


@pytest.mark.parametrize(
    "changes",
    [
        {"bundle": {}}, {"host": {"gpus": None}}, {"window": {"start_ns": "x"}}, {"charts": {}}, {"waste": []},
        {"quality": {"grade": "Z"}}, {"appendix": {"declarations": []}},
    ],
)  # fmt: skip
def test_other_shapes_are_refused_in_one_line(changes: dict[str, object]) -> None:
    with pytest.raises(InputUnusable, match="findings: "):
        build_view(document(**changes))


def test_text_that_lacks_a_value_is_refused() -> None:
    found = replace(document().findings[0], values={})
    with pytest.raises(InputUnusable, match="asks for a value 'gpu'"):
        build_view(document(findings=[found]))
