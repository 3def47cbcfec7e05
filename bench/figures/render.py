"""Printing a report, next to WeasyPrint's own way with the same document."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.result import Figure, Plan, ratio, value
from bench.spread import take_turns
from gpuaudit.analyze.load import load_document
from gpuaudit.bundle.errors import AuditError
from gpuaudit.report import html
from gpuaudit.report.pdf import print_pdf
from gpuaudit.report.view import View, build_view

NAME = "render"
TITLE = "Printing a report"
METHOD = (
    "The report of the synthetic scenario, from its view to the unsigned PDF: PDF/A-3a and PDF/UA-1, tagged, with "
    "attachments, in a child process with its own environment; next to `write_pdf()` of WeasyPrint with its defaults "
    "on our HTML in a child process. Elapsed time, the start of the child included. HTML, made from the findings "
    "file, has no pages: the PDF's are counted."
)
_PLAIN = "import sys, weasyprint; sys.stdout.buffer.write(weasyprint.HTML(filename=sys.argv[1]).write_pdf())"


@dataclass(frozen=True)
class _Turn:
    seconds: float
    cpu_s: float
    pages: int = 0


def measure(plan: Plan) -> Figure:
    """Pages per second of the PDF and the HTML, and of WeasyPrint alone."""
    findings = _findings(plan.folder)
    raw, view = findings.read_bytes(), build_view(load_document(findings))
    page = plan.folder / "report.html"

    def to_html() -> _Turn:
        clock = _Clock()
        body = html.render(build_view(load_document(findings)))
        turn = clock.turn()
        page.write_bytes(body)
        return turn

    def to_pdf() -> _Turn:
        clock = _Clock()
        pdf = _pdf(raw, view)
        return clock.turn(pdf)

    def plain() -> _Turn:
        clock = _Clock()
        command = [sys.executable, "-c", _PLAIN, str(page)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            raise AuditError(f"WeasyPrint alone failed: {done.stderr.decode(errors='replace').strip()[-200:]}")
        return clock.turn(done.stdout)

    to_html()
    turns = take_turns({"html": to_html, "pdf": to_pdf, "plain": plain}, plan.repeats, plan.budget_s)
    pages = turns["pdf"][0].pages
    pdf_rate = [t.pages / t.seconds for t in turns["pdf"]]
    html_rate = [pages / t.seconds for t in turns["html"]]
    plain_rate = [t.pages / t.seconds for t in turns["plain"]]
    cpu = {way: [t.cpu_s / t.pages for t in turns[way]] for way in ("pdf", "plain")}
    return Figure(NAME, TITLE, METHOD, (
        ratio("our PDF ÷ WeasyPrint's defaults, pages per second", pdf_rate, plain_rate, "higher"),
        ratio("our PDF ÷ WeasyPrint's defaults, CPU per page", cpu["pdf"], cpu["plain"], "lower"),
        ratio("HTML ÷ PDF, pages per second", html_rate, pdf_rate),
        value("PDF", "pages/s", pdf_rate),
        value("HTML", "pages/s", html_rate),
        value("WeasyPrint's defaults", "pages/s", plain_rate),
        value("PDF: CPU per page", "s", cpu["pdf"]),
        value("PDF, the whole report", "s", [t.seconds for t in turns["pdf"]]),
    ), {
        "pages": f"{pages} (WeasyPrint's defaults, from the HTML for screens: {turns['plain'][0].pages})",
        "HTML": f"{page.stat().st_size / 2**10:,.0f} KiB",
    })  # fmt: skip


class _Clock:
    """Elapsed and CPU time since it was made, of this process and the children that have ended."""

    def __init__(self) -> None:
        self._start_s, self._cpu_s = time.monotonic(), sum(os.times()[:4])

    def turn(self, pdf: bytes = b"") -> _Turn:
        """What it took up to now; then the pages of the PDF are counted."""
        seconds, cpu_s = time.monotonic() - self._start_s, sum(os.times()[:4]) - self._cpu_s
        return _Turn(seconds, cpu_s, _pages(pdf) if pdf else 0)


def _findings(folder: Path) -> Path:
    """Capture and analyze the synthetic scenario; its findings document."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "GPU_AUDIT_KEYS": str(folder / "keys")}
    bundle = folder / "scenario.db"
    for arguments in (
        ["capture", "--synthetic", "late-rank", "--out", str(bundle), "--force"],
        ["analyze", str(bundle), "--force"],
    ):
        command = [sys.executable, "-m", "gpuaudit.cli.main", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise AuditError(f"audit {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return bundle.with_suffix(".findings.json")


def _pdf(findings: bytes, view: View) -> bytes:
    """The PDF as a packet has it before it is signed."""
    content = {"findings_sha256": hashlib.sha256(findings).hexdigest()}
    return print_pdf(
        html.render(view, "pdf"), findings=findings, content=content, date=view.created,
        identifier=hashlib.sha256(findings).digest()[:16],
    ).pdf  # fmt: skip


def _pages(pdf: bytes) -> int:
    from pyhanko.pdf_utils.reader import PdfFileReader  # noqa: PLC0415 - only for those who render

    return int(PdfFileReader(io.BytesIO(pdf)).root["/Pages"]["/Count"])
