"""Models and ceilings of made-up servers: who says what, what follows from it, and why a part is not known."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Quantity, Section
from gpuaudit.analyze.sections.models import evaluate
from tests.engine_scene import EngineScene
from tests.scenes import T0, S, Scene
from tests.unit.analyze.sections.test_economics import CEILING, RIDGE, RUNNING, context, scene

MIXTRAL = {
    "model_type": "mixtral", "vocab_size": "32000", "hidden_size": "4096", "num_hidden_layers": "32",
    "num_attention_heads": "32", "num_key_value_heads": "8", "intermediate_size": "14336", "num_local_experts": "8",
    "num_experts_per_tok": "2", "torch_dtype": "bfloat16",
}  # fmt: skip


@cache
def plain() -> tuple[Section, Context]:
    made = context(scene())
    return evaluate(made), made


def mixture() -> Section:
    made = scene(model="acme/our-mixture")
    for key, value in MIXTRAL.items():
        made.setting(key, value, "config.json")
    return evaluate(context(made))


def figures(section: Section, table: str) -> dict[str, Quantity]:
    found = next(t for t in section.tables if t.id == table)
    return {str(label): q for label, q, _ in found.rows if isinstance(q, Quantity)}


def sources(section: Section, table: str) -> dict[str, str]:
    found = next(t for t in section.tables if t.id == table)
    return {str(label): str(by) for label, _, by in found.rows}


def test_the_catalogue_last_and_labelled() -> None:
    told, by = figures(plain()[0], "model_0"), sources(plain()[0], "model_0")
    assert (told["parameters"].value, told["parameters"].provenance) == (8 * 10**9, "estimated")
    assert by["parameters"] == "catalogue, Llama 3 8B (2026-08)"
    assert told["bits of a weight"].provenance == "estimated"
    assert by["bits of a weight"] == "bf16 (catalogue, Llama 3 8B)"


def test_the_config_first() -> None:
    section = mixture()
    told, by = figures(section, "model_0"), sources(section, "model_0")
    assert (told["parameters"].value, told["parameters"].provenance) == (46_702_792_704, "derived")
    assert (told["parameters a token uses"].value, told["experts of a layer"].value) == (12_879_925_248, 8)
    assert by["parameters"] == "counted from config.json"
    assert (told["bits of a weight"].value, told["bits of a weight"].provenance) == (16, "measured")


def test_ceilings_are_the_formulas() -> None:
    told = figures(plain()[0], "ceilings_0")
    assert told["decode ceiling of one sequence"].value == CEILING
    assert told["measured rates at that ceiling, from"].value == CEILING * Fraction(85, 100)
    assert told["ridge"].value == RIDGE
    assert told["time per token at the ceiling"].value == 10**9 / CEILING
    read = 16 * 10**9 + RUNNING * 200 * 131_072
    assert told["KV-aware decode ceiling of the batch"].value == Fraction(RUNNING * 3350 * 10**9, read)
    work = 2 * 8 * 10**9 * 100 + 2 * 4096 * 32 * 100**2
    assert told["prefill ceiling"].value == Fraction(989 * 10**12, work)
    assert {q.provenance for q in told.values()} == {"estimated"}


def test_a_mixture_reads_the_experts_that_its_batch_touches() -> None:
    told = figures(mixture(), "ceilings_0")
    touched = Fraction(round((8 * (1 - Fraction(6, 8) ** 10)) * 10**6), 10**6)
    assert told["experts touched by the batch"].value == touched
    one = Fraction(46_702_792_704 - 12_879_925_248, 6)
    read = 2 * (12_879_925_248 + (touched - 2) * one) + RUNNING * 200 * 131_072
    assert told["KV-aware decode ceiling of the batch"].value == RUNNING * 3350 * 10**9 / read


def test_memory_and_seats() -> None:
    told, by = figures(plain()[0], "room_0"), sources(plain()[0], "room_0")
    vram = 80 << 30
    room = vram * Fraction(9, 10) - 3 * 10**9 - 16 * 10**9
    assert (told["VRAM of one GPU"].value, told["VRAM of one GPU"].provenance) == (vram, "measured")
    assert told["room for the KV cache"].value == room
    assert told["KV cache of a sequence of max_model_len"].value == 8192 * 131_072
    assert told["full-length sequences in the room"].value == int(room) // (8192 * 131_072)
    assert by["share that the engine may take"] == "vLLM's default"
    assert told["GPUs that the weights need"].value == 1
    assert told["sequences by what the traffic used"].value is None


def test_blocks_that_the_server_tells() -> None:
    made = scene()
    for key, value in (("num_gpu_blocks", "2560"), ("block_size", "16"), ("kv_cache_max_concurrency", "5.0")):
        made.setting(key, value, "metric label")
    told = figures(evaluate(context(made)), "room_0")
    assert told["full-length sequences, as the server tells"].value == 5
    assert told["full-length sequences in its blocks"].value == 5
    assert told["sequences at the size of the requests"].value == 5 * 8192 // 300
    assert told["sequences if max_model_len were that size"].value == Fraction(2560, 19)


def test_every_number_has_its_rows_and_every_absence_its_reason() -> None:
    section, made = plain()
    for name in ("model_0", "ceilings_0", "room_0"):
        for label, q in figures(section, name).items():
            assert q.evidence, label
            assert (q.value is None) == bool(q.reason), label
    ids = {e.id for e in made.book.entries()}
    assert {i for t in section.tables for r in t.rows for c in r if isinstance(c, Quantity) for i in c.evidence} <= ids


def test_sources_that_disagree_are_noted() -> None:
    made = scene(model="meta-llama/Llama-3.1-70B")
    for key, value in {**MIXTRAL, "model_type": "mistral"}.items():
        made.setting(key, value, "config.json")
    notes = next(t for t in evaluate(context(made)).tables if t.id == "model_0").notes
    assert len(notes) == 1
    assert notes[0].startswith("Sources disagree: parameters: 7241732096 (counted from config.json), 70000000000")


def test_what_nobody_knows_says_why() -> None:
    section = evaluate(context(scene(model="acme/unheard")))
    assert [s.text for s in section.statements] == ["The ceilings of engine {engine} are not known: {reason}."]
    told = figures(section, "model_0")
    assert told["parameters"].value is None
    assert "acme/unheard" in told["parameters"].reason
    assert "ceilings_0" not in {t.id for t in section.tables}


def test_more_gpus_than_were_seen_is_said() -> None:
    made = scene().setting("tensor_parallel_size", "4", "command line", at_s=1)
    section = evaluate(context(made))
    assert any("more GPUs than were observed" in s.text for s in section.statements)
    assert figures(section, "ceilings_0")["decode ceiling of one sequence"].value == 4 * CEILING


def test_without_engines_there_is_nothing() -> None:
    none = Scene().clock().process(7).samples(T0, T0 + S, pids=[7]).context()
    assert evaluate(none).reason == "no inference engine was found"
    silent = EngineScene().fail(1)
    assert evaluate(silent.context()).reason == "no engine answered"
