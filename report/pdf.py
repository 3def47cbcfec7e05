"""The report as a PDF: PDF/A-3a and PDF/UA-1, the same bytes for the same findings and the same renderer.

WeasyPrint runs in a child process with an environment of its own: private font configuration, C.UTF-8, UTC,
SOURCE_DATE_EPOCH from the bundle, a fresh home. The parent's locale, time zone, fonts and hash seed cannot reach it.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import gpuaudit
from gpuaudit.bundle.display import printable
from gpuaudit.bundle.errors import AuditError, HostUnfit, InputUnusable
from gpuaudit.report.fonts import FOLDER

RENDER_LIMIT_CPU_S = 600
"""Most CPU time that one PDF may take: at the measured 6 ms a table row, 100,000 rows. Not elapsed time: a report that
takes half a minute alone takes long on a busy host, and is no defect for it."""

EXIT_NO_LIBRARY = 4
"""The child's answer when a library that the bytes depend on is missing; its stderr says which."""

COMMAND = ("-m", "gpuaudit.report.typesetter")
"""What the child process runs."""

FINDINGS_NAME = "findings.json"
CONTENT_NAME = "content.json"
"""Names of the two attachments: the findings (/Data) and what the packet's manifest says of content (/Supplement)."""


@dataclass(frozen=True)
class Printed:
    """An unsigned PDF, the renderer that made it, and the content manifest attached to it."""

    pdf: bytes
    renderer: dict[str, str]
    content: bytes


def print_pdf(html: bytes, *, findings: bytes, content: dict[str, Any], date: str, identifier: bytes) -> Printed:
    """Set ``html`` (the print for the typesetter) as a PDF with its attachments.

    ``content`` gets a key ``renderer`` and is attached as canonical JSON. ``date`` is a W3C date in UTC, the same for
    document and attachments. ``identifier``: 16 bytes for the trailer's /ID. HostUnfit when the renderer is missing or
    incomplete; InputUnusable when it takes too long; AuditError when it fails.
    """
    job = {
        "html": base64.b64encode(html).decode(), "findings": base64.b64encode(findings).decode(), "content": content,
        "date": date, "identifier": identifier.hex(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="gpu-audit-print-") as scratch:
        answer = _run(json.dumps(job).encode(), Path(scratch))
    length = int.from_bytes(answer[:8], "big")
    head = json.loads(answer[8 : 8 + length])
    return Printed(answer[8 + length :], head["renderer"], base64.b64decode(head["content"]))


def _run(job: bytes, scratch: Path) -> bytes:
    done = subprocess.run(
        [sys.executable, "-P", *COMMAND], input=job, capture_output=True, cwd=scratch, env=_environment(scratch),
        check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return done.stdout
    if done.returncode == -signal.SIGXCPU:
        raise InputUnusable(
            f"the findings are too many to print: the PDF was not ready after {RENDER_LIMIT_CPU_S} s of CPU time",
            hint="read them with 'audit explain', or capture a shorter time or fewer processes",
        )
    said = printable(done.stderr.decode(errors="replace").strip().rpartition("\n")[2], 400)
    if done.returncode == EXIT_NO_LIBRARY:
        raise HostUnfit(f"this host cannot print a PDF: {said}", hint="install what is named and run it again")
    raise AuditError(f"the typesetter ended with status {done.returncode}: {said}")


def _environment(scratch: Path) -> dict[str, str]:
    """Everything the child sees; PATH only so that ctypes can look up shared libraries."""
    fontconfig = scratch / "fonts.conf"
    fontconfig.write_text(
        '<?xml version="1.0"?>\n<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">\n<fontconfig>'
        f"<dir>{escape(str(FOLDER))}</dir><cachedir>{escape(str(scratch / 'cache'))}</cachedir></fontconfig>\n",
        encoding="utf-8",
    )
    fixed = {
        "FONTCONFIG_FILE": str(fontconfig), "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1",
        "PYTHONPATH": str(Path(gpuaudit.__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(scratch),
        "XDG_CACHE_HOME": str(scratch / "cache"), "TMPDIR": str(scratch), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }  # fmt: skip
    kept = ("LD_LIBRARY_PATH", "COVERAGE_PROCESS_START")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **fixed}
