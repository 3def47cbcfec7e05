"""Compiling what is measured with: never on an audited host, only where the bench runs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gpuaudit.bundle.errors import HostUnfit

ROOT = Path(__file__).resolve().parents[1]
CLANG = "clang-16"
_WARNINGS = ("-Wall", "-Wextra", "-Werror")
_BPF_FLAGS = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86", *_WARNINGS, "-Wno-unused-parameter")


def bpf(source: str, folder: Path) -> Path:
    """Compile ``bench/bpf/<source>`` with the flags of scripts/build-bpf; the object file, in ``folder``."""
    target = folder / Path(source).with_suffix(".o").name
    include = ("-I", str(ROOT / "capture" / "bpf"))
    place = ("-c", str(ROOT / "bench" / "bpf" / source), "-o", str(target))
    _compile([CLANG, *_BPF_FLAGS, *include, *place], "clang-16 libbpf-dev")
    return target


def program(source: str, folder: Path) -> Path:
    """Compile ``bench/programs/<source>``, a C program; the executable, in ``folder``."""
    target = folder / Path(source).stem
    place = (str(ROOT / "bench" / "programs" / source), "-o", str(target))
    _compile(["gcc", "-O2", *_WARNINGS, *place, "-ldl"], "gcc libc6-dev")
    return target


def library(source: str, name: str, folder: Path) -> Path:
    """Compile ``bench/programs/<source>`` as the shared library ``name``; its functions begin with a push."""
    target = folder / name
    flags = ("-shared", "-fPIC", "-O1", "-fno-omit-frame-pointer", "-fcf-protection=none", f"-Wl,-soname,{name}")
    place = (str(ROOT / "bench" / "programs" / source), "-o", str(target))
    _compile(["gcc", *flags, *_WARNINGS, *place], "gcc libc6-dev")
    return target


def _compile(command: Sequence[str], packages: str) -> None:
    if shutil.which(command[0]) is None:
        raise HostUnfit(f"{command[0]} not found", hint=f"apt-get install {packages}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostUnfit(f"{command[0]} failed: {done.stderr.strip()[:400]}", hint=f"apt-get install {packages}")
