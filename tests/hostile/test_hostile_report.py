"""Names chosen by the audited side: shown escaped in HTML and PDF, nothing fetched, nothing executed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.finding import Document, Evidence, Fix, SectionChart, Statement
from gpuaudit.bundle.canonical import dumps
from gpuaudit.bundle.errors import AuditError
from gpuaudit.report.html import render
from gpuaudit.report.pdf import print_pdf
from gpuaudit.report.typesetter import fetcher_class
from gpuaudit.report.view import build_view
from tests.documents import document
from tests.engine_documents import engine_document

HOSTILE = {
    "script": "<script>document.title='PWNED'</script>",
    "image": "<img src=x onerror=document.title='PWNED'>",
    "svg": "</text></svg><svg onload=document.title='PWNED'>",
    "style": "</style><style>@import 'http://192.0.2.1/x.css';body{display:none}",
    "css": "red;background:url(http://192.0.2.1/leak)",
    "attribute": "\" onmouseover=\"document.title='PWNED'\" x=\"",
    "attachment": "<link rel=attachment href=file:///etc/passwd>",
    "template": "{{ 7*191 }}{% include '/etc/passwd' %}",
    "bidi": "exe.\u202egnp.train",
    "isolate": "\u2066\u2067a\u2069",
    "control": "a\x1b]0;PWNED\x07\x00\r\nb",
    "formula": "=cmd|' /C calc'!A0",
    "zalgo": "e" + "\u0301" * 300,
    "private": "\ue000\U000f0000\ufffe",
    "long": "A" * 10_000,
    "entity": "&lt;script&gt;&#x3c;",
    "comment": "<!--", "cdata": "]]>", "dash": "-->",
}  # fmt: skip


def poisoned() -> Document:
    """The scenario with hostile text in every place that evidence or its author can fill."""
    base = document()
    every = " ".join(HOSTILE.values())
    names = list(HOSTILE.values())
    chain, finding = base.chains[0], base.findings[0]
    charts: dict[str, Any] = {**base.charts}
    charts["timeline"] = {**charts["timeline"], "lanes": [
        {**charts["timeline"]["lanes"][0], "label": name, "rule": name} for name in names
    ]}  # fmt: skip
    charts["rank_heat"] = [{**charts["rank_heat"][0], "comm_id": name} for name in names[:3]]
    charts["latency"] = [{**charts["latency"][0], "op": name} for name in names]
    charts["nvml"] = [{**charts["nvml"][0], "series": [
        {**s, "name": n} for s, n in zip(charts["nvml"][0]["series"], names, strict=False)
    ]}]  # fmt: skip
    declarations = [
        {**d, "title": every, "question": every, "never_claims": every} for d in base.appendix["declarations"]
    ]
    libraries = [
        {"library": n, "op": n, "pid": n, "path": n, "build_id": n, "not_observed": n, "reason": n} for n in names
    ]
    return document(
        host={**base.host, "hostname": HOSTILE["script"], "kernel": every, "gpus": [
            {"index": i, "uuid": n, "name": n, "driver": n} for i, n in enumerate(names)]},
        bundle={**base.bundle, "origin": every, "notices": names, "root": HOSTILE["attribute"]},
        quality={**base.quality, "reasons": names, "sources": [
            {"source": n, "state": "recorded", "reason": n} for n in names], "gaps": [
            {"source": n, "start_ns": "812000000000", "duration_ns": "5", "pid": 1, "reason": n} for n in names]},
        operations=[{**base.operations[0], "op": n, "table": n} for n in names],
        findings=[replace(finding, id=n, values={**finding.values, "process": n}, subject={n: n}) for n in names[::2]],
        chains=[replace(chain, id=n, against=(n,), refuted_by=n, next_step=n, subject={n: n}) for n in names[1::4]],
        charts=charts,
        appendix={**base.appendix, "declarations": declarations,
                  "libraries": {"rows": libraries, "omitted": 0, "evidence": "E1"},
                  "windows": [{n: n} for n in names]},
        evidence=[*base.evidence, *(Evidence(n, n, (1,), 1, n) for n in names)],
    )  # fmt: skip


def poisoned_sections() -> Document:
    """The engine's document with hostile text in every place of a section, a group and a fix that holds text."""
    names = list(HOSTILE.values())
    every = " ".join(n.replace("{", "").replace("}", "") for n in names)
    base = engine_document()
    made = []
    for section in base.sections:
        charts = tuple(replace(c, title=every, data=_with_labels(c, names)) for c in section.charts)
        tables = tuple(
            replace(t, title=every, notes=tuple(names), columns=tuple((k, n) for (k, _), n in
                    zip(t.columns, names, strict=False)), rows=(*(tuple(n for _ in t.columns) for n in names), *t.rows))
            for t in section.tables
        )  # fmt: skip
        made.append(replace(
            section, title=every, question=every, reason=every, notes=tuple(names), charts=charts, tables=tables,
            definitions=tuple((n, n) for n in names),
            statements=(*section.statements, Statement("{name}" + every, {"name": names[0]})),
        ))  # fmt: skip
    fixes = tuple(Fix(every, n, n, n, every, {"x": n}) for n in names)
    return engine_document(
        sections=made, groups=[replace(base.groups[0], kind=every, supporting=tuple((f, every) for f, _ in
                               base.groups[0].supporting))],
        findings=[*base.findings[:2], *(replace(f, fixes=fixes) for f in base.findings[2:])],
    )  # fmt: skip


