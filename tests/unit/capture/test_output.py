"""Names of a capture: refused, made, published, handed over."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import HostUnfit, OutputExists, UsageError
from gpuaudit.capture.output import Output, default_name
from gpuaudit.capture.privileges import Credentials
from gpuaudit.capture.room import RESERVE_BYTES, Room

NOBODY = Credentials(65534, 65534)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: changes owners")


def output(tmp_path: Path, **options: object) -> Output:
    return Output(tmp_path / "a.db", tmp_path / "a.db.receipt", **options)  # type: ignore[arg-type]


def fill(out: Output) -> None:
    """As the recorder does, under its own user."""
    (out.partial / "bundle.db").write_bytes(b"bundle")
    (out.partial / "bundle.db.seal").write_bytes(b"seal")
    folder = out.partial.stat()
    for path in out.partial.iterdir():
        os.chown(path, folder.st_uid, folder.st_gid)


def test_default_name() -> None:
    name = default_name(datetime.datetime(2026, 11, 22, 1, 2, 3, tzinfo=datetime.UTC))
    assert re.fullmatch(r"audit-[A-Za-z0-9._-]+-20261122T010203Z\.db", name)


@pytest.mark.parametrize("name", ["a.db", "a.db.seal", "a.db.receipt", "a.db.partial"])
def test_what_exists_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExists) as e:
        output(tmp_path).check()
    assert name in str(e.value)
    assert e.value.hint
    assert (tmp_path / name).read_text() == "mine"


def test_force_replaces_files_but_not_links_or_directories(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("old")
    output(tmp_path, force=True).check()
    (tmp_path / "a.db").unlink()
    (tmp_path / "a.db").symlink_to("/etc/passwd")
    with pytest.raises(OutputExists):
        output(tmp_path, force=True).check()


def test_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Output(tmp_path / "no" / "a.db", tmp_path / "r").check()


def test_a_finished_bundle_gets_its_name(tmp_path: Path) -> None:
    out = output(tmp_path)
    out.check()
    out.create(None)
    fill(out)
    out.save_receipt("receipt\n")
    out.publish()
    out.close()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "a.db": "bundle", "a.db.seal": "seal", "a.db.receipt": "receipt\n",
    }  # fmt: skip
    assert out.path.stat().st_mode & 0o777 == 0o644


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = output(tmp_path)
    out.create(None)
    fill(out)
    out.path.write_text("somebody else's")
    with pytest.raises(OutputExists, match="appeared"):
        out.publish()
    assert out.path.read_text() == "somebody else's"
    assert (out.partial / "bundle.db").read_text() == "bundle"


def test_force_keeps_what_an_earlier_capture_left(tmp_path: Path) -> None:
    """It is evidence of something, and --force is about results."""
    for n in (1, 2):
        out = output(tmp_path, force=True)
        out.create(None)
        (out.partial / "bundle.db").write_text(f"capture {n}")
        out.close()  # as if killed
    out = output(tmp_path, force=True)
    out.create(None)
    assert list(out.partial.iterdir()) == []
    assert out.kept == tmp_path / "a.db.partial.2"
    kept = {p.parent.name: p.read_text() for p in tmp_path.glob("*/bundle.db")}
    assert kept == {"a.db.partial.1": "capture 1", "a.db.partial.2": "capture 2"}


def test_force_does_not_touch_a_capture_that_runs(tmp_path: Path) -> None:
    running = output(tmp_path, force=True)
    running.create(None)
    fill(running)
    with pytest.raises(OutputExists, match="a capture runs there"):
        output(tmp_path, force=True).create(None)
    running.publish()
    assert running.path.read_text() == "bundle"


def test_a_link_in_place_of_the_bundle_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    out = output(tmp_path, owner=NOBODY if os.geteuid() == 0 else None)
    out.create(None)
    (out.partial / "bundle.db.seal").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic link"):
        out.publish()
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.stat().st_uid == os.geteuid()


@as_root
def test_files_become_the_invoking_users_and_the_directory_the_recorders(tmp_path: Path) -> None:
    out = output(tmp_path, owner=NOBODY)
    out.create(NOBODY)
    assert out.partial.stat().st_uid == NOBODY.uid
    assert out.partial.stat().st_mode & 0o777 == 0o700
    fill(out)
    out.save_receipt("x")
    out.publish()
    assert {p.stat().st_uid for p in tmp_path.iterdir()} == {NOBODY.uid}


def test_a_discarded_capture_leaves_nothing(tmp_path: Path) -> None:
    out = output(tmp_path)
    out.create(None)
    (out.partial / "bundle.db").write_text("x")
    out.discard()
    assert list(tmp_path.iterdir()) == []


def test_room_is_kept_and_given_back(tmp_path: Path) -> None:
    room = Room(tmp_path / "reserve")
    room.reserve()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= RESERVE_BYTES
    assert not room.is_short(0)
    assert room.is_short(1 << 60)
    room.release()
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_said_at_once() -> None:
    with pytest.raises(HostUnfit, match="no room"):
        Room(Path("/proc/reserve")).reserve()


@as_root
@pytest.mark.parametrize("how", ["owner", "links"])
def test_a_file_that_the_recorder_did_not_make_is_not_handed_over(tmp_path: Path, how: str) -> None:
    """A recorder that was taken over links a file of root's, or its own twice, in place of the bundle."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    out = output(tmp_path, owner=NOBODY)
    out.create(NOBODY)
    os.link(secret, out.partial / "bundle.db.seal")
    if how == "owner":
        secret.unlink()
        secret = out.partial / "bundle.db.seal"
    else:
        os.chown(secret, NOBODY.uid, NOBODY.gid)
    before = secret.stat()
    with pytest.raises(HostUnfit, match="not a file that the recorder made"):
        out.publish()
    out.hand_over_partial()
    assert (secret.stat().st_mode, secret.stat().st_uid) == (before.st_mode, before.st_uid)


def test_a_rehearsal_that_was_cut_short_is_discarded_and_hides_no_error(tmp_path: Path) -> None:
    out = output(tmp_path)
    out.create(None)
    (out.partial / "rehearsal-x").mkdir()
    (out.partial / "rehearsal-x" / "bundle.db").write_text("x")
    out.discard()
    assert list(tmp_path.iterdir()) == []
    out.create(None)
    (out.partial / "notes.txt").write_text("mine")
    out.discard()
    assert (out.partial / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("planted", ["file", "link"])
def test_a_receipt_that_appears_meanwhile_is_kept(tmp_path: Path, planted: str) -> None:
    """In a folder that others may write to, a name can be taken between our looking and our writing."""
    out = output(tmp_path)
    out.check()
    (tmp_path / "theirs").write_text("theirs")
    if planted == "link":
        out.receipt_path.symlink_to("theirs")
    else:
        out.receipt_path.write_text("theirs")
    with pytest.raises(HostUnfit, match="File exists"):
        out.save_receipt("ours")
    assert out.receipt_path.read_text() == "theirs"
    assert out.receipt_path.is_symlink() == (planted == "link")
    assert not list(tmp_path.glob(".a.db*"))
