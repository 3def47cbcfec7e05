"""Compile the doubles and the workload programs with gcc.

``build("cudart", folder)`` gives ``folder/libcudart.so.13``. ``nccl`` finds the runtime in its process, so a program
that loads it must have loaded ``cudart`` before. ``ranks`` is linked to both, which must be in the same folder.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

# ICF would make two functions with the same body one; the frame pointer's push is a first instruction that the kernel
# emulates, as in NVIDIA's own libraries.
COMMON = (
    "-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fno-ipa-icf", "-fno-omit-frame-pointer",
    "-fcf-protection=none", "-pthread",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One thing to build: output name, source below this folder, options."""

    output: str
    source: str
    options: tuple[str, ...]


def _library(name: str, source: str, *options: str) -> Recipe:
    return Recipe(name, source, ("-shared", "-fPIC", f"-Wl,-soname,{name}", *options))


def _program(name: str, *options: str) -> Recipe:
    return Recipe(name, f"workload/{name}.c", ("-Wl,-rpath,$ORIGIN", *options, "-ldl"))


RECIPES: dict[str, Recipe] = {
    "cudart": _library("libcudart.so.13", "cudart/cudart.c", f"-Wl,--version-script={HERE / 'cudart/cudart.map'}"),
    "nested": _library("libcudart.so.12", "cudart/nested.c"),
    "nccl": _library("libnccl.so.2", "nccl/nccl.c", "-lrt"),
    "nvml": _library("libnvidia-ml.so.1", "nvml/nvml.c"),
    "ranks": _program("ranks", "-l:libnccl.so.2", "-l:libcudart.so.13"),
    **{name: _program(name) for name in ("calls", "sleeper", "spin")},
}


def compiler() -> str | None:
    """Path of gcc, None where there is none."""
    return shutil.which("gcc")


def build(name: str, out_dir: Path, *, flags: Sequence[str] = (), **defines: str | int) -> Path:
    """Build one double or program into ``out_dir`` and return its path; CalledProcessError with gcc's words."""
    recipe = RECIPES[name]
    out = out_dir / recipe.output
    macros = [f"-D{key}={value}" for key, value in sorted(defines.items())]
    command = ["gcc", *COMMON, *flags, *macros, f"-I{HERE / 'include'}", str(HERE / recipe.source)]
    link = ["-o", str(out), f"-L{out_dir}", *recipe.options]
    subprocess.run([*command, *link], check=True, capture_output=True, text=True)
    return out
