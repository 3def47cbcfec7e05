"""Bad input at the command line: one clear line with what to do, the right exit code, nothing lost, no traceback."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gpuaudit.bundle.sealfile import path_beside
from gpuaudit.bundle.tables import TABLES
from tests.bundles import MemorySigner, gap_rows, open_writer
from tests.commands import audit, audit_here, check_refused, environment

SCENARIO = ("capture", "--synthetic", "late-rank", "--quiet")


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sealed bundle, its findings, and the keys that made them."""
    folder = tmp_path_factory.mktemp("genuine")
    env = environment(folder / "keys")
    for args in ((*SCENARIO, "--out", "a.db"), ("analyze", "a.db")):
        done = audit(*args, env=env, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(genuine: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(genuine, tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def small(tmp_path: Path, signer: MemorySigner) -> Path:
    """A folder with a sealed bundle that is analysed in a moment, its findings, and keys."""
    writer = open_writer(tmp_path / "a.db", signer)
    writer.append_segment(TABLES["gaps"], gap_rows(20), seen=20, written=20, lost=0)
    writer.seal({"gaps": {"seen": "20", "written": "20", "lost": "0"}})
    writer.close()
    env = environment(tmp_path / "keys")
    for done in (audit("keys", "init", env=env), audit_here("analyze", "a.db", env=env, cwd=tmp_path)):
        assert done.returncode == 0, done.stderr
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


READERS = (
    ("verify", "{}"),
    ("verify", "--explain", "{}"),
    ("analyze", "{}"),
    ("explain", "{}"),
    ("query", "{}", "SELECT 1"),
    ("show", "a.findings.json", "F1", "--bundle", "{}"),
)

NO_BUNDLES = {
    "nothing": b"",
    "text": b"not a bundle\n",
    "binary": bytes(range(256)) * 64,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(5000),
    "the magic alone": b"SQLite format 3\0",
}


# Each reader in a process of its own here; what follows asks them in this one.
@pytest.mark.parametrize(
    ("args", "name"), [*((READERS[0], name) for name in NO_BUNDLES), *((args, "binary") for args in READERS[1:])]
)
def test_what_is_not_a_bundle(folder: Path, args: tuple[str, ...], name: str) -> None:
    (folder / "bad.db").write_bytes(NO_BUNDLES[name])
    before = digests(folder)
    done = audit(*(a.format("bad.db") for a in args), env=environment(folder / "keys"), cwd=folder)
    check_refused(done, 3, "bad.db")
    assert digests(folder) == before


@pytest.mark.parametrize("args", READERS, ids=" ".join)
def test_a_bundle_that_is_not_there(folder: Path, args: tuple[str, ...]) -> None:
    done = audit_here(*(a.format("absent.db") for a in args), env=environment(folder / "keys"), cwd=folder)
    check_refused(done, 3, "absent.db", "No such file")


@pytest.mark.parametrize("args", READERS, ids=" ".join)
def test_another_format_version(folder: Path, args: tuple[str, ...]) -> None:
    path_beside(folder / "a.db").unlink()
    db = sqlite3.connect(folder / "a.db")
    db.execute("PRAGMA user_version=2")
    db.close()
    done = audit_here(*(a.format("a.db") for a in args), env=environment(folder / "keys"), cwd=folder)
    check_refused(done, 3, "version 2")


@pytest.mark.parametrize("args", READERS[:1] + READERS[2:], ids=" ".join)
def test_a_bundle_with_one_changed_byte(folder: Path, args: tuple[str, ...]) -> None:
    data = bytearray((folder / "a.db").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "a.db").write_bytes(data)
    done = audit_here(*(a.format("a.db") for a in args), env=environment(folder / "keys"), cwd=folder)
    check_refused(done, 3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "findings"),
        (b"{}", "findings"),
        (b'{"schema":"gpu-audit/findings/99"}', "findings"),
        (b"[" * 100_000, "findings"),
        (b'{"a":1,"a":2}', "findings"),
        (b"\xff\xfe\x00", "findings"),
    ],
)
def test_what_is_not_a_findings_document(folder: Path, content: bytes, says: str) -> None:
    (folder / "bad.json").write_bytes(content)
    env = environment(folder / "keys")
    check_refused(audit("report", "bad.json", "--out", "packet", env=env, cwd=folder), 3, says)
    assert not (folder / "packet").exists()
    check_refused(audit_here("show", "bad.json", "F1", "--bundle", "a.db", env=env, cwd=folder), 3, says)


def test_keys_that_are_missing_or_none(folder: Path) -> None:
    env = environment(folder / "keys")
    check_refused(audit("keys", "show", env=environment(folder / "none"), cwd=folder), 4, "audit keys init")
    check_refused(audit_here("verify", "a.db", "--key", "absent.pem", env=env, cwd=folder), 3, "absent.pem")
    (folder / "bad.pem").write_text("not a key")
    check_refused(audit_here("verify", "a.db", "--key", "bad.pem", env=env, cwd=folder), 3, "bad.pem", "PEM")
    check_refused(audit_here("verify", "a.db", "--receipt", "bad.pem", env=env, cwd=folder), 3, "not a start receipt")


def test_without_the_key_that_signed_it_the_signer_is_unknown(folder: Path) -> None:
    done = audit_here("verify", "a.db", env=environment(folder / "none"), cwd=folder)
    assert done.returncode == 1
    assert done.stdout.startswith("UNKNOWN-SIGNER")


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("frobnicate",), 2, "unknown command"),
        (("veryfi", "a.db"), 2, "did you mean 'verify'?"),
        (("verify", "a.db", "--nonsense"), 2, "--nonsense"),
        (("analyze", "a.db", "--rate", "cheap"), 2, "price per GPU-hour"),
        (("capture", "--synthetic", "no-such-scenario"), 2, "late-rank"),
        (("capture", "--source", "tea"), 2, "cuda"),
        (("capture", "--pid", "4194304"), 2, "4194304"),
        (("capture", "--stack-threshold", "nan"), 2, "between 0 and an hour"),
        (("capture", "--stack-threshold", "1e30"), 2, "between 0 and an hour"),
        (("capture", "--source", "nvml", "--", "/no/such/program"), 2, "/no/such/program"),
        (("capture", "--source", "nvml", "--out", "/no/such/folder/a.db"), 2, "mkdir -p"),
        (("show", "a.findings.json", "Z9", "--bundle", "a.db"), 2, "Z9"),
        (("query", "a.db", "SELECT * FROM no_such_table"), 2, "no_such_table"),
        (("query", "a.db", "COPY (SELECT 1) TO 'stolen.csv'"), 2, ""),
        (("query", "a.db", "SELECT * FROM read_csv('/etc/passwd')"), 2, ""),
        (("verify", "keys", "--receipt", "a.db.receipt"), 2, "folder"),
        (("verify", "a.db", "--bundle", "a.db"), 2, "packet"),
        (("verify", "keys"), 3, "packet"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_request_that_makes_no_sense(folder: Path, args: tuple[str, ...], status: int, says: str) -> None:
    before = digests(folder)
    ask = audit if args[0] == "capture" else audit_here
    check_refused(ask(*args, env=environment(folder / "keys"), cwd=folder), status, says)
    assert digests(folder) == before


def test_outputs_with_other_content_are_kept(small: Path) -> None:
    env = environment(small / "keys")
    (small / "packet").mkdir()
    (small / "packet" / "letter.txt").write_text("mine")
    (small / "a.findings.json").write_text("mine")
    before = digests(small)
    check_refused(audit(*SCENARIO, "--out", "a.db", env=env, cwd=small), 2, "a.db exists", "--force")
    check_refused(audit_here("analyze", "a.db", env=env, cwd=small), 2, "a.findings.json exists", "--force")
    check_refused(audit_here("analyze", "a.db", "--out", "a.db", env=env, cwd=small), 2, "a.db", "")
    assert digests(small) == before
    assert audit_here("analyze", "a.db", "--force", env=env, cwd=small).returncode == 0
    refused = audit("report", "a.findings.json", "--out", "packet", "--force", env=env, cwd=small)
    check_refused(refused, 2, "packet")
    assert (small / "packet" / "letter.txt").read_text() == "mine"


def test_an_output_with_the_same_content_is_no_conflict(small: Path) -> None:
    env = environment(small / "keys")
    assert audit_here("analyze", "a.db", "--out", "f.json", env=env, cwd=small).returncode == 0
    before = (small / "f.json").stat().st_mtime_ns
    assert audit_here("analyze", "a.db", "--out", "f.json", env=env, cwd=small).returncode == 0
    assert (small / "f.json").stat().st_mtime_ns == before


def test_an_output_that_cannot_be_written(small: Path) -> None:
    env = environment(small / "keys")
    check_refused(audit_here("analyze", "a.db", "--out", "no/such/f.json", env=env, cwd=small), 3, "no/such")
    full = audit_here("analyze", "a.db", "--out", "/dev/full", env=env, cwd=small)
    check_refused(full, 2, "/dev/full")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to hide the kernel's BTF in a mount namespace")
def test_a_kernel_without_btf(folder: Path) -> None:
    hide = 'mount -t tmpfs none /sys/kernel/btf && mount -t tmpfs none /boot && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", hide, "sh")
    env = environment(folder / "keys")
    done = audit("capture", "--duration", "1", "--out", "b.db", env=env, cwd=folder, prefix=prefix)
    check_refused(done, 4, "BTF")
    assert not list(folder.glob("b.db*"))
    checked = audit("check", env=env, cwd=folder, prefix=prefix)
    assert checked.returncode == 4
    assert "NO  kernel BTF" in checked.stdout


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    sql = "SELECT * FROM cuda_calls"
    script = f'"$0" -m gpuaudit.cli.main query a.db "{sql}" --csv | head -n 1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable], env=environment(folder / "keys"), cwd=folder, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "141"
    assert done.stdout.startswith("start_ns")
