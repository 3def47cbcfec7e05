"""The catalogue: whole words or nothing, facts with source and date, overlays of a user's before it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from gpuaudit.analyze.catalogue import Catalogue, provenance
from gpuaudit.analyze.catalogue_rows import GPU_COLUMNS, MODEL_COLUMNS, GpuRow, ModelRow
from gpuaudit.analyze.inference.formulas import ridge_batch
from gpuaudit.analyze.matching import Pattern, best, gpu_words, names_quantisation
from gpuaudit.bundle.errors import InputUnusable

CATALOGUE = Catalogue.load()

NO_MODEL = (
    "microsoft/Phi-3-mini-4k-instruct", "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "deepseek-ai/deepseek-coder-6.7b-instruct", "google/gemma-3n-E4B-it", "Qwen/Qwen3.5-32B",
    "meta-llama/Llama-2-13b-chat-8bit", "meta-llama/Llama-2-13b-8bit", "meta-llama/Llama-4-70B", "Qwen/Qwen3-72B",
    "microsoft/Phi-4-multimodal-instruct", "nvidia/Llama-3.1-Nemotron-51B-Instruct", "mistralai/Mistral-Large-3",
    "mistralai/Mistral-Large-3-675B-Instruct-2512x", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-Omni-7B",
    "acme/llama-3-8b-finetune", "deepseek-ai/DeepSeek-V2", "deepseek-ai/DeepSeek-V3.1-Base", "google/gemma-7b",
    "Phi-3-mini-4k", "Llama-3.2-11B", "deepseek-coder-6.7b", "gemma-3n-E4B", "Qwen3.5-32B", "Llama-2-13b-8bit",
    "llama-3.1-8b-draft", "llama", "8b", "", "/", "x" * 10_000, "LLAMA 3 8B 70B",
)  # fmt: skip

MODELS = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "Llama 3 8B",
    "meta-llama/Llama-3.3-70B-Instruct": "Llama 3 70B",
    "/models/Llama-3.1-8B-Instruct/": "Llama 3 8B",
    "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4": "Llama 3 70B",
    "meta-llama/Llama-3.2-1B": "Llama 3.2 1B",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "Qwen3 30B",
    "Qwen/Qwen3-0.6B": "Qwen3 0.6B",
    "Qwen/Qwen2.5-0.5B-Instruct": "Qwen2.5 0.5B",
    "deepseek-ai/DeepSeek-R1-0528": "DeepSeek 671B / R1 / V3",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "DeepSeek R1 Distill Llama 8B",
    "google/gemma-2-9b-it": "Gemma 9B (Gemma 2)",
    "microsoft/Phi-4-mini-instruct": "Phi-4 mini",
    "mistralai/Mistral-7B-Instruct-v0.3": "Mistral 7B",
}

NO_GPU = (
    "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA H100", "NVIDIA A100", "GH200 480GB",
    "NVIDIA A100-SXM-64GB", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 NVL PCIe",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    "NVIDIA H20", "Tesla T4", "AMD Radeon RX 7900 XTX XT", "", "NVIDIA", "B2000",
)  # fmt: skip


@pytest.mark.parametrize("name", NO_MODEL)
def test_a_model_in_doubt_has_no_row(name: str) -> None:
    assert CATALOGUE.model(name) is None


@pytest.mark.parametrize("name", MODELS)
def test_models_under_the_names_they_are_served_by(name: str) -> None:
    found = CATALOGUE.model(name)
    assert found is not None
    assert found.name == MODELS[name]


@pytest.mark.parametrize("name", NO_GPU)
def test_a_gpu_in_doubt_has_no_row(name: str) -> None:
    assert CATALOGUE.gpu(name) is None
    assert CATALOGUE.gpu(None) is None


def test_slower_memory_of_the_same_product_is_another_row() -> None:
    sxm, pcie = CATALOGUE.gpu("NVIDIA A100-SXM4-80GB"), CATALOGUE.gpu("NVIDIA A100 80GB PCIe")
    assert sxm is not None
    assert pcie is not None
    assert [sxm.bandwidth_gbs, pcie.bandwidth_gbs] == [2039, 1935]
    nvl, h200 = CATALOGUE.gpu("NVIDIA H200 NVL"), CATALOGUE.gpu("NVIDIA H200")
    assert nvl is not None
    assert h200 is not None
    assert nvl.name != h200.name


@pytest.mark.parametrize(
    ("name", "expected"), [("NVIDIA H100 80GB HBM3", "295.22"), ("NVIDIA A100-SXM4-80GB", "153.02")]
)
def test_the_ridge_of_dense_bf16(name: str, expected: str) -> None:
    row = CATALOGUE.gpu(name)
    assert row is not None
    ridge = ridge_batch(row.tflops("bf16"), row.bandwidth_gbs, 16)
    assert ridge is not None
    assert f"{float(ridge):.2f}" == expected
    assert row.tflops("fp16") == row.tflops("bf16")


SPARSE: dict[str, dict[str, float]] = {
    "NVIDIA H100 80GB HBM3": {"bf16": 1979, "fp8": 3958, "int8": 3958, "tf32": 989, "fp64": 67},
    "NVIDIA H100 PCIe": {"bf16": 1513, "fp8": 3026, "int8": 3026, "tf32": 756, "fp64": 51},
    "NVIDIA H100 NVL": {"bf16": 1671, "fp8": 3341, "int8": 3341, "tf32": 835, "fp64": 60},
    "NVIDIA H200": {"bf16": 1979, "fp8": 3958, "int8": 3958, "tf32": 989, "fp64": 67},
    "NVIDIA H200 NVL": {"bf16": 1671, "fp8": 3341, "int8": 3341, "tf32": 835, "fp64": 60},
    "NVIDIA B200": {"bf16": 4500, "fp8": 9000, "int8": 9000, "fp4": 18000, "tf32": 2200, "fp64": 37},
    "NVIDIA A100-SXM4-80GB": {"bf16": 624, "int8": 1248, "tf32": 312, "fp64": 19.5},
    "NVIDIA A100 80GB PCIe": {"bf16": 624, "int8": 1248, "tf32": 312, "fp64": 19.5},
    "NVIDIA GeForce RTX 5090": {"bf16": 419, "fp8": 838, "int8": 1676, "fp4": 3352},
    "NVIDIA GeForce RTX 4090": {"bf16": 330.4, "fp8": 660.6, "int8": 1321.2},
}
"""TFLOP/s with sparsity as NVIDIA's data sheets and architecture papers print them; fp64 has no sparsity."""


