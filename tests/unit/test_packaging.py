"""The units, users and folders of packaging/: what systemd makes of them, and that they say what is documented."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gpuaudit.capture.capabilities import number_of
from gpuaudit.capture.capability_needs import at_start
from gpuaudit.capture.policy_file import PolicyFile
from gpuaudit.capture.privileges import RECORDER_USERS
from gpuaudit.capture.site_policy import SitePolicy
from gpuaudit.cli.capture import command as capture_command
from gpuaudit.cli.values import Duration

PACKAGING = Path(__file__).parents[2] / "packaging"
SERVICES = ("gpu-audit.service", "gpu-audit@.service")
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")


def options_of(unit: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=True, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    text = (PACKAGING / "systemd" / unit).read_text()
    several = iter(range(10))  # lines that may stand more than once
    text = re.sub(r"^(Condition\w+|DeviceAllow)=", lambda m: f"{m[1]}{next(several)}=", text, flags=re.MULTILINE)
    parser.read_string(text)
    return dict(parser["Service"])


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with a program that is there in the place of audit's."""
    for path in (PACKAGING / "systemd").iterdir():
        text = path.read_text().replace("/opt/gpu-audit/bin/audit", "/bin/true")
        (tmp_path / path.name).write_text(re.sub(r"^(User|Group)=.*\n", "", text, flags=re.MULTILINE))
    return tmp_path


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", [*SERVICES, "gpu-audit@.timer"])
def test_systemd_understands_every_line(installed: Path, unit: str) -> None:
    path = installed / unit
    if "@" in unit:
        path = installed / unit.replace("@", "@10m")
        path.write_text((installed / unit).read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [x for x in done.stderr.splitlines() if "gpu-audit" in x and "ConditionPathExists" not in x]
    assert said == []


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", SERVICES)
def test_systemd_calls_the_sandbox_tight(installed: Path, unit: str) -> None:
    """Of the exposure that is left most are the capabilities themselves; 9.6 is what a unit without a sandbox has."""
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=45", str(installed / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-400:] + done.stderr[-400:]


@pytest.mark.parametrize("unit", SERVICES)
def test_it_has_the_capabilities_of_the_table(unit: str) -> None:
    options = options_of(unit)
    ambient = options["AmbientCapabilities"].split()
    assert ambient == options["CapabilityBoundingSet"].split()
    assert at_start() - set(ambient) == {"CAP_SYS_RESOURCE"}  # which LimitMEMLOCK makes needless
    assert options["LimitMEMLOCK"] == "infinity"
    assert set(ambient) <= at_start()
    assert all(number_of(name) >= 0 for name in ambient)


def test_both_services_differ_in_what_they_are_for_alone() -> None:
    one, timed = (options_of(unit) for unit in SERVICES)
    different = {k for k in one.keys() | timed.keys() if one.get(k) != timed.get(k)}
    assert different == {"ExecStart", "Type", "TimeoutStartSec"}


@pytest.mark.parametrize("unit", SERVICES)
def test_the_command_line_is_one_that_audit_takes(unit: str) -> None:
    words = options_of(unit)["ExecStart"].replace("%i", "10m").split()
    assert words[:2] == ["/opt/gpu-audit/bin/audit", "capture"]
    context = capture_command.make_context("capture", words[2:])
    assert Duration().convert(context.params["duration_s"], None, None) <= 7 * 86_400
    assert context.params["policy_path"] == Path("/etc/gpu-audit/policy.toml")


def test_users_and_folders() -> None:
    users = re.findall(r"^u (\S+)", (PACKAGING / "sysusers.d/gpu-audit.conf").read_text(), re.MULTILINE)
    assert users == ["gpu-audit", "gpu-audit-recorder"]
    assert RECORDER_USERS[0] == "gpu-audit-recorder"
    folders = re.findall(r"^d (\S+)\s+(\S+) (\S+)", (PACKAGING / "tmpfiles.d/gpu-audit.conf").read_text(), re.MULTILINE)
    assert ("/var/lib/gpu-audit/keys", "0700", "gpu-audit") in folders
    for unit in SERVICES:
        options = options_of(unit)
        assert (options["User"], options["WorkingDirectory"]) == ("gpu-audit", "/var/lib/gpu-audit")
        assert options["Environment"] == "GPU_AUDIT_KEYS=/var/lib/gpu-audit/keys"


def test_the_policy_that_is_shipped_is_one() -> None:
    policy = SitePolicy.load(PACKAGING / "policy.toml")
    units = set(options_of(SERVICES[0])["AmbientCapabilities"].split())
    assert policy.allowed_capabilities() == units
    denied = {(v.kind, v.name) for v in policy.verdicts() if not v.allowed}
    assert denied == {("capability", "CAP_SYS_RESOURCE"), ("remote engines", "--allow-remote")}
    commented = re.sub(r"^# (?=\[|deny|max_duration)", "", (PACKAGING / "policy.toml").read_text(), flags=re.MULTILINE)
    assert SitePolicy.of(PolicyFile(commented.encode(), "policy.toml")).max_duration_s == 12 * 3600
