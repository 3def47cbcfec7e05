"""The recorded regimes of a real vLLM server, served again and scraped by one real capture: the same conclusions."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.finding import Finding, Group, Quantity
from gpuaudit.analyze.load import parse_document
from tests.commands import audit
from tests.engine_server import Replay, recorded, serving
from tests.integration.sessions import Session, environment, rows

DATA = Path(__file__).parents[1] / "data" / "vllm"
REGIMES = ("idle", "light", "heavy_queue", "prefix_hits", "kv_pressure")
EVERY = 4
"""Every fourth poll is served, and the last: the counters end where they ended, in a quarter of the time."""

GAINED = {
    "idle": {"vllm:prompt_tokens_total": 0, "vllm:generation_tokens_total": 0},
    "light": {"vllm:prompt_tokens_total": 2_686, "vllm:generation_tokens_total": 1_117},
    "heavy_queue": {"vllm:prompt_tokens_total": 194_615, "vllm:generation_tokens_total": 44_492},
    "prefix_hits": {
        "vllm:prompt_tokens_total": 582_400, "vllm:generation_tokens_total": 8_736,
        "vllm:prefix_cache_hits_total": 557_568,
    },
    "kv_pressure": {"vllm:num_preemptions_total": 58},
}  # fmt: skip
"""What the server's counters gained over each recording, as the people who recorded it wrote down."""


@dataclass
class Recorded:
    """One capture of all five, and what its analysis found. ``engines``: regime → number in the bundle."""

    samples: list[dict[str, Any]]
    series: list[dict[str, Any]]
    engines: dict[str, int]
    findings: list[Finding] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def gained(self, regime: str, metric: str) -> float:
        """Last value less the first, over all label sets."""
        total = 0.0
        for number in (s["series"] for s in self.series if s["metric"] == metric and self._is(s, regime)):
            values = [r["value"] for r in self.samples if r["series"] == number]
            total += values[-1] - values[0]
        return total

    def of(self, regime: str) -> dict[str, Finding]:
        """Findings about the engine of a regime, by rule."""
        return {f.rule: f for f in self.findings if f.subject.get("engine") == str(self.engines[regime])}

    def first_cause(self, regime: str) -> str:
        """Rule of the primary finding in the first group of the engine."""
        rule_of = {f.id: rule for rule, f in self.of(regime).items()}
        return next(rule_of[g.primary] for g in self.groups if g.primary in rule_of)

    def _is(self, row: dict[str, Any], regime: str) -> bool:
        return bool(row["engine"] == self.engines[regime])


@pytest.fixture(scope="module")
def captured() -> Iterator[Recorded]:
    folder = Path(tempfile.mkdtemp(prefix="gpuaudit-test-"))
    folder.chmod(0o755)
    out, env = folder / "a.db", environment(folder / "keys")
    with ExitStack() as stack:
        replays, urls = {}, {}
        for regime in REGIMES:
            texts = recorded(DATA / f"{regime}.jsonl.gz")
            replays[regime] = Replay([*texts[:-1:EVERY], texts[-1]])
            urls[regime] = stack.enter_context(serving(replays[regime])).url
        named = [part for url in urls.values() for part in ("--engine", url)]
        ours = ["--source", "engines", "--pid", str(os.getpid())]  # another engine may run on this host
        session = Session(["--out", out, "--duration", "10m", *ours, *named], env)
        for replay in replays.values():
            assert replay.all_sent.wait(300)
        code, said = session.end(signal.SIGTERM)
        assert code == 0, said
    done = audit("analyze", str(out), env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    numbers = {r["url"]: r["engine"] for r in rows(out, "engines")}
    engines = {regime: numbers[f"{url}/metrics"] for regime, url in urls.items()}
    document = parse_document((folder / "a.findings.json").read_bytes())
    yield Recorded(
        rows(out, "engine_samples"), rows(out, "engine_series"), engines, list(document.findings), list(document.groups)
    )
    shutil.rmtree(folder)


@pytest.mark.parametrize("regime", REGIMES)
def test_totals_are_those_of_the_server(captured: Recorded, regime: str) -> None:
    assert {m: captured.gained(regime, m) for m in GAINED[regime]} == GAINED[regime]


@pytest.mark.parametrize("regime", ["idle", "light", "prefix_hits"])
def test_nothing_fires_where_nothing_is_wrong(captured: Recorded, regime: str) -> None:
    assert captured.of(regime) == {}


def test_the_heavy_queue_is_saturation_and_not_kv_pressure(captured: Recorded) -> None:
    found = captured.of("heavy_queue")
    assert set(found) == {"r5_concurrency_saturation", "r3_prefix_reuse"}, "random prompts share nothing"
    assert captured.first_cause("heavy_queue") == "r5_concurrency_saturation"
    assert _value(found["r5_concurrency_saturation"], "seats") == 32


def test_kv_pressure_is_kv_pressure_with_its_58_preemptions(captured: Recorded) -> None:
    """Served four times as fast, its short prompts that share little look worth a hint too; the cause is this one."""
    found = captured.of("kv_pressure")
    assert set(found) <= {"r2_kv_pressure", "r3_prefix_reuse"}
    assert captured.first_cause("kv_pressure") == "r2_kv_pressure"
    assert _value(found["r2_kv_pressure"], "preemptions") == 58


def _value(finding: Finding, name: str) -> int | Fraction | None:
    quantity = finding.values[name]
    assert isinstance(quantity, Quantity)
    return quantity.value
