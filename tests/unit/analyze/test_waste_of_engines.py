"""Time in which an inference engine had no request: of its own processes, and never of others on the same GPU."""

from __future__ import annotations

from fractions import Fraction

from gpuaudit.analyze.ledger import ledger
from gpuaudit.analyze.waste import waste
from tests.engine_scene import EngineScene, gpu_rows, holder_row, process_row

END_S = 40
IDLE_S = 20


def served(*, others: bool = False, pid: int | None = 7, second: bool = False) -> EngineScene:
    """40 s of an engine that had nothing to do for the first 20, on a GPU in which no kernel ran.

    ``others``: process 50, of which nothing is known, holds the GPU too. ``second``: so does engine 1, never idle.
    """
    scene = EngineScene(pid=pid)
    engines = [(scene, IDLE_S)] + ([(EngineScene(1, 9, sink=scene.sink), -1)] if second else [])
    for made, idle in engines:
        for i in range(2 * END_S + 1):
            made.scrape(Fraction(i, 2), {
                "vllm:num_requests_running": 0 if i <= 2 * idle else 1, "vllm:num_requests_waiting": 0,
                "vllm:generation_tokens_total": 0 if i <= 2 * idle else i,
            })  # fmt: skip
    values = {"gpu_utilization_percent": 0}
    scene.rows("nvml_samples", gpu_rows("GPU-a", 0, [(t / 4, values) for t in range(4 * END_S)]))
    scene.rows("processes", [process_row(7, 1), process_row(8, 7), process_row(9, 1), process_row(50, 1)])
    holders = [8, *([50] if others else []), *([9] if second else [])]
    return scene.rows("nvml_processes", [holder_row(p, "GPU-a", t / 4) for t in range(4 * END_S) for p in holders])


def seconds(scene: EngineScene) -> dict[str, int]:
    return {e.key: round(e.amount.expected / 10**9) for e in ledger(scene.context())}


def test_an_engine_without_requests_is_starved() -> None:
    scene = served()
    found = seconds(scene)
    assert found == {"starved": IDLE_S, "idle_allocated": END_S - IDLE_S}
    (row,) = (r for r in waste(scene.context())["rows"] if r["key"] == "starved")
    assert row["pid"] == 8, "the process that the engine started, which holds the GPU"


def test_another_process_on_the_gpu_is_not_the_engines() -> None:
    assert "starved" not in seconds(served(others=True))
    assert "starved" not in seconds(served(second=True)), "the other engine had requests"


def test_an_engine_whose_process_is_not_known_starves_nobody() -> None:
    """All GPUs of the host are taken as a lone engine's: that the processes on them are its is not known."""
    assert "starved" not in seconds(served(pid=None))
