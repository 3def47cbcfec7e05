"""Lines of code of a chain: where the slow calls were made, and what the culprit's threads called meanwhile."""

from __future__ import annotations

from typing import Any

from gpuaudit.analyze.finding import Chain
from tests.rule_scenes.slow import AT, launches, off
from tests.scenes import MS, T0, Scene

WOKEN: dict[str, Any] = {
    "op": "blocked", "prev_state": 1, "syscall": 202, "next_pid": 0, "next_tid": 0, "next_comm": "swapper/1",
    "runqueue_ns": 0, "waker_pid": 7, "waker_tid": 9, "waker_comm": "loader",
}  # fmt: skip


def frame(scene: Scene, stack: int, path: str, line: int | None, symbol: str, *, kind: str = "python") -> None:
    scene.add(
        "stack_frames", start_ns=T0, pid=7, tid=7, stack=stack, kind=kind, depth=0, path=path, line=line, symbol=symbol
    )


def only(scene: Scene) -> Chain:
    (chain,) = scene.context().causal.chains
    return chain


def waiting() -> Scene:
    """The slow launch comes from train.py:142; thread 9, which it waited for, copies from data.py:10 meanwhile."""
    scene = off(launches(), AT, 30 * MS, **WOKEN)
    scene.rows["cuda_calls"][-1]["python_stack"] = 1
    frame(scene, 1, "/app/train.py", 142, "forward")
    scene.cuda(7, "cudaMemcpy", AT + MS, 20 * MS, tid=9, python_stack=2)
    frame(scene, 2, "/app/data.py", 10, "Loader.next")
    return scene


def test_of_the_effect_and_of_the_thread_that_was_waited_for() -> None:
    assert only(waiting()).code == (
        "cudaLaunchKernel from /app/train.py:142 in forward()",
        "loader (thread 9 of its own process): cudaMemcpy from /app/data.py:10 in Loader.next()",
    )


def test_a_call_of_the_other_thread_at_another_time_is_not_told() -> None:
    scene = waiting()
    scene.rows["cuda_calls"][-1]["start_ns"] = AT + 31 * MS
    assert only(scene).code == ("cudaLaunchKernel from /app/train.py:142 in forward()",)


def test_the_native_frame_where_no_python_ran_and_the_culprit_of_a_preemption() -> None:
    scene = off(launches(), AT, 30 * MS, next_pid=8, next_tid=81, next_comm="tokenizer")
    scene.process(8, "tokenizer")
    scene.cuda(8, "cudaMemcpy", AT + MS, 5 * MS, tid=81, native_stack=3)
    frame(scene, 3, "/usr/lib/libtok.so", None, "encode", kind="native")
    assert only(scene).code == ("tokenizer (8): cudaMemcpy from encode (libtok.so)",)


def test_without_stacks_there_are_no_lines() -> None:
    assert only(off(launches(), AT, 30 * MS, **WOKEN)).code == ()
