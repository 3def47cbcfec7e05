"""Which devices' ioctls are watched, and how a device is named."""

from __future__ import annotations

import pytest

from gpuaudit.bundle.errors import UsageError
from gpuaudit.capture.source import TABLES_OF_SOURCE
from gpuaudit.capture.system_calls import ANY_TYPE, IOCTL, SOCKETS, SystemCalls, nvidia_devices, parse_device

WITH_DRIVER = """\
Character devices:
  1 mem
  4 /dev/vc/0
 10 misc
195 nvidia
195 nvidia-modeset
195 nvidiactl
234 nvidia-nvswitch
235 nvidia-nvlink
236 nvidia-caps
510 nvidia-uvm
511 nvidia-caps-imex-channels

Block devices:
  7 loop
259 nvidia-block
"""


def test_devices_of_the_nvidia_drivers() -> None:
    """Type F or m on the fixed number; any type on the numbers that were given out when the drivers were loaded."""
    fixed = {(195, ord("F")), (195, ord("m"))}
    assert nvidia_devices(WITH_DRIVER) == fixed | {(major, ANY_TYPE) for major in (234, 235, 236, 510, 511)}


@pytest.mark.parametrize("text", ["", "Character devices:\n  1 mem\n", "Block devices:\n195 nvidia\n", "x nvidia\n"])
def test_no_driver_no_device(text: str) -> None:
    """Block devices and lines that are none do not count."""
    assert nvidia_devices(text) == frozenset()


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("195:F", (195, 0x46)),
        ("195:0x46", (195, 0x46)),
        ("0x1:70", (1, 70)),
        ("234", (234, ANY_TYPE)),
        ("1:0", (1, 0)),
    ],
)
def test_a_device_is_named_by_number_and_type(text: str, device: tuple[int, int]) -> None:
    """One character is a type, digits are a number."""
    assert parse_device(text) == device


@pytest.mark.parametrize("text", ["", ":", "F", "195:", "195:FF", "-1", "4096", "195:256", "195:-1", "1:é", "195:F:F"])
def test_what_is_no_device_is_refused(text: str) -> None:
    """With the form that is expected."""
    with pytest.raises(UsageError) as e:
        parse_device(text)
    assert "MAJOR" in (e.value.hint or "")


def test_ioctls_need_a_device_and_sockets_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the driver there is nothing to watch: a reason, not a table without rows."""
    monkeypatch.setattr("gpuaudit.capture.system_calls.watched_now", frozenset)
    without = SystemCalls({IOCTL, SOCKETS})
    assert without.refused is not None
    assert "NVIDIA" in without.refused.message
    assert without.sources == {SOCKETS}
    chosen = SystemCalls({IOCTL}, [(1, 82)])
    assert chosen.refused is None
    assert chosen.sources == {IOCTL}
    assert SystemCalls({SOCKETS}).refused is None
    assert {IOCTL, SOCKETS} <= set(TABLES_OF_SOURCE)
