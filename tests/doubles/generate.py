"""Writes a double of a library, from its header: every function of the probe table, and a call of each of them.

A function does nothing but change what non-constant pointers lead to, run :c:`double_inner` if it is set, and return
:c:`double_code`. ``double_run`` calls each of them with values of its own in every argument, on the stack too, in
structures by value and behind pointers, and writes down as C expressions what it passed and what came back.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpuaudit.capture.probe_types import From, Mode, Probe
from tests.doubles.build import COMMON, HERE
from tests.doubles.interfaces import Interface
from tests.doubles.prototypes import Header, Parameter, Type, bare

IDENTITY = "ncclUniqueId"
RESULTS = {
    "__cuda": "cudaError_t", "cuda": "cudaError_t", "cu": "CUresult", "nccl": "ncclResult_t", "hip": "hipError_t",
}  # fmt: skip
"""What functions return, by the beginning of their names."""


def build_doubles(interfaces: Sequence[Interface], folder: Path) -> list[Path]:
    """Compile the doubles of these libraries; a row that several of them share is in the first one's."""
    taken: set[int] = set()
    built = []
    for interface in interfaces:
        probes = [p for p in interface.probes if p.op in interface.header.prototypes and id(p) not in taken]
        taken |= {id(p) for p in probes}
        built.append(_build(interface, probes, folder))
    return built


def build_caller(interface: Interface, probes: Sequence[Probe], folder: Path) -> Path:
    """Compile what calls these functions of the real library, which must be loaded for everybody before it."""
    return _compile(interface, write(interface, probes, real=True), folder / f"call-{interface.file}")


def _build(interface: Interface, probes: Sequence[Probe], folder: Path) -> Path:
    return _compile(interface, write(interface, probes), folder / interface.file)


