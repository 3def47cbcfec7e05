"""The last line of defence: every end of a command becomes one line on stderr and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

import click

from gpuaudit.bundle.errors import (
    EXIT_ENVIRONMENT,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_UNUSABLE,
    EXIT_USAGE,
    AuditError,
)
from gpuaudit.cli.output import note

EXIT_READER_GONE = 141
"""128 + SIGPIPE, what a shell reports for a program whose reader closed the pipe."""

TRACEBACK_VARIABLE = "GPU_AUDIT_TRACEBACK"

EXTRA_OF_MODULE = {
    "duckdb": "analyze", "pyarrow": "analyze", "fontTools": "report",
    "jinja2": "report", "weasyprint": "report", "pyhanko": "report", "pyhanko_certvalidator": "report",
}  # fmt: skip
"""Import name of an optional dependency → the extra of the package that brings it."""

_HOST_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE}


def run(command: click.Command, args: Sequence[str]) -> int:
    """Run ``command`` with ``args`` and return the exit status; nothing but a status leaves here.

    With GPU_AUDIT_TRACEBACK=1 in the environment an internal error also prints where it happened.
    """
    name = f"audit {args[0]}" if args and args[0] in getattr(command, "list_commands", lambda _: ())(None) else "audit"
    try:
        with command.make_context("audit", list(args)) as context:  # main() would swallow that the reader went away
            status = command.invoke(context)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _end(name, "interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Python flushes stdout once more at exit: give it a place to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_READER_GONE
    except Exception as error:
        return _explain(name, error)
    return status if isinstance(status, int) else 0


def _explain(name: str, error: Exception) -> int:
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    told = _told_by_click(name, error) or _told_by_us(error)
    if told is None:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exception(error, file=sys.stderr)
        what = f"{type(error).__name__}: {error}"
        told = f"internal error, a defect of gpu-audit: {what}; {TRACEBACK_VARIABLE}=1 shows where", EXIT_INTERNAL
    return _end(name, *told)


def _told_by_click(name: str, error: Exception) -> tuple[str, int] | None:
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else name
        return f"{error.format_message().rstrip('.')}; see '{path} --help'", EXIT_USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), EXIT_USAGE
    if isinstance(error, click.Abort):
        return "interrupted", EXIT_INTERRUPTED
    return None


def _told_by_us(error: Exception) -> tuple[str, int] | None:
    if isinstance(error, AuditError) and error.exit_code != EXIT_INTERNAL:
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        if module in EXTRA_OF_MODULE:
            what = f"{module} is not installed, and this command needs it"
            return f"{what}; pip install 'gpu-audit[{EXTRA_OF_MODULE[module]}]'", EXIT_ENVIRONMENT
    if isinstance(error, OSError) and error.filename is not None:
        status = EXIT_ENVIRONMENT if error.errno in _HOST_ERRNOS else EXIT_UNUSABLE
        return f"{os.fsdecode(error.filename)}: {error.strerror}", status
    return None


def _end(name: str, text: str, status: int) -> int:
    """One line: who, what, what to do. The text may quote evidence or file names; it is made inert."""
    note(f"{name}: {text}")
    return status