@pytest.mark.parametrize("name", SPARSE)
def test_peaks_are_dense_half_of_what_data_sheets_print(name: str) -> None:
    row = CATALOGUE.gpu(name)
    assert row is not None
    for dtype, printed in SPARSE[name].items():
        dense = printed if dtype == "fp64" else printed / 2
        peak = row.tflops(dtype)
        assert peak is not None
        assert float(peak) == pytest.approx(dense, rel=0.002), dtype
    assert (row.tflops("fp8") is None) == name.startswith("NVIDIA A100")


@pytest.mark.parametrize(
    ("name", "experts", "per_token"),
    [
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 128, 1), ("Llama-4-Scout-17B-16E", 16, 1),
        ("Qwen/Qwen3-235B-A22B", 128, 8), ("Qwen/Qwen3-30B-A3B", 128, 8),
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", 8, 2), ("mistralai/Mixtral-8x7B-v0.1", 8, 2),
        ("deepseek-ai/DeepSeek-V3", 256, 8), ("moonshotai/Kimi-K2-Instruct", 384, 8),
    ],
)  # fmt: skip
def test_experts_of_mixtures_are_those_of_their_config(name: str, experts: int, per_token: int) -> None:
    """num_local_experts or n_routed_experts, and num_experts_per_tok, of each config.json."""
    row = CATALOGUE.model(name)
    assert row is not None
    assert (row.experts, row.experts_per_token) == (experts, per_token)


