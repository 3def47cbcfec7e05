"""``audit keys``: made once, shown with fingerprints, exported without their private half."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from gpuaudit.cli.guard import run
from gpuaudit.cli.main import audit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))
    return tmp_path / "keys"


def _json(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert run(audit, args) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_init_twice_makes_keys_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = _json(["keys", "init", "--json"], capsys)
    second = _json(["keys", "init", "--json"], capsys)
    assert "identity.pem" in str(first["made"])
    assert second["made"] == []
    assert first["identity_sha256"] == second["identity_sha256"]
    assert (folder / "identity.pem").stat().st_mode & 0o777 == 0o600


def test_the_fingerprint_shown_is_that_of_the_exported_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(audit, ["keys", "init"])
    capsys.readouterr()
    shown = _json(["keys", "show", "--json"], capsys)
    assert run(audit, ["keys", "export", "--identity", "--public"]) == 0
    pem = capsys.readouterr().out
    assert "PRIVATE" not in pem
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"], input=pem.encode(), capture_output=True, check=True
    ).stdout
    digest = subprocess.run(["sha256sum"], input=der, capture_output=True, check=True).stdout.split()[0].decode()
    assert shown["identity_sha256"] == digest
    assert run(audit, ["keys", "export", "--report-signer", "--public"]) == 0
    assert capsys.readouterr().out.startswith("-----BEGIN CERTIFICATE-----")


def test_show_makes_no_key_and_says_how_to(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(audit, ["keys", "show"]) == 4
    assert "audit keys init" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["keys", "export", "--identity"], "never exported"),
        (["keys", "export", "--public"], "--identity or --report-signer"),
        (["keys", "shwo"], "shwo"),
    ],
)
def test_an_unclear_request_is_refused(
    args: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(audit, args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err


def test_a_private_key_that_others_can_read_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(audit, ["keys", "init"])
    (folder / "identity.pem").chmod(0o644)
    capsys.readouterr()
    assert run(audit, ["keys", "show"]) == 4
    assert "chmod 600" in capsys.readouterr().err
