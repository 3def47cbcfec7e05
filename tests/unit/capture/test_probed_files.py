"""Which functions of a file are probed, and what is said of those that the linker made one."""

from __future__ import annotations

from gpuaudit.capture.probed_files import ProbedFile, _chosen, _one_for_several
from gpuaudit.capture.probes import CUDART
from gpuaudit.capture.symbols import Function, Symbols


def names(symbols: dict[str, int]) -> tuple[list[str], str | None]:
    """(operations that are probed, note) of a file with these functions at these places."""
    file = ProbedFile(CUDART, "/x/libcudart.so.13")
    found = Symbols(None, {name: Function(name, at, "push", at) for name, at in symbols.items()})
    chosen = list(_chosen(file, found))
    return [probe.op for probe, _ in chosen], _one_for_several(file, found, chosen)


def test_functions_of_one_place_are_told_of() -> None:
    ops, note = names({"cudaMalloc": 16, "cudaMallocHost": 16, "cudaFree": 32})
    assert sorted(ops) == ["cudaFree", "cudaMalloc"]
    assert note == "functions that are one in this file are recorded under one name: cudaMallocHost as cudaMalloc"


def test_functions_of_their_own_need_no_note() -> None:
    assert names({"cudaMalloc": 16, "cudaMallocHost": 24, "cudaFree": 32})[1] is None
