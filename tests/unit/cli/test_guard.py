"""Every end of a command is one line on stderr and a status of the documented list."""

from __future__ import annotations

import errno
from collections.abc import Callable

import click
import pytest

from gpuaudit.bundle import errors
from gpuaudit.cli.guard import run
from gpuaudit.cli.main import audit


def _raising(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("make", "status", "says"),
    [
        (lambda: errors.NegativeAnswer("no"), 1, "no"),
        (lambda: errors.UsageError("a", hint="do b"), 2, "a; do b"),
        (lambda: errors.OutputExists("x exists", hint="use --force"), 2, "use --force"),
        (lambda: errors.InputUnusable("bad"), 3, "bad"),
        (lambda: errors.BundleInvalid("leaf 3"), 3, "leaf 3"),
        (lambda: errors.HostUnfit("no BTF"), 4, "no BTF"),
        (lambda: errors.Incomplete("nvml missing"), 5, "nvml missing"),
        (KeyboardInterrupt, 130, "interrupted"),
        (click.Abort, 130, "interrupted"),
        (lambda: OSError(errno.ENOSPC, "No space left on device", "/mnt/full"), 4, "/mnt/full: No space left"),
        (lambda: FileNotFoundError(errno.ENOENT, "No such file or directory", "x.db"), 3, "x.db: No such file"),
        (lambda: ModuleNotFoundError("No module", name="duckdb"), 4, "pip install 'gpu-audit[analyze]'"),
        (lambda: ModuleNotFoundError("No module", name="weasyprint.text"), 4, "pip install 'gpu-audit[report]'"),
        (lambda: KeyError("leaf"), 70, "GPU_AUDIT_TRACEBACK=1"),
        (lambda: errors.AuditError("unclassified"), 70, "unclassified"),
    ],
)
def test_each_error_has_its_status_and_one_line(
    make: Callable[[], BaseException], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(_raising(make()), []) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_text_from_evidence_in_a_message_is_inert(capsys: pytest.CaptureFixture[str]) -> None:
    run(_raising(errors.InputUnusable("process '\x1b[2J\n\u202eevil'")), [])
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\u202e" not in err
    assert len(err.strip().splitlines()) == 1


def test_a_name_cannot_pass_itself_off_as_an_escape_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    run(_raising(errors.InputUnusable("process '\\u{1b}'")), [])
    assert "process '\\u{5c}u{1b}'" in capsys.readouterr().err


def test_traceback_only_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run(_raising(KeyError("x")), [])
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("GPU_AUDIT_TRACEBACK", "1")
    assert run(_raising(KeyError("x")), []) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["verfy"], "did you mean 'verify'?"),
        (["frobnicate"], "there are: capture, import, analyze"),
        (["capture", "--outt", "x"], "--out"),
        (["capture", "--duration", "never"], "write 90, 90s, 5m or 2h"),
        (["capture", "--duration", "0"], "above 0"),
        (["verify"], "PATH"),
        (["--nope"], "--nope"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_what_is_right(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(audit, args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert "--help" in err


def test_help_and_version_go_to_stdout_and_end_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(audit, ["--help"]) == 0
    assert "capture" in capsys.readouterr().out
    assert run(audit, ["--version"]) == 0
    assert capsys.readouterr().out.startswith("gpu-audit")
