"""The child process that runs WeasyPrint: job on stdin, PDF on stdout, nothing fetched, nothing else read.

Started by :mod:`gpuaudit.report.pdf` with a fixed environment; not for import by anything else.
"""

from __future__ import annotations

import base64
import ctypes
import gc
import io
import json
import logging
import os
import resource
import sys
import zlib
from calendar import timegm
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gpuaudit.bundle.canonical import dumps
from gpuaudit.report.fonts import FACES, font_bytes
from gpuaudit.report.html import FONT_SCHEME
from gpuaudit.report.pdf import CONTENT_NAME, EXIT_NO_LIBRARY, FINDINGS_NAME, RENDER_LIMIT_CPU_S

PDFUA_XMP = (
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:pdfuaid="http://www.aiim.org/pdfua/ns/id/" rdf:about="" pdfuaid:part="1"/></rdf:RDF>'
)
"""Says PDF/UA-1 beside PDF/A-3a (ISO 14289-1, 5): WeasyPrint writes one of the two only."""

COLLECT_AFTER = 100_000
"""Containers made between two looks of the garbage collector: at Python's own 700 a tenth of the printing goes into
looking at boxes that all live to the end. ours"""


def main() -> int:
    """Read a job, answer with eight bytes of length, a JSON head, and the PDF; SIGXCPU ends what takes too long."""
    resource.setrlimit(resource.RLIMIT_CPU, (RENDER_LIMIT_CPU_S, RENDER_LIMIT_CPU_S + 1))
    gc.set_threshold(COLLECT_AFTER)
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    job = json.loads(sys.stdin.buffer.read())
    os.environ["SOURCE_DATE_EPOCH"] = str(_epoch(job["date"]))
    try:
        import weasyprint  # type: ignore[import-untyped]  # noqa: PLC0415  (after the environment is complete: it loads fontconfig on import)

        _demand_subsetter()
    except (ImportError, OSError) as error:
        print(f"WeasyPrint or one of its libraries (Pango, HarfBuzz with harfbuzz-subset): {error}", file=sys.stderr)
        return EXIT_NO_LIBRARY
    made_by = renderer()
    content = dumps({**job["content"], "renderer": made_by})
    at = datetime.fromtimestamp(_epoch(job["date"]), UTC)
    attachments = [
        _attachment(base64.b64decode(job["findings"]), FINDINGS_NAME, "The findings this report prints", "Data", at),
        _attachment(content, CONTENT_NAME, "Digests of the content of this report", "Supplement", at),
    ]
    fetcher = fetcher_class()({f"{FONT_SCHEME}{face.stem}": font_bytes(face, "ttf") for face in FACES})
    pdf = weasyprint.HTML(string=base64.b64decode(job["html"]).decode(), base_url=None, url_fetcher=fetcher).write_pdf(
        pdf_variant="pdf/a-3a", pdf_identifier=bytes.fromhex(job["identifier"]), attachments=attachments,
        xmp_metadata=[_xmp()], finisher=finish,
    )  # fmt: skip
    if fetcher.refused:
        print(f"the report asked for {fetcher.refused[0]!r:.200}, which it may not", file=sys.stderr)
        return 1
    head = json.dumps({"renderer": made_by, "content": base64.b64encode(content).decode()}).encode()
    sys.stdout.buffer.write(len(head).to_bytes(8, "big") + head + pdf)
    return 0


def fetcher_class() -> type[Any]:
    """WeasyPrint's fetcher cut down to names held in memory; what else is asked for is refused and remembered."""
    from weasyprint.urls import URLFetcher, URLFetcherResponse  # type: ignore[import-untyped]  # noqa: PLC0415

    class Memory(URLFetcher):  # type: ignore[misc]
        def __init__(self, known: Mapping[str, bytes]) -> None:
            super().__init__()
            self.known = dict(known)
            self.refused: list[str] = []

        def fetch(self, url: str, headers: Mapping[str, str] | None = None) -> Any:
            del headers
            if url not in self.known:
                self.refused.append(url)
                raise ValueError(f"not one of ours: {url!r:.200}")
            return URLFetcherResponse(url, self.known[url], {"Content-Type": "font/ttf"})

    return Memory


def finish(document: Any, pdf: Any) -> None:
    """What WeasyPrint 70 leaves to do for PDF/A-3a and PDF/UA-1: each /AF entry once, /Scope on header cells."""
    del document
    seen: dict[bytes | str, None] = dict.fromkeys(pdf.catalog.get("AF", ()))
    if seen:
        pdf.catalog["AF"][:] = list(seen)
    for item in pdf.objects:
        if isinstance(item, dict) and item.get("S") == "/TH" and "A" in item:
            item["A"]["Scope"] = "/Column"


def renderer() -> dict[str, str]:
    """Name and version of everything that the PDF's bytes depend on, besides the document itself."""
    import fontTools  # type: ignore[import-untyped]  # noqa: PLC0415
    import pydyf  # type: ignore[import-untyped]  # noqa: PLC0415
    import weasyprint  # noqa: PLC0415

    return {
        "weasyprint": weasyprint.__version__, "pydyf": pydyf.__version__, "fonttools": fontTools.version,
        "pango": _version("libpango-1.0.so.0", "pango_version_string"),
        "harfbuzz": _version("libharfbuzz.so.0", "hb_version_string"), "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }  # fmt: skip


def _version(soname: str, function: str) -> str:
    """What a C library calls itself; WeasyPrint has loaded the same file already and declares no version function."""
    ask = getattr(ctypes.CDLL(soname), function)
    ask.restype = ctypes.c_char_p
    return bytes(ask()).decode()


def _demand_subsetter() -> None:
    """Without harfbuzz-subset WeasyPrint falls back to fontTools, silently and with other bytes."""
    from weasyprint.text.ffi import harfbuzz_subset  # type: ignore[import-untyped]  # noqa: PLC0415

    if harfbuzz_subset is None:
        raise OSError("harfbuzz-subset was not found (Debian: apt install libharfbuzz-subset0)")


def _attachment(body: bytes, name: str, description: str, relationship: str, at: datetime) -> Any:
    import weasyprint  # noqa: PLC0415

    return weasyprint.Attachment(
        file_obj=io.BytesIO(body), name=name, description=description, relationship=relationship,
        created=at, modified=at,
    )  # fmt: skip


def _xmp() -> io.BytesIO:
    return io.BytesIO(PDFUA_XMP)


def _epoch(date: str) -> int:
    return timegm(datetime.strptime(date, "%Y-%m-%dT%H:%M:%SZ").timetuple())


if __name__ == "__main__":
    sys.exit(main())
