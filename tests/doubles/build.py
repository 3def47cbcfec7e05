"""Compile the doubles and the workload programs with gcc.

``build("cudart", folder)`` gives ``folder/libcudart.so.13``, a file of its own each time: probes are on files. ``nccl``
finds the runtime in its process, so a program that loads it must have loaded ``cudart`` before. ``ranks`` is linked to
both, which must be in the same folder.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent

# ICF would make two functions with the same body one, and a tail call has no frame; the frame pointer's push is a
# first instruction that the kernel emulates, as in NVIDIA's own libraries.
COMMON = (
    "-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fno-ipa-icf", "-fno-omit-frame-pointer",
    "-fno-optimize-sibling-calls", "-fcf-protection=none", "-pthread",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One thing to build: output name, sources below this folder, options."""

    output: str
    sources: tuple[str, ...]
    options: tuple[str, ...]


def _library(name: str, source: str, *options: str) -> Recipe:
    return Recipe(name, (source,), ("-shared", "-fPIC", f"-Wl,-soname,{name}", *options))


def _program(name: str, *options: str) -> Recipe:
    return Recipe(name, (f"workload/{name}.c",), ("-Wl,-rpath,$ORIGIN", *options, "-ldl"))


_NVML = "libnvidia-ml.so.1"
_NVML_SOURCES = tuple(f"nvml/{name}.c" for name in ("nvml", "lists", "watch", "script"))
WORKLOADS = (
    "calls", "crowd", "every_row", "ioctls", "planted", "reborn", "sleeper", "spin", "stacks", "transfers", "visitor",
    "waits",
)  # fmt: skip
"""Programs of workload/ that need no library when they start."""

RECIPES: dict[str, Recipe] = {
    "cudart": _library("libcudart.so.13", "cudart/cudart.c", f"-Wl,--version-script={HERE / 'cudart/cudart.map'}"),
    "driver": _library("libcuda.so.1", "cudart/driver.c"),
    "splits": _library("libnccl.so.2", "nccl/splits.c"),
    "values": _library("libcudart.so.12", "cudart/values.c"),
    "storm": _library("libcudart.so.10", "cudart/storm.c"),
    "inside": _library("libcudart.so.9", "cudart/inside.c"),
    "layered": _library("libcudart.so.11", "cudart/layered.c"),
    "nested": _library("libcudart.so.12", "cudart/nested.c"),
    "nccl": _library("libnccl.so.2", "nccl/nccl.c", "-lrt"),
    "nvml": Recipe(_NVML, _NVML_SOURCES, ("-shared", "-fPIC", f"-Wl,-soname,{_NVML}")),
    "python3.14": Recipe("python3.14", ("python/interpreter_3_14.c",), ("-rdynamic", "-ldl")),
    "stormy": _program("stormy", "-l:libcudart.so.10"),
    "ranks": _program("ranks", "-l:libnccl.so.2", "-l:libcudart.so.13"),
    **{name: _program(name) for name in WORKLOADS},
}


_COMPILED: dict[tuple[str, ...], bytes] = {}
"""What this process has compiled, by options and sources: most tests want the same few."""


def compiler() -> str | None:
    """Path of gcc, None where there is none."""
    return shutil.which("gcc")


def nvml_include() -> Path:
    """The folder of NVIDIA's own nvml.h, from the wheel nvidia-nvml-dev; it may not be copied into a source tree."""
    for file in metadata.files("nvidia-nvml-dev") or ():
        if file.name == "nvml.h":
            return Path(str(file.locate())).parent
    raise FileNotFoundError("nvidia-nvml-dev is installed and has no nvml.h")


def build(name: str, out_dir: Path, *, flags: Sequence[str] = (), **defines: str | int) -> Path:
    """Build one double or program into ``out_dir`` and return its path; CalledProcessError with gcc's words."""
    recipe = RECIPES[name]
    out = out_dir / recipe.output
    macros = [f"-D{key}={value}" for key, value in sorted(defines.items())]
    include = [f"-I{HERE / 'include'}", *(["-isystem", str(nvml_include())] if name == "nvml" else [])]
    command = ("gcc", *COMMON, *flags, *macros, *include, *(str(HERE / source) for source in recipe.sources))
    key = (*command, *recipe.options)
    compiled = _COMPILED.get(key)
    if compiled is None:
        link = ("-o", str(out), f"-L{out_dir}", *recipe.options)
        subprocess.run([*command, *link], check=True, capture_output=True, text=True)
        _COMPILED[key] = out.read_bytes()
    else:
        out.unlink(missing_ok=True)  # who has the old one mapped keeps it
        out.write_bytes(compiled)
        out.chmod(0o755)
    return out