def test_fp8_keeps_the_ridge_where_the_peak_doubles_and_bits_halve() -> None:
    """The bf16 peak with 8-bit weights would halve it, and with it every seat target."""
    row = CATALOGUE.gpu("NVIDIA H100 80GB HBM3")
    assert row is not None
    right = ridge_batch(row.tflops("fp8"), row.bandwidth_gbs, 8)
    wrong = ridge_batch(row.tflops("bf16"), row.bandwidth_gbs, 8)
    assert right is not None
    assert wrong is not None
    assert (round(right, 1), round(wrong, 1)) == (Fraction(2954, 10), Fraction(1476, 10))


def test_every_row_has_a_source_and_a_date_and_finds_itself_alone() -> None:
    assert CATALOGUE.clashes() == []
    rows: list[GpuRow | ModelRow] = [*CATALOGUE.gpus, *CATALOGUE.models]
    for row in rows:
        assert row.source
        assert row.date.startswith("20")
        assert row.doubtful == row.note.startswith("doubtful"), row.name
    assert {p.currency for p in CATALOGUE.prices} == {"USD"}
    assert {p.date for p in CATALOGUE.prices} == {"2026-08-13"}


def test_a_row_without_words_never_matches() -> None:
    never = {m.name for m in CATALOGUE.models if not m.pattern.alternatives}
    assert never == {"DeepSeek 70B", "Qwen3 72B", "Qwen3 7B", "Phi 4 32B"}


def test_two_rows_that_explain_a_name_alike_are_a_doubt() -> None:
    row = CATALOGUE.gpus[0]
    twin = replace(row, name="twin")
    assert best([row], frozenset({"h100", "pcie"})) is row
    assert best([row, twin], frozenset({"h100", "pcie"})) is None
    assert Pattern.parse("", "a", gpu_words).matched(frozenset()) == 0


def test_quantised_names() -> None:
    assert names_quantisation("acme/Llama-3-8B-GPTQ-Int4")
    assert names_quantisation("Qwen3-32B-FP8")
    assert not names_quantisation("awq-labs/Llama-3-8B")


GPU_LINE = "Our GPU,Hopper,1000,100,,,,,,our+gpu,,our data sheet,2026-11-01,0,"
MODEL_LINE = "Our 5B,5000000000,,0,32,4096,8,128" + "," * 14 + "bf16,our+5b,,our card,2026-11,0,"


