"""``audit check``: what can be captured here, and is this tool what was installed?"""

from __future__ import annotations

from pathlib import Path

import click

from gpuaudit.bundle.errors import EXIT_ENVIRONMENT, EXIT_NEGATIVE
from gpuaudit.cli.output import json_option, print_json, print_line
from gpuaudit.cli.waiting import waiting


@click.command()
@click.option("--self", "itself", is_flag=True, help="Check the installed files against the wheel's RECORD instead.")
@click.option("--policy", "policy_path", metavar="FILE", type=click.Path(path_type=Path),
              help="Compare what a capture needs with what this site's policy allows, instead.")  # fmt: skip
@json_option
def command(itself: bool, policy_path: Path | None, as_json: bool) -> int:
    """Say what this host can capture, by really loading and attaching each probe, and why not where not.

    Status 0: everything can be captured. 4: something cannot; each line says why and what to do. With --self, status 1
    means that a file differs from the installed wheel, or that there is no wheel to compare with; with --policy, that
    the site denies something that a capture would do.

    \b
    Examples:
      sudo audit check
      audit check --self
      audit check --policy /etc/gpu-audit/policy.toml
    """
    if policy_path is not None:
        if itself:
            raise click.UsageError("--self and --policy are two questions: ask one of them")
        return check_policy(policy_path, as_json)
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


def check_policy(path: Path, as_json: bool) -> int:
    """Print a verdict for everything that a capture needs, and what else stands in the file."""
    from gpuaudit.capture.policy_file import PolicyFile
    from gpuaudit.capture.site_policy import SitePolicy

    file = PolicyFile.open(path)
    policy = SitePolicy.of(file)
    verdicts = list(policy.verdicts())
    denied = sum(not v.allowed for v in verdicts)
    if as_json:
        print_json({
            "sha256": policy.sha256, "max_duration_s": policy.max_duration_s, "denied": denied,
            "verdicts": [{"kind": v.kind, "name": v.name, "allowed": v.allowed, "reason": v.reason} for v in verdicts],
        })  # fmt: skip
        return EXIT_NEGATIVE if denied else 0
    for v in verdicts:
        print_line(f"{'ok' if v.allowed else 'NO':<3} {v.kind} {v.name}{v.reason and ': ' + v.reason}")
    if policy.max_duration_s is not None:
        print_line(f"    a capture may last {policy.max_duration_s:g} s")
    if file.has_thresholds:
        print_line("    [thresholds] is for audit analyze --policy, and not looked at here")
    print_line(f"{denied} of {len(verdicts)} denied by {policy.name}, SHA-256 {policy.sha256}")
    return EXIT_NEGATIVE if denied else 0


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