def _compile(interface: Interface, text: str, out: Path) -> Path:
    source = out.with_name(f"{out.name}.c")
    source.write_text(text, "utf-8")
    flags = [f for f in COMMON if not f.startswith(("-O", "-W"))]
    # -O0: compiled in a second, and every function begins with push and calls without tail calls
    command = ["gcc", *flags, "-O0", "-g0", "-w", "-shared", "-fPIC", "-Wl,-Bsymbolic", f"-I{HERE / 'workload'}"]
    command += [*interface.header.options, f"-Wl,-soname,{out.name}", "-o", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return out


def write(interface: Interface, probes: Sequence[Probe], *, real: bool = False) -> str:
    """The C source of a double with the functions of these rows; ``real``: of the calls alone, each once."""
    header = interface.header
    parts = [f'{header.text}#include "every_row.h"\n']
    for number, probe in enumerate(probes):
        parts += [*([] if real else _function(header, probe)), *_call(header, probe, number)]
    parts.append("void double_run(FILE *out)\n{\n\ttruth = out;")
    for number, probe in enumerate(probes):
        parts += [f"\tcall_{number}({r});" for r in (("SUCCESS",) if real else _rounds(interface, probe))]
    parts.append("}\n")
    return "\n".join(parts)


def _rounds(interface: Interface, probe: Probe) -> Iterator[str]:
    yield from ("SUCCESS", "FAILURE")
    if any(place.mode is Mode.UNLESS for _, place in probe.slots):
        yield "NO_ARRAYS"
    if any(place.source in (From.POINTEE, From.DEREFERENCE) for _, place in probe.slots):
        yield "NULL_POINTERS"
    if interface.library.name == "cudart":
        yield "NESTED"


def _object(header: Header, parameter: Parameter) -> Type | None:
    """What a pointer leads to, where the double has an object for it; other pointers are addresses of nothing."""
    type_ = header.types.get(parameter.pointee)
    if type_ is None or not (type_.members or parameter.pointee == IDENTITY or (not type_.record and type_.size <= 8)):
        return None
    return type_


def _constant(parameter: Parameter) -> bool:
    return "const" in parameter.type.split()


def _without_const(text: str) -> str:
    return re.sub(r"\bconst\b", "", text).strip()


def _function(header: Header, probe: Probe) -> Iterator[str]:
    parameters = header.prototypes[probe.op]
    for name in probe.names[1:]:
        if name.startswith("_Z"):
            yield f'extern __typeof__({probe.op}) {probe.op} __asm__("{name}");'
    result = next(name for prefix, name in RESULTS.items() if probe.op.startswith(prefix))
    yield f"{result} {probe.op}({', '.join(f'{p.type} {p.name}' for p in parameters) or 'void'})\n{{"
    for p in parameters:
        type_ = _object(header, p)
        if type_ is None or _constant(p):
            continue
        places = [f"{p.name}->{m}" for m in type_.members] or [f"*{p.name}"]
        yield f"\tif ({p.name}) {{" + " ".join(f"CHANGE({place});" for place in places) + " }"
    yield "\tif (double_inner)\n\t\tdouble_inner();\n\treturn double_code;\n}"
    for name in probe.names[1:]:
        if not name.startswith("_Z"):
            yield f'extern __typeof__({probe.op}) {name} __attribute__((alias("{probe.op}")));'


def _call(header: Header, probe: Probe, number: int) -> Iterator[str]:
    """``call_N``: the arguments, the call, and what is told of it."""
    parameters = header.prototypes[probe.op]
    yield f"static void call_{number}(enum round round)\n{{"
    before: list[str] = []
    after: list[str] = []
    arguments: list[str] = []
    for i, p in enumerate(parameters):
        type_ = _object(header, p)
        if type_ is None:
            lines, told = _value(header, p, number, i)
            arguments.append(f"a{i}")
        else:
            spelt = _without_const(p.type.rstrip()[:-1])
            lines, told = _filled(f"o{i}", type_, spelt, number, i, pointer=p.name)
            arguments.append(f"round == NULL_POINTERS ? 0 : &o{i}")
            after += [line.replace('");', ' at return");').replace('",', ' at return",') for line in told]
        yield from lines
        before += [f"\tif (round != NULL_POINTERS) {line}" if type_ else f"\t{line}" for line in told]
    yield f'\tbegin("{probe.op}", round, {number});'
    yield from before
    yield f"\tuint64_t before_ns = boottime_ns();\n\tint code = (int){probe.op}({', '.join(arguments)});"
    yield "\tcalled(before_ns, code);"
    yield from (f"\tif (round != NULL_POINTERS) {line}" for line in after)
    yield "\tend();\n}"


def _value(header: Header, p: Parameter, number: int, i: int) -> tuple[list[str], list[str]]:
    """An argument that is passed as it is."""
    type_ = header.types[bare(p.type)]
    spelt = _without_const(p.type)
    if type_.record:
        return _filled(f"a{i}", type_, spelt, number, i, name=p.name)
    value = f"V({number}, {i}, 0)" if bare(p.type) != "ncclDataType_t" else f"({number} % 12)"
    return [f"\t{spelt} a{i} = ({spelt})(uintptr_t){value};"], [f'TELL("{p.name}", a{i});']


def _filled(
    variable: str, type_: Type, spelt: str, number: int, i: int, *, name: str = "", pointer: str = ""
) -> tuple[list[str], list[str]]:
    """A structure by value (``name``), or what a ``pointer`` leads to."""
    lines = [f"\t{spelt} {variable};", f"\tfill(&{variable}, sizeof({variable}), V({number}, {i}, 15));"]
    told: list[str] = []
    for m, member in enumerate(type_.members):
        none = " * (round != NO_ARRAYS)" if member.endswith("Array") else ""
        lines.append(
            f"\t{variable}.{member} = (__typeof__({variable}.{member}))(uintptr_t)(V({number}, {i}, {m}){none});"
        )
        told.append(
            f'TELL("{name}.{member}", {variable}.{member});'
            if name
            else f'TELL("{pointer}->{member}", {variable}.{member});'
        )
    if type_.members:
        return lines, told
    if type_.size == 128:
        return lines, [f'TELL_ID("fold of {name or "*" + pointer}", &{variable});']
    if pointer:
        lines.append(f"\t{variable} = (__typeof__({variable}))(uintptr_t)V({number}, {i}, 0);")
        return lines, [f'TELL("*{pointer}", {variable});']
    return lines, []
