"""``audit import``: recordings made by other tools, sealed into a bundle that is marked IMPORTED."""

from __future__ import annotations

import datetime
import re
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import click

from gpuaudit.cli.output import force_option, json_option, print_json, print_line
from gpuaudit.cli.values import Duration


class UtcTime(click.ParamType[int]):
    """A moment as ISO 8601 with its zone, in ns since 1970 UTC."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            moment = datetime.datetime.fromisoformat(str(value))
        except ValueError:
            moment = datetime.datetime.min
        if moment.tzinfo is None or moment.year < 1970:
            self.fail(f"{value!r} is no time with a zone; write 2026-11-22T05:00:00Z", param, ctx)
        since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return since // datetime.timedelta(microseconds=1) * 1000


class UtcOffset(click.ParamType[int]):
    """How far local time is ahead of UTC, as +02:00, in ns."""

    name = "offset"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([+-])(\d\d):?(\d\d)", str(value))
        minutes = int(match[2]) * 60 + int(match[3]) if match else -1
        if match is None or int(match[3]) > 59 or minutes > 14 * 60:
            self.fail(f"{value!r} is no offset from UTC; write +02:00 or -05:30", param, ctx)
        return (-1 if match[1] == "-" else 1) * minutes * 60_000_000_000


class Setting(click.ParamType[tuple[str, str]]):
    """KEY=VALUE."""

    name = "setting"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        match = re.fullmatch(r"([a-z][a-z0-9_]{0,63})=([^\x00-\x1f]{1,1024})", str(value))
        if match is None:
            self.fail(f"{value!r} is no KEY=VALUE; write max_num_seqs=32", param, ctx)
        return match[1], match[2]


@click.command(name="import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path),
              help="Bundle to write; FILE.db (of a .db FILE.bundle.db) beside the first unless given.")  # fmt: skip
@click.option("--site", default="local", show_default=True, help="Name of the operator in the bundle's origin.")
@click.option("--host", "hostname", help="Host the recordings were made on, as you know it.")
@click.option("--utc-offset", type=UtcOffset(), default="+00:00", show_default=True,
              help="How far local times in a log are ahead of UTC.")  # fmt: skip
@click.option("--start", "start_ns", type=UtcTime(), help="When a log without times began, with its zone.")
@click.option("--interval", "interval_s", type=Duration(), help="Time between the rounds of a log without times.")
@click.option("--setting", "settings", multiple=True, type=Setting(), metavar="KEY=VALUE",
              help="Setting of the engine that its metrics do not tell (max_num_seqs=32); repeatable.")  # fmt: skip
@force_option
@json_option
def command(
    *, files: tuple[Path, ...], out: Path | None, site: str, hostname: str | None, utc_offset: int,
    start_ns: int | None, interval_s: float | None, settings: tuple[tuple[str, str], ...], force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Seal recordings made by other tools into one bundle, marked IMPORTED, with the digests of the originals.

    Formats are told by content: polled metrics of an inference server (JSON lines with t, text, took_ms, gzip or not),
    nvidia-smi --query-gpu … --format=csv -l, dcgmi dmon, traces of the PyTorch profiler (Kineto JSON, gzip or not;
    the files of several ranks make one bundle), databases of Ingero (SQLite, schema 0.8 to 0.10), SQLite
    exports of Nsight Systems (nsys export --type sqlite), logs of the NCCL Inspector and traces of NCCL's example
    profiler, these by their documentation.
    What cannot be carried is listed, in the bundle too. The result is evidence that these files said so, and of nothing
    about this host.

    \b
    Examples:
      audit import vllm.jsonl.gz --out vllm.db
      audit import rank0.pt.trace.json.gz rank1.pt.trace.json.gz --out step.db
      audit import ingero.db --out incident.db
      audit import smi.csv --utc-offset +02:00
      audit import dmon.log --start 2026-11-22T05:00:00Z --interval 1s
    """
    from gpuaudit.capture.importers.model import Request
    from gpuaudit.capture.importers.run import NOT_RECORDED, ImportOptions, run_import

    request = Request(utc_offset, start_ns, None if interval_s is None else round(interval_s * 1_000_000_000), settings)
    options = ImportOptions(
        files=files, out=out or default_out(files[0]), force=force, site=site, hostname=hostname or NOT_RECORDED,
        request=request,
    )  # fmt: skip
    with _Progress() as progress:
        result = run_import(options, progress=progress.update)
    if as_json:
        print_json({k: str(v) if isinstance(v, Path) else v for k, v in asdict(result).items()})
        return
    print_line(f"bundle   {result.path} (IMPORTED)")
    print_line(f"receipt  {result.receipt_path}")
    print_line(f"origin   {result.origin}")
    print_line(f"root     {result.root_b64}, {result.size} leaves")
    for told in result.files:
        rows = told["rows"]
        assert isinstance(rows, dict)  # noqa: S101 - made by run_import
        counts = ", ".join(f"{t} {int(n):,}" for t, n in rows.items())
        print_line(f"file     {told['name']}: {told['format']}, sha256 {told['sha256']}; {counts}")
        for key, word in (("assumptions", "assumed"), ("not_carried", "left out"), ("unreadable_examples", "unread")):
            items = told[key]
            assert isinstance(items, list)  # noqa: S101 - made by run_import
            for item in items:
                print_line(f"{word:8} {item}")
        weaknesses = told["weaknesses"]
        assert isinstance(weaknesses, list)  # noqa: S101 - made by run_import
        for weakness in weaknesses:
            print_line(f"grade {weakness['grade']}  {weakness['text']}")
        if told["unreadable"] != "0":
            print_line(f"unread   {told['unreadable']} lines of {told['lines']}")


def default_out(first: Path) -> Path:
    """``smi.csv`` becomes ``smi.db``, ``vllm.jsonl.gz`` ``vllm.db``, ``a.db`` ``a.bundle.db``, beside the file."""
    stem = first.name.removesuffix(".gz")
    return first.with_name(stem.rsplit(".", 1)[0] + (".bundle.db" if stem.endswith(".db") else ".db"))


class _Progress:
    """A bar on a terminal's stderr while files are read."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("importing") if self._bar else None
        self._context = self._bar or nullcontext()

    def __enter__(self) -> _Progress:
        self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def update(self, name: str, done: int, total: int) -> None:  # noqa: ARG002 - a name could hold markup
        """How far the file at hand is read."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=max(total, 1))
