"""Worked examples of formulas, catalogue, prices and economics, each through the function the analysis uses."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.catalogue_rows import GpuRow
from gpuaudit.analyze.inference import formulas, memory
from gpuaudit.analyze.inference.dtypes import Claim, kv_element, weight_type
from gpuaudit.analyze.inference.formulas import GuardWindow, Number
from gpuaudit.analyze.inference.memory import KvShape, LinearState
from gpuaudit.analyze.prices import PriceBook
from tests.inference_cases import Case, cases, exact

CATALOGUE = Catalogue.load()

CASES = cases("dec", "rid", "pre", "flr", "wgt", "kvh", "kvb", "kve", "kvc", "eff", "spg", "eco", "gpu", "mdl", "prc")

H100_8B = formulas.decode_ceiling_tps(3350, 8 * 10**9, 16)
H100_RIDGE = formulas.ridge_batch(989, 3350, 16)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_example(case: Case) -> None:
    DRIVERS[case.prefix](case, Numbers(case.inputs))


class Numbers:
    """Inputs of an example: numbers exact, everything else as it stands in the file."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self._inputs = inputs

    def __getitem__(self, name: str) -> Any:
        value = self._inputs[name]
        return exact(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    def __contains__(self, name: str) -> bool:
        return name in self._inputs

    def whole(self, name: str) -> int:
        value = self[name]
        assert value == int(value)
        return int(value)


def check(case: Case, got: Number | None, expected: Any = ...) -> None:
    want = case.expected if expected is ... else expected
    assert case.agrees(got, want), f"{got} ({None if got is None else float(got)}) against {want}"


def gpu(name: str) -> GpuRow:
    row = CATALOGUE.gpu(name)
    assert row is not None
    return row


def decode(case: Case, i: Numbers) -> None:
    if case.id == "dec-03":
        row, model = gpu(i["gpu"]), CATALOGUE.model(i["model"])
        assert model is not None
        bits = weight_type([Claim("dtype", i["dtype"], "the example")]).bits
        check(case, formulas.decode_ceiling_tps(row.bandwidth_gbs, model.total_params, bits))
    elif case.id == "dec-05":
        a, b = (formulas.decode_ceiling_tps(i["peak_bw_gbps"], i["params"], i[k]) for k in ("bits_a", "bits_b"))
        check(case, formulas.ratio(a, b))
    elif case.id == "dec-06":
        band = formulas.band(i["expected"])
        assert band is not None
        check(case, band.lower, case.expected["lower"])
        check(case, band.upper, case.expected["upper"])
    elif case.id == "dec-08":
        check(case, memory.weight_gb(i["total"], i["bits"]), case.expected["weight_gb"])
        got = formulas.decode_ceiling_tps(i["peak_bw_gbps"], i["active"], i["bits"])
        check(case, got, case.expected["decode_ceiling"])
    else:
        types(case, i)


def types(case: Case, i: Numbers) -> None:
    """dec-10, dec-13, dec-14: who says how many bits a weight has."""
    claims = []
    if "reported_quantization" in i:
        claims.append(Claim("quantization", i["reported_quantization"], "/server_info quantization"))
    if "reported_dtype" in i:
        claims.append(Claim("dtype", i["reported_dtype"], "/server_info dtype"))
    if "DTYPE" in i:
        claims.append(Claim("dtype", i["DTYPE"], "environment dtype"))
    if "catalog" in i:
        claims.append(Claim("dtype", i["catalog"], "catalogue"))
    kind = weight_type(claims)
    said = {
        "vllm /info quantization": "/server_info quantization",
        "vllm config": "/server_info dtype",
        "fallback": "fallback",
    }
    assert kind.source == said[case.expected["source"]]
    assert kind.fallback == (case.expected["source"] == "fallback")
    if "bits" in case.expected:
        check(case, kind.bits, case.expected["bits"])
    params = next((i[name] for name in ("total", "params") if name in i), None)
    if "weight_gb" in case.expected:
        check(case, memory.weight_gb(params, kind.bits), case.expected["weight_gb"])
    if "decode_ceiling" in case.expected:
        got = formulas.decode_ceiling_tps(i["peak_bw_gbps"], params, kind.bits)
        check(case, got, case.expected["decode_ceiling"])


def ridge(case: Case, i: Numbers) -> None:
    found = formulas.ridge_batch(i["tflops"], i["bw"], i["bits"])
    assert found is not None
    if "params" in i:
        ceiling = formulas.decode_ceiling_tps(i["bw"], i["params"], i["bits"])
        assert ceiling is not None
        check(case, ceiling * found)
    else:
        check(case, found)


def prefill(case: Case, i: Numbers) -> None:
    if case.id == "pre-05":
        check(case, formulas.sequence_length(i["prompt_tokens_mean"], i.whole("max_model_len")))
        return
    linear = formulas.prefill_ceiling_prompts_per_s(i["tflops"], i["params"], i["seq_len"])
    if case.id == "pre-01":
        check(case, linear)
        return
    attention = formulas.attention_coefficient(i["coef"], None)
    whole = formulas.prefill_ceiling_prompts_per_s(
        i["tflops"], i["params"], i["seq_len"], attention=attention, layers=i.whole("layers")
    )
    share = formulas.ratio(whole, linear)
    assert share is not None
    if case.id == "pre-02":
        assert 0 < 100 * (1 - share) < exact(case.expected["reduction_pct_lt"])
    else:
        low, high = map(exact, case.expected["ratio_to_linear_between"])
        assert low < share < high


def floor(case: Case, i: Numbers) -> None:
    check(case, formulas.floor_ms(i["decode_ceiling"]))


def weights(case: Case, i: Numbers) -> None:
    check(case, memory.weight_gb(i["params"], i["bits"]))


def headroom(case: Case, i: Numbers) -> None:
    if case.id == "kvh-02":
        check(case, memory.bytes_to_gb(i["mib"] * (1 << 20)))
    else:
        got = memory.kv_headroom_gb(i["vram_gb"], i["weight_gb"], i.whole("tp"), i["gpu_memory_utilization"])
        check(case, got)


def kv_bytes(case: Case, i: Numbers) -> None:
    if case.id == "kvb-01":
        shape = KvShape(i.whole("layers"), i.whole("kv_heads"), i.whole("head_dim"))
        check(case, memory.bytes_per_sequence(shape, i["bytes"], i.whole("len")))
    elif case.id == "kvb-05":
        shape = KvShape(32, 8, 128, i.whole("swa_window"), i["num_swa_layers"])
        check(case, memory.bytes_per_sequence(shape, 2, 4096))
    else:
        names = ("layers", "key_heads", "value_heads", "key_dim", "value_dim", "conv", "dtype_bytes")
        state = LinearState(*(i.whole(n) for n in names))
        check(case, state.state_bytes)
        model = CATALOGUE.model("Qwen3.6-27B")
        assert model is not None
        assert model.linear == state


def kv_elements(case: Case, i: Numbers) -> None:
    for value in i["kv_cache_dtype"]:
        found = kv_element(value)
        assert found.certainty == "explicit"
        check(case, found.size_bytes)


def kv_counterfactual(case: Case, i: Numbers) -> None:
    blocks, size, length = i.whole("blocks"), i.whole("block_size"), i.whole("current_len")
    if "target_len" in i:
        target = i.whole("target_len")
        check(case, memory.seats_at_length(blocks, size, i["observed_concurrency"], length, target))
    else:
        check(case, memory.state_pages(blocks, size, i["observed_concurrency"], length))


def efficiency(case: Case, i: Numbers) -> None:
    if case.id in {"eff-06", "eff-07"}:
        check(case, formulas.config_relative_pct(i["tps"], i["ceiling"], i.whole("max_num_seqs"), i["ridge"]))
    elif case.id == "eff-09":
        row, model = gpu(i["gpu"]), CATALOGUE.model("Muse-Glimmer-30B")
        assert model is not None
        ceiling = formulas.decode_ceiling_tps(row.bandwidth_gbs, model.active_params, 4)
        check(
            case,
            formulas.decode_mfu_pct(i["tps"], ceiling, formulas.ridge_batch(row.peaks["bf16"], row.bandwidth_gbs, 4)),
        )
    elif case.id == "eff-04":
        ceiling = formulas.decode_ceiling_tps(i["bw"], i["params"], i["bits"])
        check(case, formulas.decode_mfu_pct(i["tps"], ceiling, formulas.ridge_batch(i["tflops"], i["bw"], i["bits"])))
    elif case.id == "eff-02":
        check(case, formulas.batch_relative_pct(i["tps"], i["ceiling"], i["running"], H100_RIDGE))
    else:
        ceiling = formulas.decode_ceiling_tps(i["bw"], i["params"], i["bits"])
        h200 = gpu("NVIDIA H200")
        assert h200.bandwidth_gbs == i["bw"]
        at = formulas.ridge_batch(h200.peaks["bf16"], i["bw"], i["bits"])
        check(case, formulas.batch_relative_pct(i["tps"], ceiling, i["running"], at))


def guard(case: Case, i: Numbers) -> None:
    assert H100_8B is not None
    assert H100_RIDGE is not None
    if case.id == "spg-02":
        hit = formulas.speculation([GuardWindow(None, i["tps"], i["running"], None)], H100_8B, H100_RIDGE)
        assert hit is not None
        assert hit.detector == "stream"
    elif case.id == "spg-03":
        over = H100_8B * H100_RIDGE * Fraction(106, 100)
        hit = formulas.speculation([GuardWindow(None, over, 1000, None)], H100_8B, H100_RIDGE)
        assert hit is not None
        assert hit.detector == "total"
    else:
        tps = H100_8B * H100_RIDGE * Fraction(102, 100)
        assert formulas.speculation([GuardWindow(None, tps, 1000, 1000)], H100_8B, H100_RIDGE) is None
        check(case, formulas.decode_mfu_pct(tps, H100_8B, H100_RIDGE))
        check(case, formulas.batch_relative_pct(tps, H100_8B, 1000, H100_RIDGE))


def economics(case: Case, i: Numbers) -> None:
    if case.id == "eco-01":
        check(case, formulas.tokens_per_joule(i["tps"], i["power_w"]), case.expected["tok_per_w"])
        check(case, formulas.joules_per_token(i["tps"], i["power_w"]), case.expected["j_per_tok"])
    elif case.id == "eco-07":
        assert formulas.cost_per_mtoken(i["usd_per_hr"], i["tps"]) is not None
        assert not formulas.turned_over(i["completed"], i["mean_running"])
        assert formulas.turned_over(i["mean_running"], i["mean_running"])
    elif case.id == "eco-08":
        assert PriceBook(CATALOGUE).price_of(i["gpu"]) is None
        check(case, formulas.cost_per_mtoken(None, 100))
    elif case.id == "eco-12":
        check(case, formulas.recoverable_per_hour(i["usd_per_hr"], i["efficiency_pct"], Fraction(1)))
    elif case.id == "eco-13":
        check(case, formulas.recoverable_per_hour(i["usd_per_hr"], i["efficiency_pct"]))
        assert formulas.recoverable_per_hour(3, 80) is None
    elif case.id == "eco-05":
        price = PriceBook(CATALOGUE).price_of(i["gpu"])
        assert price is not None
        assert (price.per_hour, price.provenance) == (i["catalog"], "estimated")
        check(case, formulas.cost_per_mtoken(price.per_hour, i["tps"]))
    elif case.id == "eco-06":
        from decimal import Decimal

        book = PriceBook.make(CATALOGUE, Decimal(case.inputs["usd_per_hr"]), None, "USD")
        price = book.price_of(i["gpu"])
        assert price is not None
        assert price.provenance == "assumed"
        assert "(est)" not in price.label
        check(case, formulas.cost_per_mtoken(price.per_hour, i["tps"]))
    else:
        check(case, formulas.cost_per_mtoken(i["catalog"] if "catalog" in i else i["usd_per_hr"], i["tps"]))


def gpus(case: Case, i: Numbers) -> None:
    row = gpu(i["name"])
    if case.id == "gpu-14":
        b200 = gpu("NVIDIA B200")
        assert (row.peaks["bf16"], row.bandwidth_gbs) == (b200.peaks["bf16"], b200.bandwidth_gbs)
        assert row.doubtful
    else:
        check(case, row.tflops("bf16"), case.expected[0])
        check(case, row.bandwidth_gbs, case.expected[1])


def models(case: Case, i: Numbers) -> None:
    row = CATALOGUE.model(i["name"])
    found = None if row is None else [row.total_params, row.active_params]
    assert found == case.expected


def prices(case: Case, i: Numbers) -> None:
    price = PriceBook(CATALOGUE).price_of(i["name"])
    assert price is not None
    check(case, price.per_hour)
    assert price.label == "catalogue price of 2026-08-13 (est)"


DRIVERS: dict[str, Callable[[Case, Numbers], None]] = {
    "dec": decode, "rid": ridge, "pre": prefill, "flr": floor, "wgt": weights, "kvh": headroom, "kvb": kv_bytes,
    "kve": kv_elements, "kvc": kv_counterfactual, "eff": efficiency, "spg": guard, "eco": economics, "gpu": gpus,
    "mdl": models, "prc": prices,
}  # fmt: skip
