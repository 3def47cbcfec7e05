"""NVLinks of a GPU: state, version, the other end, data moved and errors, per link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml  # type: ignore[import-untyped]

from gpuaudit.capture.nvml_devices import Gpu
from gpuaudit.capture.nvml_read import (
    NOT_AVAILABLE,
    NOT_SUPPORTED,
    Reading,
    Row,
    code_of,
    fits,
    of_field,
    one,
    read_into,
    text,
)

_NO_SUCH_LINK = (NOT_SUPPORTED, int(pynvml.NVML_ERROR_INVALID_ARGUMENT))
"""What a GPU says of the state of a link that it does not have."""

_FIELDS = (
    ("tx_kib", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX),
    ("rx_kib", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX),
    ("receive_errors", pynvml.NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS),
    ("link_recoveries", pynvml.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS),
    ("effective_errors", pynvml.NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS),
    ("symbol_errors", pynvml.NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS),
)
"""Asked for together, with the link as the scope. Data is payload without protocol overhead, in KiB (nvml.h)."""

_ERRORS = (
    ("crc_flit_errors", pynvml.NVML_NVLINK_ERROR_DL_CRC_FLIT),
    ("crc_data_errors", pynvml.NVML_NVLINK_ERROR_DL_CRC_DATA),
    ("replay_errors", pynvml.NVML_NVLINK_ERROR_DL_REPLAY),
    ("recovery_errors", pynvml.NVML_NVLINK_ERROR_DL_RECOVERY),
)


def read_links(gpu: Gpu) -> list[Row]:
    """Rows of ``nvml_links`` without their times: one for each link that the GPU has, up or down."""
    rows = []
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        row: Row = {**gpu.identity(), "link": link}
        refused = []
        try:
            row["active"] = int(pynvml.nvmlDeviceGetNvLinkState(gpu.handle, link))
        except pynvml.NVMLError as e:
            if e.value in _NO_SUCH_LINK:
                continue  # links are not always numbered without a hole
            refused.append(f"active={e.value}")
        refused += read_into(row, _readings(link), gpu.handle)
        refused += [*_remote(row, gpu.handle, link), *_fields(row, gpu.handle, link)]
        row["unavailable"] = ",".join(refused)
        rows.append(row)
    return rows


def _readings(link: int) -> list[Reading]:
    def errors(counter: int) -> Callable[[Any], int]:
        return lambda h: pynvml.nvmlDeviceGetNvLinkErrorCounter(h, link, counter)

    return [
        one("version", lambda h: pynvml.nvmlDeviceGetNvLinkVersion(h, link)),
        one("remote_type", lambda h: pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(h, link)),
        *(one(column, errors(counter), 64) for column, counter in _ERRORS),
    ]


def _remote(row: Row, handle: Any, link: int) -> list[str]:
    try:
        address = text(pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId)
    except Exception as e:
        return [f"remote_pci={code_of(e)}"]
    if not address:
        return [f"remote_pci={NOT_AVAILABLE}"]
    row["remote_pci"] = address
    return []


def _fields(row: Row, handle: Any, link: int) -> list[str]:
    try:
        values = pynvml.nvmlDeviceGetFieldValues(handle, [(field, link) for _, field in _FIELDS])
    except Exception as e:
        return [f"{column}={code_of(e)}" for column, _ in _FIELDS]
    refused = []
    for (column, _), value in zip(_FIELDS, values, strict=True):
        try:
            number = of_field(value)
        except Exception as e:
            refused.append(f"{column}={code_of(e)}")
            continue
        if fits(column, number):
            row[column] = number
        else:
            refused.append(f"{column}={NOT_AVAILABLE}")
    return refused
