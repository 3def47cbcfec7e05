"""Prototypes as the real headers have them, and where the System V ABI puts each argument, with the compiler's word for
the size and kind of every type.

A place of the probe table is told back as the C expression that lies there: ``count``, ``extent.width``,
``*devPtr at return``, ``p->extent.width``.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from gpuaudit.capture.probe_types import From, Place

GCC = ("gcc", "-std=gnu11", "-w", "-x", "c")

MEMBERS: dict[str, str] = {
    "dim3": "x y z",
    "cudaExtent": "width height depth",
    "hipExtent": "width height depth",
    "cudaPitchedPtr": "ptr pitch xsize ysize",
    "hipPitchedPtr": "ptr pitch xsize ysize",
    "cudaMemLocation": "type id",
    "CUmemLocation": "type id",
    "cudaMemcpy3DParms": "srcArray srcPtr.ptr dstArray dstPtr.ptr extent.width extent.height extent.depth kind",
    "hipMemcpy3DParms": "srcArray srcPtr.ptr dstArray dstPtr.ptr extent.width extent.height extent.depth kind",
    "cudaMemcpy3DPeerParms": "srcArray srcPtr.ptr srcDevice dstArray dstPtr.ptr dstDevice extent.width extent.height "
    "extent.depth",
    "cudaLaunchConfig_t": "gridDim.x gridDim.y gridDim.z blockDim.x blockDim.y blockDim.z dynamicSmemBytes stream",
    "cudaMemPoolProps": "location.type location.id",
    "CUmemPoolProps": "location.type location.id",
    "hipMemPoolProps": "location.type location.id",
    "CUmemAllocationProp": "location.type location.id",
    "CUmulticastObjectProp": "numDevices size",
    "cudaGraphInstantiateParams": "flags uploadStream",
    "CUDA_GRAPH_INSTANTIATE_PARAMS": "flags hUploadStream",
    "cudaExternalMemoryBufferDesc": "offset size flags",
    "CUDA_EXTERNAL_MEMORY_BUFFER_DESC": "offset size flags",
    "hipExternalMemoryBufferDesc": "offset size flags",
    "CUDA_MEMCPY2D": "WidthInBytes Height",
    "hip_Memcpy2D": "WidthInBytes Height",
    "CUDA_MEMCPY3D": "WidthInBytes Height Depth",
    "CUDA_MEMCPY3D_PEER": "WidthInBytes Height Depth srcContext dstContext",
    "CUlaunchConfig": "gridDimX gridDimY gridDimZ blockDimX blockDimY blockDimZ sharedMemBytes hStream",
}
"""Members of structures that rows look into, or that are passed by value; their offsets are the compiler's."""

RECORD_CLASSES = (12, 13)
"""record_type_class and union_type_class of gcc (__builtin_classify_type)."""


@dataclass(frozen=True)
class Parameter:
    """One parameter. ``type`` as written, with its ``const``."""

    type: str
    name: str

    @property
    def pointee(self) -> str:
        """What the parameter is a pointer to; empty where its type is no written-out pointer."""
        return bare(self.type.rstrip()[:-1]) if self.type.rstrip().endswith("*") else ""


@dataclass(frozen=True)
class Type:
    """What the compiler says of a type."""

    record: bool
    size: int
    members: dict[str, tuple[int, int]]
    """Offset and size of the members in :data:`MEMBERS`."""


@dataclass(frozen=True)
class Expression:
    """What lies in a place: C text, and its size in bytes."""

    text: str
    size: int


def bare(text: str) -> str:
    """A type without what makes no difference to a call."""
    return re.sub(r"\s+", " ", re.sub(r"\b(const|struct|enum)\b", "", text)).replace(" *", "*").strip()


