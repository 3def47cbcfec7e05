"""Rule: NVLinks that are down beside others that are up, that went down, or whose error counters grew.

From ``nvml_links``. A GPU none of whose links is up has no NVLink connection, which is how many boards are meant to be,
and no finding. Counters are compared from the first to the last reading; one that falls began anew. Unit of the impact:
count of links or of errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import coverage, intervals
from gpuaudit.analyze.context import Context, NotEvaluated, Outcome
from gpuaudit.analyze.drafts import about_gpu, derived
from gpuaudit.analyze.finding import Declaration, Finding, Fix, Quantity, Severity, Threshold
from gpuaudit.analyze.gpu_time import UNKNOWN
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.nvml_values import Array, Device, devices, growth, last_told, refusal, series

RECOVERIES = Threshold(
    "recovery_growth", 1, "count",
    "chosen: a recovery trains the link anew, which stops its traffic; in a sound link there is none", least=1,
)  # fmt: skip
REPLAYS = Threshold(
    "replay_growth", 1, "count",
    "chosen: a replay repeats a packet at no other harm; told as a notice, so that a row of them is seen", least=1,
)  # fmt: skip
CRC = Threshold(
    "crc_growth", 100, "count",
    "chosen: single CRC errors (NVLink 5: packets with errors) are part of a link's bit error rate and are repaired; a "
    "hundred in a capture are told",
    least=1,
)  # fmt: skip

DECLARATION = Declaration(
    id="nvlink",
    kind="rule",
    title="NVLink down, uneven or with errors",
    question="Was an NVLink down beside others that were up, did one go down, and did its error counters grow?",
    inputs=(
        ("nvml_links", ("start_ns", "gpu_uuid", "link", "active", "crc_flit_errors", "crc_data_errors",
                        "replay_errors", "recovery_errors", "receive_errors", "link_recoveries")),
    ),
    thresholds=(RECOVERIES, REPLAYS, CRC, coverage.JUDGED),
    texts={
        "went_down": "NVLinks of GPU {gpu} that went down within the capture: {links} ({which}).",
        "inactive": "NVLinks of GPU {gpu} that are down while others of it are up: {links} of {told} ({which}).",
        "uneven": "NVLinks that are up on GPU {gpu}: {active}; on another GPU of this host: {most}.",
        "errors": "NVLink errors of GPU {gpu} grew within the capture ({which}): recoveries {recoveries}, replays "
        "{replays}, CRC errors {crc}, packets with errors {packets}.",
    },
    never_claims="That a link was meant to be there, which end of it is at fault, or what its errors cost.",
    assumptions=(
        "GPUs of one host that have NVLinks are meant to have equally many.",
        "A counter below its reading before began anew: the driver was loaded again in between.",
    ),
)  # fmt: skip

CRC_ERRORS = ("crc_flit_errors", "crc_data_errors")
RECOVERY_ERRORS = ("recovery_errors", "link_recoveries")
ERRORS = (*CRC_ERRORS, "replay_errors", *RECOVERY_ERRORS, "receive_errors")
"""Counters of a link: one of version 5 on has ``link_recoveries`` and ``receive_errors``, one before the others."""

SOURCE = "NVIDIA, XID Errors, XID 74: reset the GPUs of the link or reboot; if it comes again, ask the vendor's support"


@dataclass(frozen=True)
class _Gpu:
    """Links of one GPU by number: whether each is up at its readings, and its counters."""

    device: Device
    links: dict[int, dict[str, Array]]

    def up(self) -> list[int]:
        """Links up at their last reading."""
        return [n for n, a in self.links.items() if last_told(a["active"])]

    def down(self) -> list[int]:
        """Links down at their last reading."""
        return [n for n, a in self.links.items() if last_told(a["active"]) == 0]

    def went_down(self) -> list[int]:
        """Links that were up at one reading and down at the next."""
        return [n for n, a in self.links.items() if bool((np.diff(a["active"][a["active"] != UNKNOWN]) < 0).any())]

    def grew(self, *columns: str) -> dict[int, int]:
        """Growth of counters by link, where there is any."""
        total = {n: sum(growth(a[c]) or 0 for c in columns) for n, a in self.links.items()}
        return {n: v for n, v in total.items() if v}

    def known(self) -> Intervals:
        """From the first to the last reading of a link's state and, where it is up, of one of its counters at least."""
        at = np.concatenate([a["start_ns"][_told(a)] for a in self.links.values()])
        return intervals.single(int(at.min()), int(at.max())) if len(at) else intervals.EMPTY


