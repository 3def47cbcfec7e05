"""Names chosen by the audited side, in a really recorded bundle, through everything that a reader can look at it with.

Each hostile process is a copy of the ``calls`` workload under a hostile file name, so that its comm, executable,
command line and the path of its CUDA runtime are all hostile. It makes its calls and then nothing for longer than the
silence rule allows, so that a finding names it on page 1.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gpuaudit.bundle.display import printable
from tests.doubles.build import build, compiler
from tests.integration.conftest import bpf  # noqa: F401  (the fixture that skips where BPF is not to be had)
from tests.integration.road import Road, road
from tests.integration.sessions import Session

pytestmark = pytest.mark.root

COMM_BYTES = 15
"""TASK_COMM_LEN − 1, include/linux/sched.h."""

SILENT_MS = 6500
PAYLOAD = "<img src=x onerror=document.title='PWNED'>"
NAMES = {
    "script": "<script>alert(1)",
    "style": "<style>*{a:b}",
    "template": "{{7*7}}{%x%}",
    "bidi": "a\u202egnp.b\u2069",
    "control": "b\r\n\tc\x7fd",
    "terminal": "\x1b[31m\x1b]0;P\x07",
    "formula": "=cmd|'C'!A0",
    "formula2": "@SUM(1+1)*cmd",
    "entity": "&lt;b&gt;&#60;",
    "long": "L" * 200,
}
"""File names: no slash, no NUL, at most 255 bytes; the first 15 bytes become the comm."""

ARGUMENTS = [
    PAYLOAD, "</style></script><script>document.title='PWNED'</script>", "=cmd|' /C calc'!A0", "\u202e\x1b[2J",
    "A" * 10_000,
]  # fmt: skip

LAUNCHER = """
import json, os, sys
children = []
for executable, arguments in json.load(open(sys.argv[1])):
    children.append(os.spawnv(os.P_NOWAIT, executable, arguments))
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


@pytest.fixture(scope="module")
def hostile(bpf: None) -> Iterator[Road]:  # noqa: F811
    """``bad.db``, its findings and its packet, rendered in a network namespace that has no network."""
    if compiler() is None:
        pytest.skip("gcc is not installed")
    with road() as r:
        plain = r.folder / "plain"
        plain.mkdir()
        program = build("calls", plain)
        library = build("cudart", plain)
        place = r.folder / "<img src=x>\u202e\x1b[5m=1+1"
        place.mkdir()
        runtime = Path(shutil.copy(library, place / library.name))
        todo = []
        for key, name in NAMES.items():
            executable = place / name
            shutil.copy(program, executable)
            options = [
                "--out",
                str(r.folder / f"{key}.truth"),
                "--cudart",
                str(runtime),
                "--tail-ms",
                str(SILENT_MS),
                "--pause-file",
                str(r.folder / "go"),
            ]
            todo.append((str(executable), [f"{name} {PAYLOAD}", *options, *ARGUMENTS]))
        (r.folder / "todo.json").write_text(json.dumps(todo))
        (r.folder / "launcher.py").write_text(LAUNCHER)
        launch: list[str | Path] = [sys.executable, "-I", r.folder / "launcher.py", r.folder / "todo.json"]
        session = Session(["--out", r.folder / "bad.db", "--", *launch], r.env)
        session.wait_for(r.folder / "bad.db.receipt")
        r.wait_for_probes("bad", len(NAMES))
        (r.folder / "go").touch()
        code, said = session.result()
        assert code == 0, said
        r.findings("bad")
        offline = ("unshare", "-n") if shutil.which("unshare") else ()
        r.run("report", "bad.findings.json", "--out", "packet", prefix=offline)
        yield r


def comm(name: str) -> str:
    """What the kernel calls a process of that file name; bytes that are cut are lone surrogates."""
    return os.fsdecode(os.fsencode(name)[:COMM_BYTES])


def shown(name: str) -> str:
    """The same as a reader sees it."""
    return printable(comm(name))


