"""What was asked of a capture, as it stands in the first leaf."""

from __future__ import annotations

import json

from gpuaudit.bundle.canonical import dumps
from gpuaudit.capture.options import CaptureOptions
from gpuaudit.capture.session import _open_body


def test_arguments_may_be_any_bytes() -> None:
    options = CaptureOptions(command=("train", b"\xffdata\n".decode("utf-8", "surrogateescape")), comms=("\udcc3",))
    asked = json.loads(dumps(_open_body(options, {}, None)))["options"]
    assert asked["command"] == ["train", "\\udcffdata\n"]
    assert asked["comms"] == ["\\udcc3"]