def _with_labels(chart: SectionChart, names: list[str]) -> dict[str, Any]:
    """The chart's data with every label replaced; a stack's parts are ``[key, label, amount]``."""
    data = chart.data
    if chart.kind == "stack":
        bars = [{**b, "label": n, "parts": [[k, n, a] for k, _, a in b["parts"]]}
                for b, n in zip(data["bars"], names, strict=False)]  # fmt: skip
        return {**data, "bars": bars}
    key = {"roofline": "points", "strips": "series", "bands": "rows"}[chart.kind]
    out = {**data, key: [{**x, "label": n} for x, n in zip(data[key], names, strict=False)]}
    if chart.kind == "roofline":
        out["ceilings"] = [{**c, "label": n, "basis": n} for c, n in zip(data["ceilings"], names, strict=False)]
    if chart.kind == "strips":
        out["marks"] = [[m[0], m[1], n] for m, n in zip(data["marks"], names, strict=False)]
    if chart.kind == "bands":
        out["bounds"] = [[v, n] for (v, _), n in zip(data["bounds"], names, strict=False)]
    return out


def test_no_element_and_no_attribute_comes_from_a_section() -> None:
    plain, hostile = (
        Tags(render(build_view(d()))) for d in (engine_document, poisoned_sections)
    )  # fmt: skip
    assert set(hostile.seen) == set(plain.seen)
    assert hostile.seen["script"] == hostile.seen["style"] == 1
    assert hostile.attributes <= plain.attributes
    assert not [v for v in hostile.values if "PWNED" in v or "192.0.2.1" in v or "passwd" in v]


def test_hostile_text_in_cells_labels_and_fixes_is_shown_and_inert() -> None:
    text = render(build_view(poisoned_sections())).decode().replace("<wbr>", "")
    assert "&lt;script&gt;document.title=&#39;PWNED&#39;&lt;/script&gt;" in text
    assert text.count("\\u{202e}") > 20
    assert not set("\x00\x1b\u202e\u2066\ufffe") & set(text)
    assert "A" * 513 not in text


def test_hostile_sections_can_be_typeset_and_fetch_nothing() -> None:
    weasyprint = pytest.importorskip("weasyprint")
    fonts = {
        f"report-font:{stem}": b"" for stem in ("IBMPlexSans-Regular", "IBMPlexSans-SemiBold", "IBMPlexMono-Regular")
    }
    fetcher = fetcher_class()(fonts)
    some = engine_document(sections=poisoned_sections().sections[-1:])
    weasyprint.HTML(string=render(build_view(some), "pdf").decode(), url_fetcher=fetcher).render()
    assert fetcher.refused == []