class Header:
    """The functions of one header that are asked for. ``text``: what a C file has to say to have them."""

    def __init__(self, text: str, includes: Sequence[Path], names: Iterable[str]) -> None:
        self.text = text
        self.options = [f"-I{path}" for path in includes]
        self._names = set(names)

    @cached_property
    def prototypes(self) -> dict[str, tuple[Parameter, ...]]:
        """Parameters of every function that the header declares."""
        source = subprocess.run(
            [*GCC, "-E", "-P", *self.options, "-"], input=self.text, capture_output=True, text=True, check=True
        ).stdout
        source = re.sub(r"__attribute__\s*\(\(.*?\)\)", "", source)
        found = {}
        for name, inside in re.findall(r"\b(\w+)\s*\(([^(){};]*)\)\s*;", source):
            if name in self._names:
                found[name] = tuple(_parameters(inside))
        return found

    @cached_property
    def types(self) -> dict[str, Type]:
        """Every type of a parameter, and of what a parameter points to, that is complete."""
        parameters = [p for function in self.prototypes.values() for p in function]
        wanted = sorted(({bare(p.type) for p in parameters} | {p.pointee for p in parameters}) - {"", "void", "char"})
        lines = [_describe(name, self._spelt(name, parameters)) for name in wanted]
        program = f"#include <stddef.h>\n#include <stdio.h>\n{self.text}\n"
        head = program.count("\n")
        whole = program + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
        errors = subprocess.run(
            [*GCC, "-fsyntax-only", *self.options, "-"], input=whole, capture_output=True, text=True, check=False
        ).stderr
        bad = {int(n) - head - 2 for n in re.findall(r"^<stdin>:(\d+):\d+: error", errors, re.MULTILINE)}
        kept = [line for i, line in enumerate(lines) if i not in bad]
        told = _run(program + "int main(void) {\n" + "\n".join(kept) + "\nreturn 0; }\n", self.options)
        return dict(_types(told))

    @staticmethod
    def _spelt(name: str, parameters: Iterable[Parameter]) -> str:
        """The type as the header writes it: with ``struct`` or ``enum`` where it needs that."""
        base = name.rstrip("* ")
        for p in parameters:
            keyword = re.search(rf"\b(struct|enum)\s+{re.escape(base)}\b", p.type)
            if keyword:
                return f"{keyword[1]} {name}"
        return name

    def expressions(self, function: str) -> dict[tuple[From, int, int], Expression]:
        """What lies in each register and stack place of a call: (source, index, shift in bits)."""
        found: dict[tuple[From, int, int], Expression] = {}
        registers, stack = 0, 0
        for p in self.prototypes[function]:
            type_ = self.types[bare(p.type)]
            words = -(-type_.size // 8)
            if words <= (2 if type_.record else 1) and registers + words <= 6:
                first, registers, source = registers, registers + words, From.REGISTER
            else:
                first, stack, source = stack, stack + words, From.STACK
            found[source, first, 0] = Expression(p.name, type_.size)
            for member, (offset, size) in type_.members.items():
                found[source, first + offset // 8, 8 * (offset % 8)] = Expression(f"{p.name}.{member}", size)
        return found

    def expression(self, function: str, place: Place) -> Expression:
        """What a place holds; KeyError where nothing begins there."""
        if place.source is From.CONSTANT:
            return Expression(str(place.index), place.bytes or 8)
        source = From.STACK if place.source in (From.STACK, From.STACK_ID) else From.REGISTER
        found = self.expressions(function)[source, place.index, place.shift_bits]
        if place.source is From.STACK_ID:
            return Expression(f"fold of {found.text}", found.size)
        if place.source in (From.REGISTER, From.STACK):
            return found
        (parameter,) = [p for p in self.prototypes[function] if p.name == found.text]
        return self._pointed(parameter, place)

    def _pointed(self, parameter: Parameter, place: Place) -> Expression:
        at_return = " at return" if place.source in (From.POINTEE, From.POINTEE_ID) else ""
        if at_return and re.match(r"const\b.*[^*\s]\s*\*$", parameter.type):
            raise KeyError(f"{parameter.name} is const: nothing comes back through it")
        type_ = self.types[parameter.pointee]
        if place.source in (From.POINTER_ID, From.POINTEE_ID):
            return Expression(f"fold of *{parameter.name}{at_return}", type_.size)
        for member, (offset, size) in type_.members.items():
            if offset == place.offset:
                return Expression(f"{parameter.name}->{member}{at_return}", size)
        if place.offset:
            raise KeyError(f"{parameter.pointee} has no member at {place.offset}")
        return Expression(f"*{parameter.name}{at_return}", type_.size)


def _parameters(inside: str) -> Iterable[Parameter]:
    for part in inside.split(","):
        match = re.fullmatch(r"\s*(.*?[\s*])(\w+)\s*(\[\])?\s*", part, re.DOTALL)
        if match:
            yield Parameter(re.sub(r"\s+", " ", match[1]).strip() + (" *" if match[3] else ""), match[2])


def _describe(name: str, spelt: str) -> str:
    members = "".join(
        f'printf(" {m} %zu %zu", offsetof({spelt}, {m}), sizeof((({spelt} *)0)->{m}));'
        for m in MEMBERS.get(name, "").split()
    )
    size = f'printf("{name}\\t%d %zu", __builtin_classify_type(*({spelt} *)0), sizeof({spelt}));'
    return f'{size}{members}puts("");'


def _run(program: str, options: Sequence[str]) -> str:
    with TemporaryDirectory() as folder:
        binary = Path(folder) / "types"
        subprocess.run(
            [*GCC, *options, "-o", str(binary), "-"], input=program, capture_output=True, text=True, check=True
        )
        return subprocess.run([str(binary)], capture_output=True, text=True, check=True).stdout


def _types(told: str) -> Iterable[tuple[str, Type]]:
    for line in told.splitlines():
        name, rest = line.split("\t")
        kind, size, *members = rest.split()
        triples = zip(members[::3], members[1::3], members[2::3], strict=True)
        yield name, Type(int(kind) in RECORD_CLASSES, int(size), {m: (int(o), int(s)) for m, o, s in triples})
