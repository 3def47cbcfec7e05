"""Economics of a made-up server on one H100: every figure recomputed by hand, absent ones with their reason."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path

from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Quantity, Section
from gpuaudit.analyze.inference.model import GIVEN
from gpuaudit.analyze.prices import PriceBook, PriceFile
from gpuaudit.analyze.sections.economics import evaluate
from tests import recorded_engines
from tests.engine_scene import START_NS, EngineScene, gpu_rows, histogram, holder_row
from tests.recorded_engines import Sink

UUID = "GPU-5a1d0c3e-0000-4000-8000-000000000000"
H100 = "NVIDIA H100 80GB HBM3"
TPS, RUNNING, POWER_MW = 1000, 10, 500_000
CEILING = Fraction(3350 * 10**9 * 8, 8 * 10**9 * 16)
RIDGE = Fraction(989 * 10**12 * 16, 3350 * 10**9 * 16)
GPUS = [{"index": 0, "uuid": UUID, "name": H100, "driver": "580"}]


def scene(
    *, completed_per_s: int = 5, tps: int = TPS, power: int | None = POWER_MW, model: str = "meta-llama/Llama-3.1-8B",
    gpu: bool = True, engine: int = 0, sink: Sink | None = None, settings: str = "command line",
) -> EngineScene:  # fmt: skip
    """A minute of polls at 2 Hz, 1,000 tokens/s at ten running requests, 500 W."""
    made = EngineScene(engine, sink=sink).setting("model", model, "/v1/models")
    made.setting("tensor_parallel_size", "1", settings).setting("max_num_seqs", "40", settings)
    made.setting("max_model_len", "8192", "/v1/models")
    for i in range(121):
        at = Fraction(i, 2)
        done = i * completed_per_s // 2
        made.scrape(at, {
            "vllm:num_requests_running": RUNNING, "vllm:num_requests_waiting": 0,
            "vllm:generation_tokens_total": i * tps // 2, "vllm:prompt_tokens_total": i * 250,
            'vllm:request_success_total{finished_reason="stop"}': done,
            **histogram("vllm:request_prompt_tokens", 100.0 * done, done, {"100": done}),
            **histogram("vllm:request_generation_tokens", 200.0 * done, done, {"200": done}),
        })  # fmt: skip
    if gpu:
        values = {
            "power_mw": power, "gpu_utilization_percent": 90, "memory_utilization_percent": 50,
            "memory_used_bytes": 70 << 30, "memory_total_bytes": 80 << 30,
        }  # fmt: skip
        polls = [(i / 4, values) for i in range(241)]
        made.rows("nvml_samples", gpu_rows(UUID, 0, polls)).rows("nvml_processes", [holder_row(7, UUID)])
    return made


def context(made: EngineScene, *, rate: str | None = None, prices: Path | None = None) -> Context:
    out = made.context(gpus=GPUS)
    listed = PriceFile.load(prices, "USD") if prices else None
    out.prices = PriceBook.make(Catalogue.load(), Decimal(rate) if rate else None, listed, "USD")
    return out


def figures(section: Section) -> dict[str, Quantity]:
    assert len(section.tables) == 1
    out = {}
    for label, quantity, _ in section.tables[0].rows:
        assert isinstance(label, str)
        assert isinstance(quantity, Quantity)
        out[label] = quantity
    return out


@cache
def plain() -> tuple[Section, Context]:
    made = context(scene())
    return evaluate(made), made


def test_energy_is_watts_and_tokens_of_the_same_windows() -> None:
    told = figures(plain()[0])
    assert told["power of its GPUs"].value == POWER_MW
    assert told["generated tokens per second"].value == TPS
    assert told["tokens per joule (tokens/s per W)"].value == 2
    assert told["energy per token"].value == 500
    assert told["energy per token"].unit == "mJ/token"


def test_money_from_the_catalogue_is_labelled_and_exact() -> None:
    section = plain()[0]
    told = figures(section)
    price = Fraction(299, 100)
    assert (told["price of its GPUs"].value, told["price of its GPUs"].provenance) == (price, "estimated")
    assert told["a million output tokens"].value == price * 10**6 / (TPS * 3600)
    assert told["a million output tokens"].unit == "USD/Mtoken"
    assert any("catalogue price of 2026-08-13 (est)" in note for note in section.tables[0].notes)
    label = [s.values["label"] for s in section.statements if "label" in s.values]
    assert label == ["catalogue price of 2026-08-13 (est)"]


def test_shares_have_their_own_denominators() -> None:
    told = figures(plain()[0])
    batch = Fraction(TPS) / (CEILING * RUNNING)
    assert told["batch-relative efficiency"].value == batch
    assert told["decode MFU"].value == TPS / (CEILING * RIDGE)
    assert told["of the seats' ceiling"].value == TPS / (CEILING * 40)
    read = 16 * 10**9 + RUNNING * (100 + 200 // 2) * 131_072
    assert told["of the KV-aware ceiling"].value == Fraction(TPS * read, RUNNING * 3350 * 10**9)
    assert told["recoverable"].value == Fraction(299, 100) * (Fraction(8, 10) - batch)
    assert told["recoverable"].provenance == "assumed"
    assert "0.80" in told["recoverable"].formula
    (meaning,) = (text for term, text in plain()[0].definitions if term == "recoverable")
    assert "80 % of its ceiling is an assumption" in meaning


def test_every_number_has_its_rows() -> None:
    section, made = plain()
    ids = {e.id for e in made.book.entries()}
    quantities = [*figures(section).values(), *(v for s in section.statements for v in s.values.values())]
    for q in (q for q in quantities if isinstance(q, Quantity)):
        assert q.provenance == "assumed" or set(q.evidence) <= ids
        assert q.provenance == "assumed" or q.evidence


def test_a_rate_is_the_users_and_says_so() -> None:
    section = evaluate(context(scene(), rate="2"))
    told = figures(section)
    assert (told["price of its GPUs"].value, told["price of its GPUs"].provenance) == (2, "assumed")
    assert "(est)" not in " ".join(n for n in section.tables[0].notes if n.startswith("Price"))


def test_no_money_before_the_requests_turned_over() -> None:
    told = figures(evaluate(context(scene(completed_per_s=0))))
    assert told["a million output tokens"].value is None
    assert "filling up or draining" in told["a million output tokens"].reason
    assert told["energy per token"].value == 500, "energy needs no turnover"


def test_power_that_was_not_told_is_not_zero() -> None:
    told = figures(evaluate(context(scene(power=None))))
    for label in ("power of its GPUs", "energy per token", "tokens per joule (tokens/s per W)"):
        assert told[label].value is None
        assert told[label].reason


def test_an_engine_faster_than_its_ceiling_has_no_efficiency_and_recovers_nothing() -> None:
    told = figures(evaluate(context(scene(tps=4000))))
    for label in ("batch-relative efficiency", "decode MFU", "recoverable"):
        assert told[label].value is None
        assert "speculative" in told[label].reason
    assert told["a million output tokens"].value is not None


def test_a_model_that_nobody_knows_has_energy_and_money_and_no_share() -> None:
    told = figures(evaluate(context(scene(model="acme/unheard"))))
    assert told["batch-relative efficiency"].value is None
    assert "acme/unheard" in told["batch-relative efficiency"].reason
    assert told["recoverable"].value is None
    assert told["a million output tokens"].value is not None


def test_a_price_file_that_does_not_list_the_gpu_leaves_it_without_a_price(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text("gpu,price_per_hour,currency,date,source\nH200,3,USD,2026-11-01,list\n", encoding="utf-8")
    told = figures(evaluate(context(scene(), prices=path)))
    assert told["price of its GPUs"].value is None
    assert told["price of its GPUs"].reason == f"prices.csv lists no price of {H100}"


def test_nothing_to_compute_with_is_not_evaluated() -> None:
    section = evaluate(context(scene(gpu=False)))
    assert section.state == "not evaluated"
    assert "no GPU was sampled" in section.reason
    rated = evaluate(context(scene(gpu=False), rate="2"))
    assert rated.state == "evaluated", "a rate and a recorded degree say what it costs"
    assert figures(rated)["price of its GPUs"].value == 2
    idle = recorded_engines.context(recorded_engines.store("idle"))
    assert evaluate(idle).state == "not evaluated"
    assert evaluate(idle).reason == "no inference engine had an active window"


def test_the_recorded_degree_is_paid_for_where_fewer_gpus_were_seen() -> None:
    made = scene().setting("tensor_parallel_size", "4", "command line", at_s=1)
    section = evaluate(context(made, rate="2"))
    assert figures(section)["GPUs paid for"].value == 4
    assert figures(section)["price of its GPUs"].value == 8
    assert any("were observed" in n for n in section.tables[0].notes)


def test_engines_on_one_gpu_do_not_each_take_all_of_it() -> None:
    """Two engines would have paid for the GPU twice, and each token would have taken all of its power."""
    made = scene()
    scene(engine=1, gpu=False, sink=made.sink)
    section = evaluate(context(made, rate="2"))
    for number, table in enumerate(section.tables):
        told = {str(label): q for label, q, _ in table.rows if isinstance(q, Quantity)}
        for label in ("energy per token", "price of its GPUs", "a million output tokens", "recoverable"):
            assert told[label].value is None
            assert f"engine {1 - number} ran on the same GPU" in told[label].reason
        assert told["decode MFU"].value is not None
    assert section.statements == ()


def test_an_engine_on_a_mig_device_has_no_ceiling_of_the_whole_gpu() -> None:
    made = scene()
    device = {**holder_row(7, UUID), "gpu_instance": 3, "compute_instance": 0}
    made.rows("nvml_processes", [device | {"start_ns": START_NS + 1}])
    section = evaluate(context(made, rate="2"))
    assert section.state == "not evaluated"
    assert section.reason.count("MIG mode") == 3, "energy, money and ceilings"


def host_of_two(degree: str) -> Section:
    """A lone engine whose process nobody knows, on a host with two GPUs."""
    made = scene(gpu=False).setting("tensor_parallel_size", degree, "command line", at_s=1)
    values = {"power_mw": POWER_MW, "memory_used_bytes": 70 << 30, "memory_total_bytes": 80 << 30}
    for i, uuid in enumerate((UUID, "GPU-other")):
        made.rows("nvml_samples", gpu_rows(uuid, i, [(t / 4, values) for t in range(241)]))
    return evaluate(context(made, rate="2"))


def test_gpus_of_the_host_that_an_engine_may_not_use_are_not_its_own() -> None:
    told = figures(host_of_two("1"))
    assert told["energy per token"].value is None
    assert told["energy per token"].reason.startswith("it was set to 1 of the host's 2 GPUs")
    assert (told["GPUs paid for"].value, told["price of its GPUs"].value) == (1, 2)
    both = figures(host_of_two("2"))
    assert both["energy per token"].value == 2 * POWER_MW / TPS
    assert (both["GPUs paid for"].value, both["price of its GPUs"].value) == (2, 4)


def test_what_a_person_said_at_the_import_is_assumed_in_all_that_follows() -> None:
    """Seats and a degree that no recording tells make no estimate of the catalogue's, but an assumption."""
    by_recording, by_person = (figures(evaluate(context(scene(settings=source)))) for source in ("command line", GIVEN))
    assert by_recording["of the seats' ceiling"].provenance == "estimated"
    assert by_recording["GPUs paid for"].provenance == "derived"
    for label in ("of the seats' ceiling", "decode MFU", "batch-relative efficiency", "GPUs paid for"):
        assert by_person[label].provenance == "assumed", label
        assert by_person[label].value == by_recording[label].value