def check_inert(text: str) -> None:
    """Nothing a terminal would obey: no control, format or bidirectional character, but line ends."""
    bad = {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")}
    assert bad == set(), [f"U+{ord(c):04X}" for c in bad]


def test_hostile_names_are_in_the_bundle_as_they_are(hostile: Road) -> None:
    """Evidence is not prettified: comm, executable, arguments and library path are what the kernel said."""
    rows = hostile.query("bad", "SELECT comm, exe, command_line FROM processes WHERE op = 'found'")
    by_name = {Path(r["exe"]).name: r for r in rows if r["exe"]}
    for name in NAMES.values():
        row = by_name[name]
        assert row["comm"].encode("utf-8", "surrogateescape") == comm(name).encode("utf-8", "surrogateescape")
        assert row["command_line"].startswith(f"{name} {PAYLOAD}")
        assert len(os.fsencode(row["command_line"])) <= 4096
    paths = {r["path"] for r in hostile.query("bad", "SELECT path FROM libraries WHERE library = 'cudart'")}
    assert any("<img src=x>\u202e\x1b[5m=1+1" in p for p in paths)


def test_hostile_names_in_findings(hostile: Road) -> None:
    document = json.loads((hostile.folder / "bad.findings.json").read_bytes())
    silent = [f["values"]["process"] for f in document["findings"] if f["rule"] == "api_silence"]
    assert len(silent) == len(NAMES)
    for name in NAMES.values():
        assert any(comm(name) in text or shown(name) in text for text in silent)


@pytest.mark.parametrize(
    "command",
    [
        ("analyze", "bad.db", "--out", "again.json"), ("explain", "bad.db"), ("verify", "bad.db"),
        ("show", "bad.findings.json", "F1", "--bundle", "bad.db"),
        ("query", "bad.db", "SELECT comm, exe, command_line FROM processes"),
        ("query", "bad.db", "SELECT exe AS \"\u202e\x1b[31m\" FROM processes"),
        ("query", "bad.db", "SELECT * FROM processes", "--json"),
    ],
    ids=lambda c: " ".join(c[:2]).partition(" ")[0],
)  # fmt: skip
def test_hostile_names_in_a_terminal(hostile: Road, command: tuple[str, ...]) -> None:
    done = hostile.run(*command)
    check_inert(done.stdout)
    check_inert(done.stderr)
    if command[0] in ("analyze", "explain"):
        for name in NAMES.values():
            assert shown(name) in done.stdout.replace("\n      ", " ")


def test_hostile_names_in_csv(hostile: Road) -> None:
    """No cell that a spreadsheet would execute; the texts are there, with an apostrophe before a formula."""
    sql = "SELECT comm, exe, command_line FROM processes WHERE op = 'found'"
    out = hostile.run("query", "bad.db", sql, "--csv").stdout
    check_inert(out.replace("\r\n", "\n"))
    header, *rows = list(csv.reader(io.StringIO(out, newline="")))
    assert header == ["comm", "exe", "command_line"]
    cells = [cell for row in rows for cell in row]
    assert [c for c in cells if c[:1] in tuple("=+-@|%\t\r\n")] == []
    assert "'=cmd|'C'!A0" in cells
    assert "'@SUM(1+1)*cmd" in cells


class Page(HTMLParser):
    """Elements, their attributes, and text outside of script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._raw = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(k, v or "") for k, v in attrs]
        self._raw = tag if tag in ("script", "style") else self._raw

    def handle_endtag(self, tag: str) -> None:
        self._raw = "" if tag == self._raw else self._raw

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text += data


def test_hostile_names_in_html(hostile: Road) -> None:
    raw = (hostile.folder / "packet" / "report.html").read_text("utf-8")
    check_inert(raw)
    page = Page()
    page.feed(raw)
    assert page.elements.count("script") == 1
    assert page.elements.count("style") == 1
    assert {"img", "link", "iframe", "object", "embed", "base", "form", "audio", "video"}.isdisjoint(page.elements)
    assert [a for a in page.attributes if a[0].startswith("on") or a[0] in ("src", "srcset", "style", "action")] == []
    assert [v for k, v in page.attributes if k == "href" and not v.startswith("#")] == []
    assert [v for k, v in page.attributes if k == "content" and v.startswith("default-src 'none'; ")] != []
    for name in NAMES.values():
        assert shown(name) in page.text, name
    assert "{{7*7}}{%x%}" in page.text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_hostile_names_in_a_browser(hostile: Road, tmp_path: Path) -> None:
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=3000", "--dump-dom", f"file://{hostile.folder / 'packet' / 'report.html'}"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "</html>" in done.stdout
    assert "<title>PWNED" not in done.stdout
    assert "<img" not in done.stdout
    assert "Refused to" not in done.stderr, "there was nothing that the policy had to refuse"


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs poppler-utils")
def test_hostile_names_in_pdf(hostile: Road) -> None:
    pdf = hostile.folder / "packet" / "report.pdf"
    said = subprocess.run(["pdftotext", "-raw", pdf, "-"], capture_output=True, check=True).stdout.decode("utf-8")
    check_inert(said.replace("\f", "\n"))
    joined = "".join(said.split())
    for name in NAMES.values():
        assert "".join(shown(name).split()) in joined, name
    info = subprocess.run(["pdfinfo", pdf], capture_output=True, text=True, check=True).stdout
    assert "JavaScript:      no" in info
    urls = subprocess.run(["pdfinfo", "-url", pdf], capture_output=True, text=True, check=True).stdout
    assert urls.split() == ["Page", "Type", "URL"]
    assert hostile.run("verify", "packet").stdout.startswith("VERIFIED  ")
