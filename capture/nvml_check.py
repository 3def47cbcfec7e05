"""What NVML can be asked here, found out by asking: fields, GPM, events, MIG and accounting, one line each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from gpuaudit.capture.nvml_devices import Gpu, list_mig
from gpuaudit.capture.nvml_events import NAMES, EventReader
from gpuaudit.capture.nvml_facts import GPU_FACTS, fact
from gpuaudit.capture.nvml_gpm import METRICS, GpmReader
from gpuaudit.capture.nvml_health import read_health
from gpuaudit.capture.nvml_read import NOT_AVAILABLE, NOT_SUPPORTED
from gpuaudit.capture.nvml_samples import read_sample
from gpuaudit.capture.nvml_source import within
from gpuaudit.capture.nvml_worker import Unreadable

DEADLINE_S = 10.0
"""For each line, all GPUs together: a GPU that fell off the bus can hang a call for minutes."""

_GPM_PAUSE_S = 0.1
"""Between the two samples of a try; nvml.h asks for samples that are not taken at the same moment."""

_MODES = {"0": "off (nvidia-smi -am 1 switches it on)", "1": "on"}


@dataclass(frozen=True)
class Line:
    """One thing that was tried. Not supported by the hardware is an answer, and ok; refused or late is not."""

    name: str
    ok: bool
    detail: str


def try_everything(gpus: Sequence[Gpu]) -> list[Line]:
    """A line for each kind of reading; never raises for what NVML refuses."""
    tries: dict[str, Callable[[Sequence[Gpu]], Line]] = {
        "NVML fields": _fields, "NVML events": _events, "NVML GPM": _gpm, "NVML MIG": _mig,
        "NVML accounting": _accounting,
    }  # fmt: skip
    late = f"did not answer within {DEADLINE_S:.0f} s"
    return [
        within(DEADLINE_S, partial(_line, name, attempt, gpus)) or Line(name, False, late)
        for name, attempt in tries.items()
    ]


def _line(name: str, attempt: Callable[[Sequence[Gpu]], Line], gpus: Sequence[Gpu]) -> Line:
    """What a try says; a defect of the binding is not told as lateness."""
    try:
        return attempt(gpus)
    except Exception as e:
        return Line(name, False, f"could not be tried: {type(e).__name__}: {e}")


def _fields(gpus: Sequence[Gpu]) -> Line:
    """Of samples and health: how many have a value, which do not."""
    ok, told = True, []
    for gpu in gpus:
        sample = read_sample(gpu)
        health, refused = read_health(gpu)
        without = dict(f.split("=") for f in [*filter(None, str(sample["unavailable"]).split(",")), *refused])
        values = len(sample) + len(health) - 5  # without index and UUID, twice, and the list of what is missing
        unsupported = sorted(f for f, code in without.items() if int(code) in (NOT_SUPPORTED, NOT_AVAILABLE))
        others = sorted(f"{f} (code {code})" for f, code in without.items() if f not in unsupported)
        ok = ok and not others
        parts = [f"GPU {gpu.index}: {values} values"]
        parts += [f"not supported or not available: {', '.join(unsupported)}"] if unsupported else []
        parts += [f"refused: {', '.join(others)}"] if others else []
        told.append("; ".join(parts))
    return Line("NVML fields", ok, " | ".join(told))


def _events(gpus: Sequence[Gpu]) -> Line:
    reader = EventReader(gpus)
    with contextlib.suppress(Unreadable):
        reader()
    if reader.notes:
        return Line("NVML events", False, "; ".join(reason for reason, _, _ in reader.notes))
    parts = []
    for gpu in gpus:
        mask = fact(partial(GPU_FACTS["event_types"], gpu.handle)).get("value", 0)
        names = [name for bit, name in NAMES.items() if int(str(mask)) & bit]
        parts.append(f"GPU {gpu.index}: {', '.join(names) if names else 'not supported'}")
    return Line("NVML events", True, " | ".join(parts))


def _gpm(gpus: Sequence[Gpu]) -> Line:
    """Two samples of each GPU, and the metrics between them."""
    ok, told = True, []
    for gpu in gpus:
        reader = GpmReader(gpu)
        try:
            reader()
            time.sleep(_GPM_PAUSE_S)
            rows = reader()["gpm_samples"]
        except Unreadable as e:
            ok = ok and not str(e)
            told.append(str(e) or f"GPU {gpu.index}: not supported, it needs Hopper or a later architecture")
            continue
        refused = {f for row in rows for f in str(row["unavailable"]).split(",") if f}
        lacking = sorted(f for f in refused if not f.endswith(f"={NOT_SUPPORTED}"))
        ok = ok and not lacking
        metrics = min((sum(name in row for name, _ in METRICS) for row in rows), default=0)
        told.append(f"GPU {gpu.index}: {metrics} of {len(METRICS)} metrics" + "".join(f", {f}" for f in lacking))
    return Line("NVML GPM", ok, " | ".join(told))


def _mig(gpus: Sequence[Gpu]) -> Line:
    ok, told = True, []
    for gpu in gpus:
        devices, code = list_mig(gpu)
        ok = ok and not code
        told.append(f"GPU {gpu.index}: " + (f"refused with code {code}" if code else f"{len(devices)} devices"))
    return Line("NVML MIG", ok, " | ".join(told))


def _accounting(gpus: Sequence[Gpu]) -> Line:
    told = []
    for gpu in gpus:
        mode = fact(partial(GPU_FACTS["accounting_mode"], gpu.handle))
        words = _MODES.get(str(mode.get("value")), "not supported")
        told.append(f"GPU {gpu.index}: {words if 'error' not in mode else 'refused with code ' + str(mode['error'])}")
    return Line("NVML accounting", True, " | ".join(told))
