"""Steady traffic of a made-up vLLM server on one H100, for the rules on engines: 12 s of it, one poll per second.

Rates are per second and exact, so that what a rule says of them can be computed by hand. Settings and gauges are given
per scene; what is not given is not exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpuaudit.analyze.context import Context
from tests.engine_scene import EngineScene, gpu_rows, histogram, holder_row, process_row

H100 = "NVIDIA H100 80GB HBM3"
VRAM_BYTES = 85_899_345_920
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
PID = 7


class Served(EngineScene):
    """A scene whose leaf 0 names the GPU."""

    gpu: str | None = H100

    def context(self, **open_body: Any) -> Context:
        """The scene as evidence, on its GPU."""
        gpus = [] if self.gpu is None else [{"index": 0, "uuid": "GPU-0", "name": self.gpu, "driver": "570.1"}]
        return super().context(gpus=gpus, **open_body)


@dataclass
class Traffic:
    """Gauges and rates of one server; None is not exported.

    ``ttft`` and ``tpot`` are seconds, all alike; ``prompt`` and ``generated`` tokens per finished request; ``hits`` the
    share of queried prompt tokens that the prefix cache had.
    """

    running: float | None = 8
    waiting: float | None = 0
    kv: float | None = 0.3
    requests: int | None = 4
    prompt: int = 500
    generated: int = 100
    hits: float | None = None
    preemptions: int | None = 0
    ttft: float | None = 0.2
    tpot: float | None = 0.02
    settings: Mapping[str, str] = field(default_factory=dict)
    model: str | None = MODEL
    gpu: str | None = H100
    memory_used: int = VRAM_BYTES * 9 // 10
    seconds: int = 12
    url_port: int = 8000

    def scene(self) -> Served:
        """The evidence."""
        scene = Served()
        scene.gpu = self.gpu
        if self.model is not None:
            scene.setting("model", self.model, "/v1/models")
        for key, value in self.settings.items():
            scene.setting(key, value, "command line")
        if self.gpu is not None:
            scene.rows("processes", [process_row(PID, None)])
            told = {"gpu_utilization_percent": 90, "memory_used_bytes": self.memory_used,
                    "memory_total_bytes": VRAM_BYTES, "power_mw": 400_000}  # fmt: skip
            scene.rows("nvml_samples", gpu_rows("GPU-0", 0, [(t, told) for t in range(self.seconds + 1)]))
            scene.rows("nvml_processes", [holder_row(PID, "GPU-0", t) for t in range(self.seconds + 1)])
        for t in range(self.seconds + 1):
            scene.scrape(t, self.at(t))
        return scene

    def at(self, t: int) -> dict[str, float]:
        """What the server exports ``t`` seconds after its start."""
        gauges = {"num_requests_running": self.running, "num_requests_waiting": self.waiting,
                  "kv_cache_usage_perc": self.kv}  # fmt: skip
        out: dict[str, float] = {f"vllm:{k}": v for k, v in gauges.items() if v is not None}
        if self.preemptions is not None:
            out["vllm:num_preemptions_total"] = self.preemptions * t
        if self.requests is None:
            return out
        done = self.requests * t
        out['vllm:request_success_total{finished_reason="stop"}'] = done
        out["vllm:prompt_tokens_total"] = done * self.prompt
        out["vllm:generation_tokens_total"] = done * self.generated
        if self.hits is not None:
            out["vllm:prefix_cache_queries_total"] = done * self.prompt
            out["vllm:prefix_cache_hits_total"] = round(done * self.prompt * self.hits)
        for name, size in (("prompt", self.prompt), ("generation", self.generated)):
            out |= histogram(f"vllm:request_{name}_tokens", done * size, done, {str(size): done, "1000000": done})
        for name, each in (("time_to_first_token", self.ttft), ("request_time_per_output_token", self.tpot)):
            if each is not None:
                out |= histogram(f"vllm:{name}_seconds", done * each, done, {str(each): done, "1000.0": done})
        return out
