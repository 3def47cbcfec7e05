"""The HTML file: one file, its policy true to its content, every anchor there, nothing inline."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from gpuaudit.report.html import render
from gpuaudit.report.text import plain
from gpuaudit.report.view import MARKS, View, build_view
from tests.documents import document
from tests.engine_documents import engine_document

VOID = {"meta", "br", "wbr", "path", "rect", "input"}
URL_ATTRIBUTES = {"href", "src", "action", "formaction", "data", "poster", "xlink:href", "srcset", "background"}


class Page(HTMLParser):
    """Elements with attributes, text, and whether everything opened was closed."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))


MADE = {"training": build_view(document()), "engine": build_view(engine_document())}


@pytest.fixture(scope="module", params=MADE)
def view(request: pytest.FixtureRequest) -> View:
    return MADE[request.param]


@pytest.fixture(scope="module")
def page(view: View) -> Page:
    return Page(render(view))


def test_well_formed(page: Page) -> None:
    assert page.open == []


def test_policy_names_the_style_and_script_that_are_there(page: Page) -> None:
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        bodies = ["".join(d for t, d in page.text if t == tag)]
        assert sum(t == tag for t, _ in page.elements) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_nothing_inline_and_nothing_from_elsewhere(page: Page) -> None:
    for tag, attributes in page.elements:
        assert "style" not in attributes, tag
        assert not [a for a in attributes if a.startswith("on")], tag
        for name in URL_ATTRIBUTES & set(attributes):
            assert attributes[name].startswith("#"), (tag, name)
    style = "".join(d for t, d in page.text if t == "style")
    assert {u[:10] for u in re.findall(r'url\("?([^)"]*)', style)} == {"data:font/"}
    assert "@import" not in style


def test_every_reference_has_one_target(page: Page, view: View) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for t, a in page.elements if t == "a"}
    assert targets <= set(ids)
    assert [anchor for anchor, _ in view.contents] == [i for i in ids if i in dict(view.contents)]


def test_contents_are_the_headings(view: View) -> None:
    text = render(view).decode()
    headings = [re.sub(r"<[^>]*>", "", h) for h in re.findall(r"<h2>(.*?)</h2>", text)]
    assert [h for h in headings if h != "Contents"] == [plain(title) for _, title in view.contents]


def test_figures_have_title_and_description(page: Page) -> None:
    tags = [t for t, _ in page.elements]
    assert tags.count("svg") >= 8
    assert tags.count("desc") == tags.count("svg")
    assert tags.count("title") == tags.count("svg") + 1


@pytest.mark.parametrize("marked", [(), ("synthetic",), ("imported",), ("synthetic", "imported")])
def test_marks_are_said_and_only_when_they_are_due(marked: tuple[str, ...]) -> None:
    bundle = {**document().bundle, **{key: key in marked for key in MARKS}}
    text = render(build_view(document(bundle=bundle))).decode()
    for key, mark in MARKS.items():
        assert text.count(f"<b>{mark.word}") == 2 * (key in marked), "head of every page, and page 1"
        assert text.count(f"{mark.word} · ") == (key in marked), "foot of every page"
    assert text.count('class="mark"') == bool(marked)


def test_what_stands_on_every_page_of_the_pdf_stands_in_its_margins() -> None:
    """Margin boxes are artifacts of a tagged PDF; anything else would be read aloud in the midst of every page."""
    style = render(build_view(document()), "pdf").decode().partition("<style>")[2].partition("</style>")[0]
    running = dict(re.findall(r"\.([a-z-]+) {[^}]*position: running\(([a-z-]+)\)", style))
    assert set(running) == {"head-left", "head-right", "foot-left", "mark"}
    assert all(f"content: element({name})" in style for name in running.values())
    assert style.rindex(".mark {") > style.rindex("position: fixed")


def test_print_for_the_typesetter_has_no_script_and_fonts_by_name() -> None:
    text = render(build_view(document()), "pdf").decode()
    assert "<script" not in text
    assert set(re.findall(r'url\("([^"]*)"', text)) == {
        "report-font:IBMPlexSans-Regular", "report-font:IBMPlexSans-SemiBold", "report-font:IBMPlexMono-Regular",
    }  # fmt: skip
