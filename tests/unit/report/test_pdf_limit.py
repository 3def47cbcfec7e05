"""A report that is too large for the typesetter: the limit is CPU time, and its end is no defect."""

from __future__ import annotations

import pytest

from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.report import pdf

BUSY = "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True:\n    pass\n"


def test_findings_that_take_too_much_cpu_time_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "COMMAND", ("-c", BUSY))
    with pytest.raises(InputUnusable, match="of CPU time") as caught:
        pdf.print_pdf(b"", findings=b"", content={}, date="2026-01-05T09:00:40Z", identifier=bytes(16))
    assert "audit explain" in (caught.value.hint or "")
