"""A findings document with sections, groups and fixes: one H100 with a vLLM server whose slots were full for a minute.

Not analysed from a bundle: it holds whatever a section may hold, so that the printing of sections can be tested apart
from what today's sections say.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from gpuaudit.analyze.finding import (
    Declaration,
    Document,
    Finding,
    Fix,
    Group,
    Quantity,
    RuleOutcome,
    Section,
    SectionChart,
    SectionTable,
    Statement,
    Threshold,
)  # fmt: skip
from tests.documents import LENGTH, MS, START, document, q

BINS = 120
BIN_NS = LENGTH // BINS
ENGINE = {"engine": "0", "engine_url": "http://127.0.0.1:8000/metrics"}
E: dict[str, Any] = {"evidence": ("E1",)}


def _rule(id: str, title: str, text: str, threshold: Threshold) -> Declaration:
    return Declaration(
        id=id, kind="rule", title=title, question=f"{title}?", inputs=(("engine_samples", ("series", "value")),),
        thresholds=(threshold,), texts={"found": text}, window="10 s",
        never_claims="That more requests would have come.",
    )  # fmt: skip


SATURATED = _rule(
    "r5_concurrency_saturation", "All slots of the engine are taken while requests wait",
    "{running} of {slots} slots ran in {fired} of {evaluable} windows while {waiting} requests waited; "
    "{queued} of the time to the first token was queueing.",
    Threshold("waiting_least", 2, "count", "policy file; the default is 1, reference 2.1"),
)  # fmt: skip
HEADROOM = _rule(
    "r7_configured_limit", "A configured limit lies below what the GPU can hold",
    "{slots} slots are configured and the memory holds {target}.",
    Threshold("share_of_target", Fraction(9, 10), "share", "reference 2.1, newest"),
)  # fmt: skip
LOW_REUSE = _rule(
    "r3_prefix_reuse", "Few prompt tokens are found in the prefix cache", "{hit} of prompt tokens were in the cache.",
    Threshold("least_hit", Fraction(35, 100), "share", "reference 2.1"),
)  # fmt: skip


def engine_document(**changes: Any) -> Document:
    """The document; ``changes`` replace whole sections of it."""
    base = document()
    parts: dict[str, Any] = {
        "bundle": {**base.bundle, "synthetic": False},
        "options": {**base.options, "policy_sha256": "7b" * 32},
        "findings": [*base.findings, *_findings()],
        "groups": [Group("G1", "concurrency", "0", "F3", (("F4", "a limit is the wall only while slots are short; "
                         "raise the slots first and measure again"),))],
        "outcomes": [*base.outcomes, *(RuleOutcome(d.id, "finding", "") for d in (SATURATED, HEADROOM, LOW_REUSE))],
        "appendix": {**base.appendix, "declarations": [
            *base.appendix["declarations"], *(d.to_json() for d in (SATURATED, HEADROOM, LOW_REUSE))]},
        "sections": sections(),
    }  # fmt: skip
    return document(**{**parts, **changes})


def sections() -> list[Section]:
    """Every kind of chart, a wide table, values that are not there, and one section without an answer."""
    return [_engines(), _roofline(), _stall(), _vram(), _unanswered(), _economics()]


def _findings() -> list[Finding]:
    values: dict[str, Quantity | str] = {
        "running": q(Fraction(319, 10), "count", "derived"), "slots": q(32, "count"), "fired": q(5, "count", "derived"),
        "evaluable": q(6, "count", "derived"), "waiting": q(Fraction(571, 10), "count", "derived"),
        "queued": q(Fraction(10_428, 10_617), "share", "derived"),
    }  # fmt: skip
    fix = Fix(
        "raise the number of slots", "max_num_seqs", "32", "256", "more KV cache per second, longer time per token",
        {"wall": q(Fraction(29_522, 100), "count", "estimated", formula="F × 10¹² × bits ÷ (BW × 10⁹ × 16)"),
         "peak_use_of_the_KV_cache".lower(): q(Fraction(79, 1000), "share")},
    )  # fmt: skip
    replica = Fix("add a second server and split the traffic", side_effects="twice the GPUs")
    impact = q(Fraction(5 * LENGTH, 6), "gpu_ns", "derived", formula="Σ of windows in which the rule fired", **E)
    return [
        Finding("F3", SATURATED.id, "warning", "found", values, ENGINE, impact, "A", ("E1", "E2"), (fix, replica),
                Fraction(36, 10)),
        Finding("F4", HEADROOM.id, "notice", "found", {"slots": q(32, "count"), "target":
                q(236, "count", "estimated")}, ENGINE, impact, "A", ("E1",), (), Fraction(24, 10)),
        Finding("F5", LOW_REUSE.id, "notice", "found", {"hit": q(Fraction(7, 100), "share", "derived")}, ENGINE,
                q(LENGTH, "gpu_ns", "derived"), "A", ("E2",), (), Fraction(18, 10)),
    ]  # fmt: skip


def _wave(low: int, high: int, seed: int) -> list[int]:
    """Readings that rise for a quarter, stay up with ripples, and fall in the last eighth."""
    out = []
    for i in range(BINS):
        full = min(i * 4, BINS, max(0, (BINS - i) * 8))
        ripple = ((i * 7919 + seed * 104_729) % 97) * (high - low) // 970
        out.append(max(low, low + (high - low) * full // BINS - (ripple if full else 0)))
    return out


def _series(name: str, unit: str, values: list[int], ceiling: int | None = None) -> dict[str, Any]:
    gone = {70, 71, 72, 73}
    cells = [None if i in gone else v for i, v in enumerate(values)]
    spread = max(values) // 25
    return {
        "name": name.replace(" ", "_"), "label": name, "unit": unit,
        "minimum": [None if v is None else str(max(0, v - spread)) for v in cells],
        "mean": [None if v is None else str(v) for v in cells],
        "maximum": [None if v is None else str(v if ceiling is not None and v + spread > ceiling else v + spread)
                    for v in cells],
        "ceiling": None if ceiling is None else str(ceiling),
    }  # fmt: skip


def _times() -> dict[str, Any]:
    return {"times_ns": [str(START + i * BIN_NS) for i in range(BINS)], "bin_ns": str(BIN_NS)}


def _engines() -> Section:
    strip = {
        **_times(), "scale": 1000,
        "marks": [[str(START + 35_000 * MS), str(2_000 * MS), "no scrape for 3.4 s"],
                  [str(START + 58_000 * MS), "0", "restart"]],
        "series": [
            _series("requests running", "count", _wave(0, 32_000, 1), 32_000),
            _series("requests waiting", "count", _wave(0, 91_000, 2)),
            _series("KV cache in use", "share", _wave(4, 79, 3), 1000),
            _series("generated tokens", "token/s", _wave(0, 741_533, 4)),
            _series("prompt tokens", "token/s", _wave(0, 3_243_583, 5)),
            _series("preemptions", "1/s", [0] * BINS),
        ],
    }  # fmt: skip
    few = "fewer than 100 requests finished in the window"
    row = (
        "vLLM at 127.0.0.1:8000", "Qwen/Qwen2.5-7B-Instruct", q(406, "count", **E),
        q(194_615, "token", **E), q(44_492, "token", **E), q(741, "token/s", "derived", evidence=("E1",),
        formula="Δ generated tokens ÷ Σ of active windows"), q(10_617 * MS, "ns", "derived", **E),
        q(None, "ns", "derived", reason=few),
    )  # fmt: skip
    settings = SectionTable(
        "settings", "Settings of the engine, and where each was read",
        (("setting", "setting"), ("value", "value"), ("source", "source")),
        (
            ("model", "Qwen/Qwen2.5-7B-Instruct", "/v1/models"), ("dtype", "bfloat16", "/server_info"),
            ("max_num_seqs", "32", "command line of process 4901: --max-num-seqs"),
            ("enable_prefix_caching", "True", "metric label of vllm:cache_config_info"),
            ("quantization", None, None),
        ), ("A setting without a source was not found anywhere.",),
    )  # fmt: skip
    return Section(
        "engines", "Inference engines", "What did each engine serve, with which settings, and how fast?", "evaluated",
        "",
        (Statement(
            "Engine {engine} finished {requests} requests and generated {tokens} in {time} ({rate}).",
            {"engine": "0", "requests": q(406, "count", **E), "tokens": q(44_492, "token", **E), "time": q(LENGTH),
             "rate": q(Fraction(44_492, 60), "token/s", "derived", evidence=("E1", "E2"),
                       formula="Δ vllm:generation_tokens_total ÷ length of the capture")}),
         Statement("Time to the first token was {ttft} at the 99th percentile.",
                   {"ttft": q(None, "ns", "derived", reason="no bucket of the histogram moved")})),
        (SectionTable(
            "runs", "Engines over the whole capture",
            (("engine", "engine"), ("model", "model"), ("requests", "requests"), ("prompt", "prompt"), ("generated",
             "generated"), ("rate", "rate"), ("ttft", "first token, mean"), ("p99", "first token, p99")), (row, row),
        ), settings),
        (SectionChart("strips", "traffic", "Queue, KV cache and tokens of engine 0", strip),),
        (("active window", "A window of 10 s in which a request ran, waited or finished."),),
        ("Requests count those that were aborted, too.",),
    )  # fmt: skip


def _roofline() -> Section:
    hbm, basis = 3_350 * 10**9, "H100 SXM5, dense tensor cores, vendor data sheet of 2024-06 (est)"
    chart = {
        "ceilings": [
            {"label": "FP8 dense", "flops": str(1_979 * 10**12), "bandwidth": str(hbm), "basis": basis},
            {"label": "BF16 dense", "flops": str(989 * 10**12), "bandwidth": str(hbm), "basis": basis},
        ],
        "points": [
            {"label": "decode, engine 0", "intensity": ["319", "10"], "rate": str(11_300 * 10**9), "kind": "estimated"},
            {"label": "prefill, engine 0", "intensity": ["1450", "1"], "rate": str(240 * 10**12), "kind": "estimated"},
            {"label": "GPU 0, all work (GPM)", "intensity": ["71", "1"], "rate": str(52 * 10**12), "kind": "measured"},
            {"label": "GPU 0, copies over PCIe", "intensity": ["9", "4"], "rate": str(130 * 10**9), "kind": "derived"},
            {"label": "decode, engine 1", "intensity": ["321", "10"], "rate": str(11_900 * 10**9), "kind": "estimated"},
            {"label": "idle", "intensity": ["1", "1"], "rate": "0", "kind": "measured"},
        ],
    }  # fmt: skip
    return Section(
        "roofline", "Roofline", "Was the work limited by arithmetic or by memory, and how far below its ceiling?",
        "evaluated", "",
        (Statement("Decoding ran at {share} of the memory roof: {rate} of {ceiling}.",
                   {"share": q(Fraction(106, 1000), "share", "estimated", **E), "rate": q(11_300 * 10**9, "flop/s",
                    "estimated", formula="tokens × 2 × active parameters ÷ time", **E),
                    "ceiling": q(106_865 * 10**9, "flop/s", "estimated", formula="BW × intensity")}),),
        (), (SectionChart("roofline", "roof", "Roofline of GPU 0", chart),),
        (("intensity", "Arithmetic done for each byte moved to or from the GPU's memory."),
         ("knee", "The intensity at which both roofs meet: F ÷ BW.")),
    )  # fmt: skip


def _stall() -> Section:
    bands = {
        **_times(), "bounds": [[7000, "below 0.7: memory wall"], [9000, "above 0.9: compute-bound"]],
        "rows": [
            {"label": "GPU 0", "values": [min(10_000, 5_200 + v * 40) if i % 41 else None
                                          for i, v in enumerate(_wave(20, 115, 6))]},
            {"label": "GPU 0 · python3 (4901)", "values": [3_000 + (i * 7919) % 4_200 for i in range(BINS)]},
            {"label": "GPU 1 · VLLM::Worker_TP1 (4902)", "values": [9_100 + (i * 31) % 800 for i in range(BINS)]},
        ],
    }  # fmt: skip
    return Section(
        "compute_stall", "Compute and stall", "What share of its time did the work compute instead of waiting?",
        "evaluated", "", (), (), (SectionChart("bands", "ratio", "Compute/stall ratio, 1 s rolling", bands),),
    )  # fmt: skip


def _vram() -> Section:
    gib = 1 << 30
    parts = (("weights", "weights, bf16", 15 * gib), ("kv_cache", "KV cache, bf16", 52 * gib + 3 * (gib >> 2)),
             ("activations", "activations", 3 * gib), ("workspace", "workspace", gib >> 3),
             ("driver", "driver reserved", 617 << 20), ("unattributed", "unattributed", gib >> 1),
             ("free", "free", 8 * gib - (617 << 20)))  # fmt: skip
    total = sum(p[2] for p in parts)
    small = (("weights", "weights, bf16", 2 * gib), ("driver", "driver reserved", 617 << 20),
             ("free", "free", total - 2 * gib - (617 << 20)))  # fmt: skip
    chart = {"unit": "bytes", "bars": [
        {"label": f"GPU {i}", "total": str(total), "parts": [[k, name, str(n)] for k, name, n in one]}
        for i, one in enumerate((parts, small))]}  # fmt: skip
    rows = tuple(
        ("GPU 0", name, "bf16" if "bf16" in name else None, q(n, "bytes", "derived", formula="Σ of allocations", **E),
         q(Fraction(n, total), "share", "derived", formula="bytes ÷ memory of the GPU", **E))
        for _, name, n in parts
    )  # fmt: skip
    columns = (("gpu", "GPU"), ("category", "category"), ("precision", "precision"), ("bytes", "bytes"), ("share",
               "of the GPU's memory"))  # fmt: skip
    return Section(
        "vram", "VRAM topology", "What is the memory of each GPU taken up by?", "evaluated", "",
        (Statement("{reclaimable} could be freed without touching weights or work.",
                   {"reclaimable": q(30 * gib, "bytes", "estimated", formula="KV blocks never used at the peak",
                                     **E)}),),
        (SectionTable("topology", "Memory by category, as NVML counts it", columns, rows),),
        (SectionChart("stack", "memory", "VRAM topology", chart),),
    )  # fmt: skip


def _unanswered() -> Section:
    return Section(
        "quantisation", "Quantisation advisor", "What would another precision free, and what would it cost?",
        "not evaluated", "the weights' precision was not recorded: neither config.json nor a label names a dtype",
    )  # fmt: skip


def _economics() -> Section:
    rate = q(4, "USD/h", "assumed", formula="--rate")
    rows = (
        ("cost of a million output tokens", q(Fraction(4 * 10**6 * 60, 44_492 * 3600), "USD/Mtoken", "assumed",
         formula="rate × 10⁶ ÷ (tokens/s × 3,600)", **E)),
        ("energy of a token", q(Fraction(612_000 * 60, 44_492), "mJ/token", "derived", formula="W ÷ tokens/s", **E)),
        ("tokens from a joule", q(Fraction(44_492, 612 * 60), "token/J", "derived", formula="tokens/s ÷ W", **E)),
        ("recoverable", q(Fraction(278, 100), "USD/h", "assumed", formula="rate × max(0, 0.80 − efficiency)", **E)),
        ("recoverable in a year", q(None, "USD/year", "assumed", reason="no duty cycle was given")),
    )  # fmt: skip
    return Section(
        "economics", "Economics", "What did a token cost, and what could be recovered?", "evaluated", "",
        (Statement("Prices: {rate} for a GPU, given by whoever asked.", {"rate": rate}),),
        (SectionTable("money", "Cost and energy", (("what", "what"), ("amount", "amount")), rows, omitted=2),),
        notes=("The 80 % are an assumption: what a well-fed server of this kind reaches.",),
    )  # fmt: skip
