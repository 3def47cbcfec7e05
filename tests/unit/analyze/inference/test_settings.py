"""Which of several sources of a setting counts."""

from __future__ import annotations

from gpuaudit.analyze.inference.settings import Told, resolve
from tests.engine_scene import EngineScene

ORDER = (
    "/v1/models", "/server_info", "metric label", "command line", "given at import", "environment", "config.json",
    "safetensors index",
)  # fmt: skip


def test_every_source_beats_those_after_it() -> None:
    for i, better in enumerate(ORDER):
        for worse in ORDER[i + 1 :]:
            told = [Told("max_model_len", "4096", worse), Told("max_model_len", "8192", better)]
            for given in (told, told[::-1]):
                found = resolve(given)["max_model_len"]
                assert (found.value, found.source) == ("8192", better)
                assert found.others == ((worse, "4096"),)


def test_auto_yields_to_whoever_knows() -> None:
    found = resolve([Told("dtype", "auto", "/server_info"), Told("dtype", "bfloat16", "config.json")])["dtype"]
    assert (found.value, found.source) == ("bfloat16", "config.json")
    assert resolve([Told("dtype", "auto", "/server_info")])["dtype"].value == "auto"


def test_agreeing_sources_are_no_contradiction() -> None:
    told = [Told("dtype", "bfloat16", "/server_info"), Told("dtype", "bfloat16", "command line")]
    assert resolve(told)["dtype"].others == ()


def test_the_last_word_of_a_source_counts() -> None:
    scene = EngineScene().setting("max_num_seqs", "64", "command line").setting("max_num_seqs", "32", "command line", 1)
    scene.scrape(0, {"vllm:num_requests_running": 1}).scrape(1, {"vllm:num_requests_running": 1})
    assert scene.run().max_num_seqs == 32


def test_the_gauge_of_seats_is_a_setting() -> None:
    values = {"vllm:num_requests_running": 1, "vllm:max_num_seqs": 48}
    run = EngineScene().scrape(0, values).scrape(1, values).setting("max_num_seqs", "64", "command line").run()
    assert run.max_num_seqs == 48
    assert run.config["max_num_seqs"].source == "metric"
    assert run.config["max_num_seqs"].others == (("command line", "64"),)


def test_labels_count_where_the_recorder_did_not_write_them_out() -> None:
    labels = 'block_size="16",cache_dtype="fp8",num_gpu_blocks="None",model_name="m",_block_size_resolved="True"'
    values = {"vllm:num_requests_running": 1, f"vllm:cache_config_info{{{labels}}}": 1}
    run = EngineScene().scrape(0, values).scrape(1, values).run()
    assert {k: v.value for k, v in run.config.items()} == {"block_size": "16", "kv_cache_dtype": "fp8", "model": "m"}
    assert {v.source for v in run.config.values()} == {"metric label"}


def test_what_is_no_number_or_switch_is_none() -> None:
    scene = EngineScene().scrape(0, {"vllm:num_requests_running": 1}).scrape(1, {"vllm:num_requests_running": 1})
    for key, value in (("a", "None"), ("b", "1e9999"), ("c", "0.9"), ("d", "yes"), ("e", "maybe"), ("f", "1/3")):
        scene.setting(key, value, "command line")
    run = scene.run()
    assert [run.number(k) for k in "abf"] == [None, None, None]
    assert run.number("c") is not None
    assert (run.switch("d"), run.switch("e"), run.switch("absent")) == (True, None, None)
