"""``audit capture``: record evidence into a sealed bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuaudit.cli.output import cell, force_option, json_option, print_json, print_line
from gpuaudit.cli.values import Duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuaudit.capture.options import CaptureResult, Status


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--out", type=click.Path(path_type=Path), help="Bundle to write; audit-<host>-<utc>.db unless given.")
@click.option("--duration", "duration_s", type=Duration(),
              help="How long to record: 90, 90s, 5m, 2h; 60 s, or until the command ends, unless given.")  # fmt: skip
@click.option("--pid", "pids", type=click.IntRange(min=1), multiple=True, help="Only this process; may be repeated.")
@click.option("--cgroup", "cgroups", metavar="PATH", multiple=True,
              help="Only processes in this cgroup (version 2) and below, as /proc/PID/cgroup names it.")  # fmt: skip
@click.option("--user", "users", metavar="NAME|UID", multiple=True, help="Only processes of this user.")
@click.option("--comm", "comms", metavar="NAME", multiple=True,
              help="Only processes of this name (ps -o comm). --cgroup, --user and --comm may be repeated; a process "
                   "must meet one of each that is given, and its children are recorded with it.")  # fmt: skip
@click.option("--exclude", "excludes", metavar="KIND=VALUE", multiple=True,
              help="Never this process and its children: pid=N, cgroup=PATH, user=NAME or comm=NAME; may be "
                   "repeated.")  # fmt: skip
@click.option(
    "--source", "sources", multiple=True,
    help="Only this source (cuda, nccl, off_cpu, memory, block_io, tcp, ioctl, sockets, stacks, lifecycle, nvml, "
         "engines); may be repeated.",
)  # fmt: skip
@click.option("--engine", "engines", metavar="URL", multiple=True,
              help="Scrape this engine of this host: http://127.0.0.1:PORT, http://[::1]:PORT or unix:///PATH; may be "
                   "repeated. Servers of known kinds are found without it.")  # fmt: skip
@click.option("--allow-remote", "allow_remote", metavar="URL", multiple=True,
              help="Scrape this engine, which is neither loopback nor a Unix socket; the report says so.")  # fmt: skip
@click.option("--stack-threshold", "stack_threshold_ms", metavar="MS", type=click.FloatRange(min=0), default=1.0,
              show_default=True, help="Take the native and Python stacks of calls that take this long.")  # fmt: skip
@click.option("--stack-sample", metavar="N", type=click.IntRange(min=0, max=1 << 30), default=0, show_default=True,
              help="And of one in N of the other calls; 0: of none.")  # fmt: skip
@click.option("--budget", "budget_per_s", metavar="EVENTS_PER_S", type=click.IntRange(min=0, max=1 << 31),
              help="Rows of calls in a second; calls beyond, unless slow, are counted and added up. 0: every call is a "
                   "row, and may be lost.")  # fmt: skip
@click.option("--ioctl-device", "ioctl_devices", metavar="MAJOR[:TYPE]", multiple=True,
              help="Record ioctls on this character device too, with requests of this type (195:F), or of any; may be "
                   "repeated. The NVIDIA driver's are known.")  # fmt: skip
@click.option("--no-stacks", is_flag=True, help="Take no stacks; the calls are recorded all the same.")
@click.option(
    "--synthetic", metavar="SCENARIO", help="Record an embedded scenario instead of this host; needs no root."
)
@click.option(
    "--challenge", default="", help="Text chosen by the recipient, sealed into the first leaf against replay."
)
@click.option("--site", default="local", show_default=True, help="Name of the operator in the bundle's origin.")
@click.option("--receipt", "receipt_path", type=click.Path(path_type=Path),
              help="Where to save the start receipt; beside the bundle unless given.")  # fmt: skip
@click.option("--policy", "policy_path", metavar="FILE", type=click.Path(path_type=Path),
              help="The site's policy, in TOML: what it denies is not attached, and the evidence says so.")  # fmt: skip
@click.option("--strict", is_flag=True, help="End with status 5 if anything that should be recorded was not.")
@click.option("--quiet", "-q", is_flag=True, help="No live line; what was written is still printed.")
@force_option
@json_option
@click.argument("command_line", nargs=-1, metavar="[-- COMMAND [ARGS]...]", type=click.UNPROCESSED)
def command(
    *, out: Path | None, duration_s: float | None, pids: tuple[int, ...], sources: tuple[str, ...],
    cgroups: tuple[str, ...], users: tuple[str, ...], comms: tuple[str, ...], excludes: tuple[str, ...],
    engines: tuple[str, ...], allow_remote: tuple[str, ...], stack_threshold_ms: float, stack_sample: int,
    budget_per_s: int | None, ioctl_devices: tuple[str, ...], no_stacks: bool, synthetic: str | None,
    challenge: str, site: str, receipt_path: Path | None, policy_path: Path | None,
    strict: bool, quiet: bool, force: bool, as_json: bool,
    command_line: tuple[str, ...],
) -> int:  # fmt: skip
    """Record what this host's GPUs and the processes that use them really do, into one sealed file.

    Alone it watches the whole host for 60 s. With a COMMAND it starts the command as the user who called sudo, holds it
    until its libraries are probed, records until it ends, and ends with the status of the command (128 + n for signal
    n). Ctrl-C or SIGTERM ends a recording early, and the bundle is sealed all the same. A
    recording that was killed stays, as a proven prefix, in NAME.partial/; --force sets it aside as NAME.partial.1 and
    deletes nothing of it.

    \b
    Examples:
      sudo audit capture
      sudo audit capture --duration 5m --out train.db
      sudo audit capture --out train.db -- python train.py --epochs 1
      sudo audit capture --cgroup /kubepods.slice --exclude comm=dcgm-exporter --duration 10m
      sudo audit capture --duration 10m --engine http://127.0.0.1:8000 --out serving.db
      sudo audit capture --policy /etc/gpu-audit/policy.toml
      audit capture --synthetic late-rank --out demo.db
    """
    from gpuaudit.capture.privileges import import_numpy_without_threads

    import_numpy_without_threads()
    from gpuaudit.capture.options import CaptureOptions
    from gpuaudit.capture.session import run_capture
    from gpuaudit.capture.settings import BUDGET_PER_S
    from gpuaudit.capture.site_policy import SitePolicy
    from gpuaudit.capture.source import SELECTABLE_SOURCES

    chosen = tuple(s for s in sources or SELECTABLE_SOURCES if not (no_stacks and s == "stacks"))
    options = CaptureOptions(
        out=out, duration_s=duration_s, pids=pids, command=command_line, force=force, synthetic=synthetic,
        sources=chosen, challenge=challenge, site=site, receipt_path=receipt_path, strict=strict,
        engines=engines, allow_remote=allow_remote, users=users, comms=comms, cgroups=cgroups, excludes=excludes,
        stack_threshold_ms=stack_threshold_ms, stack_sample=stack_sample,
        budget_per_s=BUDGET_PER_S if budget_per_s is None else budget_per_s,
        ioctl_devices=ioctl_devices,
        policy=SitePolicy.load(policy_path) if policy_path else None,
    )  # fmt: skip
    with live_line(show=not quiet and not command_line) as show_status:
        result = run_capture(options, status=show_status, own_process=True)
    if as_json:
        print_json({k: str(v) if isinstance(v, Path) else v for k, v in asdict(result).items()})
    else:
        print_result(result)
    return exit_status(result.workload_status)


def exit_status(workload_status: int | None) -> int:
    """The status of ``audit capture`` from the workload's: its own exit code, 128 + n where signal n ended it."""
    if workload_status is None:
        return 0
    return workload_status if workload_status >= 0 else 128 - workload_status