def overlay(folder: Path, *lines: str, header: tuple[str, ...] = GPU_COLUMNS, name: str = "ours.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([",".join(header), *lines]) + "\n", encoding="utf-8")
    return path


def test_an_overlay_comes_first_and_is_pinned(tmp_path: Path) -> None:
    better = (
        GPU_LINE.replace("Our GPU", "H100 SXM").replace("our+gpu", "h100+hbm3").replace(",,our data", ",80gb,our data")
    )
    gpus, models = (
        overlay(tmp_path, GPU_LINE, better),
        overlay(tmp_path, MODEL_LINE, header=MODEL_COLUMNS, name="m.csv"),
    )
    loaded = Catalogue.load([gpus, models])
    ours, h100, model = loaded.gpu("NVIDIA our GPU"), loaded.gpu("NVIDIA H100 80GB HBM3"), loaded.model("acme/our-5b")
    assert ours is not None
    assert h100 is not None
    assert model is not None
    assert [ours.bandwidth_gbs, h100.bandwidth_gbs, model.total_params] == [1000, 1000, 5 * 10**9]
    assert {provenance(ours), provenance(h100), provenance(model)} == {"assumed"}
    assert provenance(loaded.gpu("NVIDIA H200") or ours) == "estimated"
    assert [(o.kind, o.rows, o.sha256) for o in loaded.overlays] == [
        ("gpus", 2, hashlib.sha256(gpus.read_bytes()).hexdigest()),
        ("models", 1, hashlib.sha256(models.read_bytes()).hexdigest()),
    ]
    assert Catalogue.load() is CATALOGUE or Catalogue.load() == CATALOGUE


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (GPU_LINE.replace("1000", "-1000"), "line 2: bandwidth_gbs"),
        (GPU_LINE.replace("1000", "0"), "line 2: bandwidth_gbs is 0"),
        (GPU_LINE.replace("1000", ""), "line 2: bandwidth_gbs is empty"),
        (GPU_LINE.replace("1000", "NaN"), "line 2: bandwidth_gbs"),
        (GPU_LINE.replace("1000", "Infinity"), "line 2: bandwidth_gbs"),
        (GPU_LINE.replace("1000", "1e9"), "line 2: bandwidth_gbs"),
        (GPU_LINE.replace("1000", "１０００"), "line 2: bandwidth_gbs"),
        (GPU_LINE.replace("2026-11-01", "2026-13-01"), "line 2: date"),
        (GPU_LINE.replace("2026-11-01", "yesterday"), "line 2: date"),
        (GPU_LINE.replace("our data sheet", ""), "line 2: source is empty"),
        (GPU_LINE.replace(",0,", ",maybe,"), "line 2: doubtful"),
        (GPU_LINE.replace("our+gpu", "gpu"), "line 2: match is 'gpu'"),
        (GPU_LINE + ",extra", "line 2: 16 cells, expected 15"),
        ("a,b", "line 2: 2 cells"),
        ('"open', "line 2: not CSV"),
        (GPU_LINE.replace("Our", "O\x1bur"), "line 2: a control character"),
        (GPU_LINE.replace("Our", "O\u202eur"), "line 2: a control character"),
        (GPU_LINE.replace("Our", "O" * 500), "line 2: a cell of more than 400"),
        (GPU_LINE + "\n" + GPU_LINE, "line 3: 'Our GPU' stands in line 2 already"),
        ("\n\n" + GPU_LINE.replace("1000", "x"), "line 4: bandwidth_gbs"),
    ],
)
def test_a_wrong_line_of_an_overlay_is_refused_with_its_number(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(InputUnusable, match=says.replace("(", r"\(")):
        Catalogue.load([overlay(tmp_path, line)])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (MODEL_LINE.replace("5000000000", "5.5"), "total_params is '5.5', expected a whole number"),
        (MODEL_LINE.replace("5000000000", ""), "total_params is empty"),
        (MODEL_LINE.replace("5000000000,", "5000000000,6000000000", 1), "more than total_params"),
        ("Our 5B,5,,0,,,,,,,,,48,,,,,,,,,bf16,our+5b,,s,2026-11,0,", "linear_key_heads"),
        ("Our 5B,5,,0,,,,,,,,,,,,,,,,8,,bf16,our+5b,,s,2026-11,0,", "experts and experts_per_token"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(InputUnusable, match=says):
        Catalogue.load([overlay(tmp_path, line, header=MODEL_COLUMNS)])


def test_files_that_are_no_overlay(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for data, says in (
        (b"", "line 1"), (b"a,b\n1,2\n", "line 1"), (b"\xff\xfe\n", "line 1: not UTF-8"),
        (b"x" * (1 << 20) + b"y", "more than 1048576 bytes"),
        ((",".join(GPU_COLUMNS) + "\n" + "x\n" * 10_001).encode(), "more than 10000 rows"),
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(InputUnusable, match=says):
            Catalogue.load([path])
    with pytest.raises(InputUnusable, match="cannot be read"):
        Catalogue.load([tmp_path / "absent.csv"])
    with pytest.raises(InputUnusable, match="cannot be read"):
        Catalogue.load([tmp_path])


def test_a_clash_in_an_overlay_is_told(tmp_path: Path) -> None:
    loaded = Catalogue.load([overlay(tmp_path, GPU_LINE, GPU_LINE.replace("Our GPU", "Twin"))])
    assert any("'Twin'" in clash for clash in loaded.clashes())
