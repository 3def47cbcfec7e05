"""The report as one HTML file: canonical bytes, no network, no inline style, hashed style and script."""

from __future__ import annotations

import base64
import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Literal

import jinja2
from markupsafe import Markup

from gpuaudit import templates
from gpuaudit.report.charts.canvas import LABEL_SIZE, ROLES, WIDTH, coordinate
from gpuaudit.report.fonts import FACES, Face, font_bytes
from gpuaudit.report.view import View

FOLDER = Path(templates.__file__).parent

FONT_SCHEME = "report-font:"
"""Names of fonts in the print for the PDF; the typesetter's fetcher knows them and nothing else."""


def render(view: View, target: Literal["html", "pdf"] = "html") -> bytes:
    """The document as UTF-8. ``pdf`` is the same body for the typesetter: fonts by name, no script, paper style."""
    for_pdf = target == "pdf"
    style = _font_faces(for_pdf) + _asset("report.css") + (_asset("pdf.css") if for_pdf else "")
    script = "" if for_pdf else _asset("report.js")
    text = _environment().get_template("report.html.j2").render(
        view=view, roles=ROLES, width=WIDTH, label_size=LABEL_SIZE,
        style=Markup(style), script=Markup(script),  # noqa: S704  (our own files, see _asset)
        csp="" if for_pdf else _policy(style, script),
    )  # fmt: skip
    return text.encode()


def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=False, keep_trailing_newline=True, auto_reload=False,
    )  # fmt: skip
    env.filters["px"] = _px
    return env


def _px(value: int | Fraction) -> str:
    return coordinate(value)


def _asset(name: str) -> str:
    """A file of ours from ``templates/``; it may not hold what would end its element early."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    if "</" in text or "<!--" in text:
        raise AssertionError(f"templates/{name} holds a markup delimiter")
    return text


def _font_faces(for_pdf: bool) -> str:
    return "".join(_font_face(face, for_pdf) for face in FACES)


def _font_face(face: Face, for_pdf: bool) -> str:
    if for_pdf:
        source = f"{FONT_SCHEME}{face.stem}"
    else:
        source = f"data:font/woff2;base64,{base64.b64encode(font_bytes(face, 'woff2')).decode()}"
    return (
        f'@font-face{{font-family:"{face.family}";font-weight:{face.weight};font-style:normal;src:url("{source}")}}\n'
    )


def _policy(style: str, script: str) -> str:
    """Content Security Policy: nothing but this style, this script and fonts of this file."""
    return (
        f"default-src 'none'; style-src {_source_hash(style)}; script-src {_source_hash(script)}; font-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def plain_text(name: str, values: dict[str, object]) -> bytes:
    """A text file of the packet from its template; values are inert already, and a text has no markup to escape."""
    env = _environment()
    env.autoescape = False
    return env.get_template(name).render(values).encode()