def print_result(result: CaptureResult) -> None:
    """What was sealed, per table what was seen and lost, and what is missing."""
    print_line(f"bundle   {result.path}")
    print_line(f"receipt  {result.receipt_path}")
    print_line(f"origin   {result.origin}")
    print_line(
        f"root     {result.root_b64}, {result.size} leaves, sealed after {result.elapsed_s:,.1f} s ({result.ended_by})"
    )
    for table, counts in sorted(result.totals.items()):
        if counts.get("seen"):
            print_line(
                f"table    {table}: seen {counts['seen']:,}, written {counts['written']:,}, lost {counts['lost']:,}"
            )
    for source in result.sources:
        reason = f": {source['reason']}" if source.get("reason") else ""
        print_line(f"source   {source['source']}: {source['state']}{reason}")
    for sentence in result.incomplete:
        print_line(f"missing  {sentence}")
    if result.workload_status is not None:
        print_line(f"command  ended with status {result.workload_status}")


@contextmanager
def live_line(*, show: bool) -> Iterator[Callable[[Status], None]]:
    """A callback for the states of a capture: notices stay, the rest is one live line on a terminal's stderr.

    No live line where stderr is no terminal, or where a command shares the terminal and would be written over.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            """Rich would end the program; a capture whose reader went away goes on, and is sealed."""
            self.quiet = True

    console = Screen(stderr=True, highlight=False, soft_wrap=True)
    live = Live(Text(""), console=console, auto_refresh=False, transient=True) if show and console.is_terminal else None

    def on_status(status: Status) -> None:
        if status.phase in ("notice", "receipt"):
            for line in status.message.splitlines():
                console.print(Text(cell(line)))
        elif live is not None:
            text = Text(cell(status.line()), no_wrap=True, overflow="ellipsis")
            live.update(text, refresh=True)

    if live is None:
        yield on_status
        return
    with live:
        yield on_status
