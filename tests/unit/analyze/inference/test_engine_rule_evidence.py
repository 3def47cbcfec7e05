"""Every number of a finding about an engine leads to rows of the bundle, whichever source told it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gpuaudit.analyze.context import Context, Found
from gpuaudit.analyze.finding import Finding, Quantity
from gpuaudit.analyze.registry import plugins
from tests.served import Traffic

RULES = {p.declaration.id: p.evaluate for p in plugins()}
SEATS = {"max_num_seqs": "8"}
BLOCKS = {"num_gpu_blocks": "100", "block_size": "16"}
BIG = "meta-llama/Llama-3.1-70B-Instruct"

SCENES: dict[str, Traffic] = {
    "r1_under_batching": Traffic(settings={"max_num_seqs": "256"}),
    "r2_kv_pressure": Traffic(
        kv=0.95, preemptions=1, memory_used=45 * 10**9, requests=40,
        settings={**SEATS, "gpu_memory_utilization": "0.5", "max_model_len": "8192", "enable_prefix_caching": "False"},
    ),
    "r2b_admission_backlog": Traffic(kv=0.95, waiting=20, settings={"max_num_seqs": "256", **BLOCKS}),
    "r3_prefix_reuse": Traffic(hits=0.1),
    "r4_oom_risk": Traffic(model=BIG, settings={"dtype": "bfloat16"}),
    "r5_concurrency_saturation": Traffic(waiting=10, settings=SEATS),
    "r6_prefill_bound": Traffic(requests=10, prompt=2000, generated=20, tpot=0.1),
    "r7_configured_limit": Traffic(running=20, settings={"max_num_seqs": "32", "max_model_len": "8192"}),
}  # fmt: skip


@dataclass
class Gauged(Traffic):
    """A server that exports its seats as the value of a metric, and nobody else tells them."""

    seats: int = 8

    def at(self, t: int) -> dict[str, float]:
        return {**super().at(t), "vllm:max_num_seqs": self.seats}


@dataclass
class Labelled(Traffic):
    """A server whose blocks stand in labels only; the recorder wrote no row of ``engine_config`` from them."""

    def at(self, t: int) -> dict[str, float]:
        return {**super().at(t), 'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"}': 1}


def quantities(finding: Finding) -> Iterator[tuple[str, Quantity]]:
    """Every number of a finding, by name."""
    yield "impact", finding.impact
    for values in (finding.values, *(f.values for f in finding.fixes)):
        yield from ((name, q) for name, q in values.items() if isinstance(q, Quantity))


def check(context: Context, rule: str) -> None:
    """The rule fires, and every query of its finding gives the rows that it says, and at least one."""
    outcome = RULES[rule](context)
    assert isinstance(outcome, Found), outcome
    (finding,) = outcome.items
    assert isinstance(finding, Finding)
    entries = {e.id: e for e in context.book.entries()}
    assert finding.evidence
    for name, quantity in quantities(finding):
        assert quantity.evidence or quantity.provenance == "assumed", name
        for id in (*finding.evidence, *quantity.evidence):
            ((count,),) = context.store.sql(f"SELECT count(*) FROM ({entries[id].query})")
            assert count == entries[id].rows > 0, (name, entries[id].query)


@pytest.mark.parametrize("rule", sorted(SCENES))
def test_every_number_of_a_finding_has_its_rows(rule: str) -> None:
    check(SCENES[rule].scene().context(), rule)


@pytest.mark.parametrize(
    ("rule", "traffic"),
    [
        ("r1_under_batching", Gauged(seats=256)),
        ("r5_concurrency_saturation", Gauged(waiting=10)),
        ("r7_configured_limit", Gauged(running=20, seats=32, settings={"max_model_len": "8192"})),
        ("r2b_admission_backlog", Labelled(kv=0.95, waiting=20, settings={"max_num_seqs": "256"})),
    ],
)
def test_settings_that_only_metrics_tell_have_the_rows_of_these(rule: str, traffic: Traffic) -> None:
    check(traffic.scene().context(), rule)


@pytest.mark.parametrize(
    ("traffic", "table", "column", "told"),
    [
        (Gauged(waiting=10), "engine_samples", "value", 8.0),
        (Traffic(waiting=10, settings={**SEATS, "block_size": "16"}), "engine_config", "op", "max_num_seqs"),
    ],
)
def test_the_rows_of_a_setting_are_those_that_tell_it(traffic: Traffic, table: str, column: str, told: object) -> None:
    context = traffic.scene().context()
    outcome = RULES["r5_concurrency_saturation"](context)
    assert isinstance(outcome, Found)
    (finding,) = outcome.items
    assert isinstance(finding, Finding)
    seats = finding.values["seats"]
    assert isinstance(seats, Quantity)
    (entry,) = (e for e in context.book.entries() if e.id in seats.evidence)
    assert entry.table == table
    assert {row[0] for row in context.store.sql(f"SELECT {column} FROM ({entry.query})")} == {told}
