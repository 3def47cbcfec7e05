"""``audit check``: what can be captured here, and is this tool what was installed?"""

from __future__ import annotations

import click

from gpuaudit.bundle.errors import EXIT_ENVIRONMENT, EXIT_NEGATIVE
from gpuaudit.cli.output import json_option, print_json, print_line
from gpuaudit.cli.waiting import waiting


@click.command()
@click.option("--self", "itself", is_flag=True, help="Check the installed files against the wheel's RECORD instead.")
@json_option
def command(itself: bool, as_json: bool) -> int:
    """Say what this host can capture, by really loading and attaching each probe, and why not where not.

    Status 0: everything can be captured. 4: something cannot; each line says why and what to do. With --self, status 1
    means that a file differs from the installed wheel, or that there is no wheel to compare with.

    \b
    Examples:
      sudo audit check
      audit check --self
    """
    return check_self(as_json) if itself else check_capture(as_json)


def check_capture(as_json: bool) -> int:
    """Try every probe and source of this host and print one line each."""
    from gpuaudit.capture.check import check_host

    with waiting("attaching every probe once"):
        results = check_host()
    if as_json:
        print_json([{"name": r.name, "ok": r.ok, "detail": r.detail, "hint": r.hint} for r in results])
    else:
        for r in results:
            hint = f"; {r.hint}" if r.hint and not r.ok else ""
            print_line(f"{'ok' if r.ok else 'NO':<3} {r.name}: {r.detail}{hint}")
    return 0 if all(r.ok for r in results) else EXIT_ENVIRONMENT


def check_self(as_json: bool) -> int:
    """Compare the installed files with the wheel's RECORD and print every difference."""
    from gpuaudit.cli.installed import check_installed

    found = check_installed()
    if as_json:
        print_json({
            "ok": found.ok, "version": found.version, "location": found.location, "editable": found.editable,
            "files": found.files, "problems": list(found.problems),
        })  # fmt: skip
        return 0 if found.ok else EXIT_NEGATIVE
    for problem in found.problems:
        print_line(f"NO  {problem}")
    if found.editable:
        print_line(
            f"gpu-audit {found.version} is an editable installation: its files are those of a source tree, which no "
            "wheel's RECORD vouches for; not verified"
        )
    elif found.ok:
        print_line(
            f"ok  gpu-audit {found.version}: {found.files} files in {found.location} are as the wheel brought them"
        )
    else:
        print_line(
            f"gpu-audit {found.version}: {len(found.problems)} of {found.files} files are not as the wheel brought them"
        )
    return 0 if found.ok else EXIT_NEGATIVE
