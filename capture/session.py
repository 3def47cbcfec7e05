"""One capture from beginning to end: ``audit capture`` is the attacher, and starts the recorder as its child.

The attacher holds the privileges and the identity's private key: it loads and attaches the BPF programs, finds
processes, starts the workload, signs, and gives the finished bundle its name. Everything that is recorded goes through
the recorder (:mod:`gpuaudit.capture.recorder_main`).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gpuaudit.bundle import keys
from gpuaudit.bundle.canonical import Json
from gpuaudit.bundle.columns import readable
from gpuaudit.bundle.errors import Incomplete, UsageError
from gpuaudit.bundle.note import spki_sha256
from gpuaudit.bundle.tool import tool_facts
from gpuaudit.bundle.writer import MAX_CHALLENGE_CHARS
from gpuaudit.capture import host
from gpuaudit.capture.attacher import Attacher, Plan
from gpuaudit.capture.engine_desk import endpoints
from gpuaudit.capture.engine_endpoint import Endpoint
from gpuaudit.capture.launch import invoking_user, own_limits, resolve_command
from gpuaudit.capture.obey import capabilities_at_start, obeying
from gpuaudit.capture.options import CaptureOptions, CaptureResult, Status
from gpuaudit.capture.output import Output, default_name
from gpuaudit.capture.privileges import (
    check_command_of_another_user,
    limit_to,
    protect_memory,
    recorder_credentials,
)
from gpuaudit.capture.processes import why_not_followed
from gpuaudit.capture.redact import redact_arguments, redact_text
from gpuaudit.capture.rules import parse_rules
from gpuaudit.capture.scenario import Scenario, load_scenario
from gpuaudit.capture.source import BPF_SOURCES, SELECTABLE_SOURCES
from gpuaudit.capture.system_calls import parse_device

__all__ = ["CaptureOptions", "CaptureResult", "Status", "run_capture"]

MAX_STACK_THRESHOLD_MS = 3_600_000

_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def run_capture(
    options: CaptureOptions, *, status: Callable[[Status], None] | None = None, own_process: bool = False
) -> CaptureResult:
    """Capture, seal, and give the bundle its name.

    ``status`` hears of everything a person should see (:class:`Status`). Call it from the main thread: SIGINT, SIGTERM
    and SIGHUP end the capture cleanly while it runs. UsageError and OutputExists before anything is made; HostUnfit
    when the host lacks a privilege, a kernel feature or room; Incomplete under ``strict``. ``own_process``: this
    process is there for the capture alone, so it gives up, for good, every capability that it does not need.
    """
    tell = _careful(status)
    options = obeying(options)
    if own_process:
        limit_to(capabilities_at_start(options), final=False)
    limits = own_limits()
    engines = _check_options(options)
    scenario = load_scenario(options.synthetic) if options.synthetic else None
    user = None if scenario else invoking_user()
    command = resolve_command(options.command, user) if options.command else None
    if command and user:
        check_command_of_another_user()
    out = _absolute(options.out or Path(default_name(datetime.datetime.now(datetime.UTC))))
    receipt = _absolute(options.receipt_path) if options.receipt_path else out.with_name(out.name + ".receipt")
    owner = user.credentials if user else None
    output = Output(out, receipt, options.force, owner)
    output.check()
    identity, created = keys.load_identity(create=True)
    if created:
        tell(
            Status(
                "notice", f"made a new identity for this host: {spki_sha256(identity.public_key)} (SHA-256 of its SPKI)"
            )
        )
    protect_memory()
    recorder = None if scenario else recorder_credentials()
    facts = dict(scenario.host) if scenario else host.host_facts(identity.public_key)
    plan = Plan(
        options=options, output=output, identity=identity, recorder=recorder, command=command, user=user, limits=limits,
        host_facts=facts, open_body=_open_body(options, facts, scenario), scenario=scenario,
        capture_uuid=str(uuid.uuid4()), tell=tell, engines=engines, own_process=own_process,
    )  # fmt: skip
    result = replace(Attacher(plan).run(), identity_created=created)
    if options.strict and result.incomplete:
        raise Incomplete(
            f"{result.path} is sealed, but the capture is incomplete: {'; '.join(result.incomplete)}",
            hint="look at its gaps and losses, or capture without --strict",
        )
    return result


def _careful(status: Callable[[Status], None] | None) -> Callable[[Status], None]:
    """A terminal that was closed, or a reader that went away, is no reason to lose the evidence."""

    def tell(said: Status) -> None:
        with contextlib.suppress(OSError):
            if status is not None:
                status(said)

    return tell


def _open_body(options: CaptureOptions, facts: dict[str, object], scenario: Scenario | None) -> dict[str, object]:
    """Leaf 0, but for the GPUs and the state of the sources, which the recorder adds."""
    asked = {
        "duration_s": None if options.duration_s is None else str(options.duration_s), "pids": list(options.pids),
        "command": redact_arguments(options.command), "sources": list(options.sources), "synthetic": options.synthetic,
        "users": list(options.users), "comms": list(options.comms), "cgroups": list(options.cgroups),
        "exclude": list(options.excludes), "engines": [redact_text(u) for u in options.engines],
        "allow_remote": [redact_text(u) for u in options.allow_remote],
        "seed": options.seed if scenario else None, "site": options.site, "strict": options.strict,
        "policy_sha256": options.policy.sha256 if options.policy else None,
        "stack_threshold_ms": str(options.stack_threshold_ms), "stack_sample": options.stack_sample,
        "budget_per_s": options.budget_per_s, "ioctl_devices": list(options.ioctl_devices),
    }  # fmt: skip
    return {
        "host": facts, "options": _unicode(asked), "tool": tool_facts(), "synthetic": scenario is not None,
        "clock_hz": os.sysconf("SC_CLK_TCK"),
    }  # fmt: skip


def _unicode(value: Json) -> Json:
    """What was asked for, as canonical JSON can hold it: an argument may be any bytes."""
    if isinstance(value, dict):
        return {name: _unicode(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_unicode(v) for v in value]
    return readable(value) if isinstance(value, str) else value


def _absolute(path: Path) -> Path:
    return Path.cwd() / path


def _check_options(options: CaptureOptions) -> list[tuple[Endpoint, str]]:
    """The engines that are named; UsageError for what makes no sense."""
    unknown = [s for s in options.sources if s not in SELECTABLE_SOURCES]
    if unknown or not options.sources:
        raise UsageError(
            f"unknown source {unknown[0]!r}" if unknown else "no source was selected",
            hint=f"there are: {', '.join(SELECTABLE_SOURCES)}",
        )
    if options.duration_s is not None and not 0 < options.duration_s <= 7 * 86_400:
        raise UsageError(f"--duration {options.duration_s} is not between 0 and 7 days", hint="give seconds, like 60")
    if not 0 <= options.stack_threshold_ms <= MAX_STACK_THRESHOLD_MS:
        raise UsageError(
            f"--stack-threshold {options.stack_threshold_ms} is not between 0 and an hour", hint="give ms, like 1"
        )
    if options.command and options.pids:
        raise UsageError("a command and --pid cannot both be given", hint="capture one or the other")
    if options.synthetic and (options.command or options.pids):
        raise UsageError("a synthetic scenario watches no process", hint="leave out --pid and the command")
    _check_selection(options)
    if not _SITE.match(options.site):
        raise UsageError(f"--site {options.site!r:.80}: letters, digits, dot, hyphen and underscore, at most 64")
    challenge = options.challenge
    if len(challenge) > MAX_CHALLENGE_CHARS or not challenge.isprintable() or challenge != challenge.strip():
        raise UsageError(f"--challenge: at most {MAX_CHALLENGE_CHARS} printable characters on one line")
    for pid in options.pids:
        if why := why_not_followed(pid):
            raise UsageError(f"--pid {pid}: {why}", hint="ps -e lists processes")
    return _named_engines(options)


def _check_selection(options: CaptureOptions) -> None:
    """UsageError where processes are chosen in two ways, or by what does not exist."""
    by_property = {"--user": options.users, "--comm": options.comms, "--cgroup": options.cgroups}
    used = [name for name, values in by_property.items() if values]
    if used and (options.command or options.pids):
        other = "a command" if options.command else "--pid"
        raise UsageError(f"{used[0]} and {other} cannot both be given", hint="choose processes in one of the two ways")
    used += ["--exclude"] if options.excludes else []
    if used and (options.synthetic or not set(options.sources) & set(BPF_SOURCES)):
        why = "a synthetic scenario watches no process" if options.synthetic else "no source of processes was selected"
        raise UsageError(f"{used[0]} chooses nothing: {why}", hint=f"leave {used[0]} out")
    for device in options.ioctl_devices:
        parse_device(device)
    parse_rules(options.users, options.comms, options.cgroups, options.excludes)


def _named_engines(options: CaptureOptions) -> list[tuple[Endpoint, str]]:
    named = options.engines + options.allow_remote
    if named and (options.synthetic or "engines" not in options.sources):
        why = "a synthetic scenario has no engine" if options.synthetic else "the source engines was not selected"
        raise UsageError(f"{named[0]!r:.120} cannot be scraped: {why}")
    return endpoints(options.engines, options.allow_remote)