@pytest.fixture(scope="module")
def html() -> bytes:
    return render(build_view(poisoned()))


class Tags(HTMLParser):
    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.values: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}
        self.values += [v or "" for _, v in attrs]


def test_no_element_and_no_attribute_comes_from_data(html: bytes) -> None:
    plain, hostile = Tags(render(build_view(document()))), Tags(html)
    assert set(hostile.seen) == set(plain.seen)
    assert hostile.seen["script"] == hostile.seen["style"] == 1
    assert hostile.attributes <= plain.attributes
    assert not [v for v in hostile.values if "PWNED" in v or "192.0.2.1" in v or "passwd" in v]


def test_everything_is_shown_and_nothing_acts(html: bytes) -> None:
    text = html.decode().replace("<wbr>", "")
    assert "\\u{202e}" in text
    assert "\\u{1b}]0;PWNED\\u{7}\\u{0}\\u{d}\\u{a}b" in text
    assert "\\u{e000}" in text
    assert "{{ 7*191 }}" in text, "shown as it is, and not computed"
    assert "1337" not in text
    assert not set("\x00\x1b\u202e\u2066\ufffe") & set(text)
    assert "A" * 513 not in text
    assert "… (+9488 characters)" in text
    assert "=cmd|&#39; /C calc&#39;!A0" in text


def test_the_fetcher_of_the_typesetter_refuses_and_remembers() -> None:
    """So what is printed whole, as the poisoned document below is, asked for nothing but its fonts."""
    weasyprint = pytest.importorskip("weasyprint")
    fetcher = fetcher_class()({"report-font:IBMPlexSans-Regular": b""})
    weasyprint.HTML(string=f"<p>{HOSTILE['image']}</p>", base_url="http://192.0.2.1/", url_fetcher=fetcher).render()
    assert fetcher.refused == ["http://192.0.2.1/x"]


def test_pdf_shows_names_and_holds_nothing_else(tmp_path: Path) -> None:
    view = build_view(poisoned())
    printed = print_pdf(
        render(view, "pdf"), findings=dumps(poisoned().to_json()), content={"schema": "test"}, date=view.created,
        identifier=hashlib.sha256(b"x").digest()[:16],
    )  # fmt: skip
    path = tmp_path / "report.pdf"
    path.write_bytes(printed.pdf)
    for tool in ("pdftotext", "pdfdetach", "pdfinfo"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (poppler-utils)")
    text = subprocess.run(["pdftotext", "-raw", path, "-"], capture_output=True, text=True, check=True).stdout
    joined = "".join(text.split())
    assert "<script>document.title='PWNED'</script>" in joined
    assert "exe.\\u{202e}gnp.train" in joined
    assert "root:x:" not in joined
    listed = subprocess.run(["pdfdetach", "-list", path], capture_output=True, text=True, check=True).stdout
    assert listed.splitlines()[0] == "2 embedded files"
    told = subprocess.run(["pdfinfo", path], capture_output=True, text=True, check=True).stdout
    assert "JavaScript:      no" in told


def test_document_that_asks_for_a_file_is_not_printed() -> None:
    html = (
        b"<!DOCTYPE html><html lang=en><title>x</title><link rel=attachment href='file:///etc/hostname'><p>x</p></html>"
    )
    with pytest.raises(AuditError, match="etc/hostname"):
        print_pdf(html, findings=b"{}", content={}, date="2026-01-01T00:00:00Z", identifier=bytes(16))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_browser_runs_nothing_but_our_script(html: bytes, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(html)
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=4000", "--dump-dom", f"file://{path}"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "<title>GPU audit report (SYNTHETIC)</title>" in done.stdout
    assert 'aria-label="filter rows of' in done.stdout, "our own script ran"
    assert "Refused to" not in done.stderr, "the policy refused nothing of ours, and there was nothing else"
