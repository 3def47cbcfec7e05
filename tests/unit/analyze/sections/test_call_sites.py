"""Call sites: which line of the program the time of an operation came from, with its share and its stack."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from gpuaudit.analyze.explain import explain_item
from gpuaudit.analyze.finding import Quantity, Section, SectionTable
from gpuaudit.analyze.sections.call_sites import evaluate
from gpuaudit.analyze.words import filled
from tests.scenes import MS, T0, US, S, Scene

FORWARD, LOAD, NATIVE, UNNAMED = 11, 12, 21, 22


def frame(s: Scene, stack: int, depth: int, kind: str, **more: Any) -> None:
    s.add("stack_frames", **{"start_ns": T0, "pid": 7, "tid": 7, "stack": stack, "kind": kind, "depth": depth, **more})


def scene() -> Scene:
    """48 ms and 2 ms of cudaMalloc in forward(), 10 ms in load(), 40 ms without a stack; a sampled fast copy."""
    s = Scene().clock().process(7)
    for depth, (path, line, name) in enumerate(
        [("/home/me/train.py", 142, "Model.forward"), ("/home/me/train.py", 201, "main")]
    ):
        frame(s, FORWARD, depth, "python", path=path, line=line, symbol=name)
    frame(s, LOAD, 0, "python", path="/home/me/load.py", line=9, symbol="load")
    frame(s, NATIVE, 0, "native", path="/opt/lib/libtorch_cuda.so", symbol="CUDACachingAllocator::malloc", offset=4660)
    frame(s, NATIVE, 1, "native", path="/opt/lib/libc10.so", offset=255, reason="the file has no symbols")
    for at, took, python, native in (
        (1, 48 * MS, FORWARD, NATIVE), (2, 2 * MS, FORWARD, NATIVE), (3, 10 * MS, LOAD, None), (4, 40 * MS, None, None)
    ):  # fmt: skip
        s.cuda(7, "cudaMalloc", T0 + at * S, took, python_stack=python, native_stack=native)
    at = T0 + 5 * S
    s.cuda(7, "cudaMemcpy", at, 20 * US, native_stack=UNNAMED)
    s.cuda(7, "cuMemcpyHtoD_v2", at + US, 10 * US, native_stack=UNNAMED, parent_ns=at, parent_op="cudaMemcpy")
    return s


def table(section: Section, name: str) -> SectionTable:
    return next(t for t in section.tables if t.id == name)


def values(row: tuple[Any, ...]) -> list[Any]:
    return [c.value if isinstance(c, Quantity) else c for c in row]


def test_sites_by_time_with_their_share_of_the_operation() -> None:
    context = scene().context()
    section = evaluate(context)
    assert section.state == "evaluated"
    first, second, third = (values(r) for r in table(section, "sites").rows)
    forward, native = "/home/me/train.py:142 in Model.forward()", "CUDACachingAllocator::malloc (libtorch_cuda.so)"
    assert first == ["cudaMalloc", forward, native, 1, 2, 50 * MS, 48 * MS, Fraction(1, 2)]
    assert second[:3] == ["cudaMalloc", "/home/me/load.py:9 in load()", None]
    assert (second[5], second[7]) == (10 * MS, Fraction(1, 10))
    assert third[:2] == ["cudaMemcpy", "no frame of its stack could be named"]
    assert third[4] == 1, "the call inside it is linked to it, and is no site of its own"
    assert "1 of 4 calls of 1 ms and more have no stack" in table(section, "sites").notes[0]


def test_every_number_names_the_calls_it_is_of() -> None:
    context = scene().context()
    rows = table(evaluate(context), "sites").rows
    entries = {e.id: e for e in context.book.entries()}
    for row, calls in zip(rows, (2, 1, 1), strict=True):
        cells = [c for c in row if isinstance(c, Quantity)]
        assert all(c.evidence and c.formula for c in cells)
        assert {entries[i].rows for c in cells for i in c.evidence} == {calls}


def test_it_says_how_long_where() -> None:
    section = evaluate(scene().context())
    first = section.statements[0]
    assert filled(first.text, first.values) == (
        "cudaMalloc 50.0 ms in 2 calls, the longest 48.0 ms … /home/me/train.py:142 in Model.forward()"
    )


def test_the_stack_of_the_longest_call_is_written_out() -> None:
    section = evaluate(scene().context())
    first = values(table(section, "stacks").rows[0])
    assert first[2] == "/home/me/train.py:142 in Model.forward() ← /home/me/train.py:201 in main()"
    assert first[3] == "CUDACachingAllocator::malloc (libtorch_cuda.so) ← libc10.so+0xff"
    told = explain_item(scene().document(), "call_sites", 120)
    assert "train.py:142 in Model.forward() ← /home/me/train.py:201 in main()" in " ".join(told.split())
    assert "In 1 stacks a native frame could not be named: the file has no symbols." in section.notes


def test_without_frames_it_is_not_evaluated_and_says_why() -> None:
    s = Scene().clock().process(7)
    s.cuda(7, "cudaMalloc", T0 + S, 2 * MS)
    section = evaluate(s.context())
    assert (section.state, section.reason) == (
        "not evaluated", "no stack was taken of any call; 1 calls took 1 ms or more"
    )  # fmt: skip


def test_findings_say_where_their_calls_were_made() -> None:
    s = Scene().clock().process(7)
    frame(s, LOAD, 0, "python", path="/home/me/load.py", line=9, symbol="load")
    for i in range(40):
        s.cuda(7, "cudaMemcpy", T0 + S + i * 50 * MS, 40 * MS, size_bytes=1 << 20, direction=1, python_stack=LOAD)
    (finding,) = [f for f in s.document().findings if f.rule == "synchronous_copies"]
    assert finding.values["sites"] == "cudaMemcpy 1.60 s in 40 calls at /home/me/load.py:9 in load()"
    for row in s.rows["cuda_calls"]:
        del row["python_stack"]
    (finding,) = [f for f in s.document().findings if f.rule == "synchronous_copies"]
    assert finding.values["sites"] == "not recorded (no stack was taken of them)"