def _told(link: dict[str, Array]) -> npt.NDArray[np.bool_]:
    counted = np.any([link[c] != UNKNOWN for c in ERRORS], axis=0)
    out: npt.NDArray[np.bool_] = (link["active"] == 0) | ((link["active"] != UNKNOWN) & counted)
    return out


def evaluate(context: Context) -> Outcome:
    """Up to four findings per GPU."""
    gpus = [_read(context, d) for d in devices(context.store, "nvml_links")]
    if not gpus:
        reason = context.quality.source_reason("nvml") or "NVML listed none"
        return NotEvaluated(f"no NVLink of any GPU was read: {reason}")
    most = max(len(g.up()) for g in gpus)
    items = [f for g in gpus for f in _of_gpu(context, g, most)]
    known = {g.device.uuid: g.known() for g in gpus}
    if not items and not any(len(t) for t in known.values()):
        where = gpus[0].device.where
        state, errors = (refusal(context.store, "nvml_links", where, c) for c in ("active", ERRORS[0]))
        return NotEvaluated(f"NVML told state and errors of no link twice; state: {state}; errors: {errors}")
    return coverage.outcome(context, items, known, "the state of NVLinks", DECLARATION.id)


def _read(context: Context, device: Device) -> _Gpu:
    numbers = context.store.sql(
        f"SELECT DISTINCT link FROM nvml_links WHERE {device.where} ORDER BY link LIMIT {MAX_LINKS}"
    )
    return _Gpu(
        device,
        {
            int(n): series(context.store, "nvml_links", f"{device.where} AND link = {int(n)}", ("active", *ERRORS))
            for (n,) in numbers
        },
    )


MAX_LINKS = 64
"""Links of one GPU that are looked at; NVML_NVLINK_MAX_LINKS of nvml.h is 36."""


def _of_gpu(context: Context, gpu: _Gpu, most: int) -> Iterator[Finding]:
    rows = (context.book.where("nvml_links", gpu.device.where),)
    up, down, gone = gpu.up(), gpu.down(), gpu.went_down()
    told = derived(len(up) + len(down), "count", rows, "links whose state NVML told")
    if gone:
        links = derived(len(gone), "count", rows, "links up at one reading and down at the next")
        yield _finding(context, gpu, "went_down", "critical", {"links": links, "which": _names(gone)})
    still = [n for n in down if n not in gone]
    if still and up:
        links = derived(len(still), "count", rows, "other links down at their last reading")
        yield _finding(context, gpu, "inactive", "warning", {"links": links, "told": told, "which": _names(still)})
    if up and len(up) < most and not down:
        values: dict[str, Quantity | str] = {
            "active": derived(len(up), "count", rows, "links up at the last reading"),
            "most": derived(most, "count", (context.book.where("nvml_links"),), "most links up on one GPU"),
        }
        yield _finding(context, gpu, "uneven", "notice", values)
    recoveries, replays, crc = gpu.grew(*RECOVERY_ERRORS), gpu.grew("replay_errors"), gpu.grew(*CRC_ERRORS)
    packets = gpu.grew("receive_errors")
    limit = {t.name: context.policy.value(t, DECLARATION.id) for t in (RECOVERIES, REPLAYS, CRC)}
    grave: Severity | None = None
    if sum(replays.values()) >= limit[REPLAYS.name] or sum([*crc.values(), *packets.values()]) >= limit[CRC.name]:
        grave = "notice"
    if sum(recoveries.values()) >= limit[RECOVERIES.name]:
        grave = "warning"
    if grave is not None:
        counted: dict[str, Quantity | str] = {
            name: derived(sum(of.values()), "count", rows, "growth of the counters of all links, reading by reading")
            for name, of in (("recoveries", recoveries), ("replays", replays), ("crc", crc), ("packets", packets))
        }
        which = _names(sorted({*recoveries, *replays, *crc, *packets}))
        yield _finding(context, gpu, "errors", grave, {**counted, "which": which})


def _names(links: list[int]) -> str:
    return ("link " if len(links) == 1 else "links ") + ", ".join(map(str, links))


def _finding(context: Context, gpu: _Gpu, text: str, grave: Severity, values: dict[str, Quantity | str]) -> Finding:
    impact = next(v for v in values.values() if isinstance(v, Quantity))
    action = "Look at the GPU's NVLinks" if text == "uneven" else f"Act on the link ({SOURCE})"
    return about_gpu(
        context, DECLARATION, gpu.device, text=text, severity=grave, values=values, impact=impact, fixes=(Fix(action),)
    )
