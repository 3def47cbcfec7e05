"""Tables of what inference engines tell of themselves. Conventions: ``bundle/tables.py``.

A scrape has hundreds of series and few of them change: ``engine_series`` names each series once, ``engine_samples``
has a row where a value differs from the scrape before. The value of a series at a successful scrape is that of its
last row not later than the scrape; a null value says that the series was no longer there. Where a scrape's ``full`` is
1, every series it had has a row.
"""

from __future__ import annotations

from gpuaudit.bundle.table import DURATION, START, Table, col

_ENGINE = col("engine", "u32", "", "number of the engine in this bundle, from 0")

ENGINES = Table("engines", "Inference servers that were found or named, and whether they were scraped.", (
    START, DURATION, _ENGINE,
    col("op", "text", "", "vllm, sglang, tgi, triton, llama_cpp, or unknown"),
    col("url", "text", "", "http://HOST:PORT/path of the metrics, or unix:PATH"),
    col("pid", "u32", "", "process that listens; null where not known", nullable=True),
    col("found_by", "text", "", "listening socket of a traced process, --engine, or the file it was imported from"),
    col("remote", "u8", "", "1: neither loopback nor a Unix socket, named with --allow-remote"),
    col("state", "text", "", "scraped, refused, or not an engine"),
    col("reason", "text", "", "why not scraped, where not", nullable=True),
))  # fmt: skip

ENGINE_CONFIG = Table("engine_config", "What an engine is set to, each value with its source.", (
    START, _ENGINE,
    col("op", "text", "", "key: model, dtype, quantization, kv_cache_dtype, max_model_len, max_num_seqs, …"),
    col("value", "text", "", "value as found"),
    col("source", "text", "", "/v1/models, /server_info, metric label, command line, environment, config.json, "
           "safetensors index"),
    col("detail", "text", "", "where in the source: the flag, variable, label or path; empty if plain",
           nullable=True),
))  # fmt: skip

ENGINE_SCRAPES = Table("engine_scrapes", "One row per poll of an engine's metrics, successful or not.", (
    col("start_ns", "u64", "ns", "when the request began, CLOCK_BOOTTIME"),
    col("duration_ns", "u64", "ns", "until the whole answer was read, or given up"),
    _ENGINE,
    col("op", "text", "", "ok, timeout, refused, failed, or malformed"),
    col("http_status", "u16", "", "status of the answer", nullable=True),
    col("size_bytes", "u64", "bytes", "size of the answer's body", nullable=True),
    col("series", "u32", "", "series in the answer that are recorded", nullable=True),
    col("skipped", "u32", "", "series in the answer that are not recorded", nullable=True),
    col("full", "u8", "", "1: every series of the answer has a row in engine_samples"),
    col("reset", "u8", "", "1: the server was restarted since the scrape before"),
    col("reason", "text", "", "what went wrong, where something did, or how the reset was found", nullable=True),
))  # fmt: skip

ENGINE_SERIES = Table("engine_series", "Series of metrics, each named once when first seen.", (
    col("start_ns", "u64", "ns", "start of the scrape that had it first, CLOCK_BOOTTIME"), _ENGINE,
    col("series", "u32", "", "number of the series in this bundle, from 0"),
    col("op", "text", "", "gauge, counter, histogram_bucket, histogram_sum, histogram_count, summary or untyped"),
    col("metric", "text", "", "name of the sample as exported (vllm:request_success_total)"),
    col("engine_index", "text", "", "label engine: index of the data-parallel engine", nullable=True),
    col("labels", "text", "", "other labels but le, as canonical JSON"),
    col("le", "f64", "", "upper edge of a histogram bucket (+Inf as infinity)", nullable=True),
))  # fmt: skip

ENGINE_SAMPLES = Table("engine_samples", "Values of series where they changed.", (
    col("start_ns", "u64", "ns", "start_ns of the scrape", ), _ENGINE,
    col("series", "u32", "", "number of the series"),
    col("value", "f64", "", "value as exported; null: the series was no longer there", nullable=True),
))  # fmt: skip
