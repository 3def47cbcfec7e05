"""The one family of errors a user can meet, and the exit code each of them means.

A message says what failed, on which object, what was got and what was expected; ``hint`` says what to do next. The
command line prints both on one line and exits with ``exit_code``; no user ever sees a traceback for bad input.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_DONE = 0
EXIT_NEGATIVE = 1
EXIT_USAGE = 2
EXIT_UNUSABLE = 3
EXIT_ENVIRONMENT = 4
EXIT_INCOMPLETE = 5
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130


class AuditError(Exception):
    """Root of every error raised on purpose."""

    exit_code: ClassVar[int] = EXIT_INTERNAL

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class NegativeAnswer(AuditError):
    """The question was answered, and the answer is no: does not verify, does not reproduce."""

    exit_code = EXIT_NEGATIVE


class UsageError(AuditError):
    """The command cannot be carried out as it was given."""

    exit_code = EXIT_USAGE


class InputUnusable(AuditError):
    """An input file exists but cannot be used: wrong version, missing part, not what it says it is."""

    exit_code = EXIT_UNUSABLE


class BundleInvalid(InputUnusable):
    """The bytes are not a bundle, or not the bundle that was sealed. Hostile bytes always end here."""


class OutputExists(UsageError):
    """An output exists already with other content, and ``--force`` was not given."""


class HostUnfit(AuditError):
    """This host lacks something: a privilege, a kernel feature, a library, disk space."""

    exit_code = EXIT_ENVIRONMENT


class Incomplete(AuditError):
    """Done, but with parts missing, where ``--strict`` asked for all of them."""

    exit_code = EXIT_INCOMPLETE
