"""Where a capture writes, and how a finished bundle gets its name.

While it runs the bundle lives in ``<out>.partial/bundle.db``, in a directory that belongs to the recorder's user; at
the end it is moved to ``<out>`` and ``<out>.seal``. The attacher does this with privileges in a directory that an
ordinary user may own, so every step works on open directories and refuses links.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from gpuaudit.bundle.errors import HostUnfit, OutputExists, UsageError
from gpuaudit.capture.capabilities import CapabilitySets
from gpuaudit.capture.host import hostname
from gpuaudit.capture.privileges import Credentials

BUNDLE_NAME = "bundle.db"
RESERVE_NAME = "reserve"
_PARTIAL_FILES = (BUNDLE_NAME, f"{BUNDLE_NAME}-wal", f"{BUNDLE_NAME}-shm", f"{BUNDLE_NAME}-journal",
                  f"{BUNDLE_NAME}.seal", f"{BUNDLE_NAME}.seal.part", RESERVE_NAME)  # fmt: skip
REHEARSAL_PREFIX = "rehearsal-"
_PUBLIC_MODE = 0o644
_KEPT_LIMIT = 1000
"""Unfinished captures of one name that are kept. ours"""


def default_name(now: datetime.datetime) -> str:
    """``audit-<host>-<utc>.db``; ``now`` must be in UTC."""
    return f"audit-{hostname()}-{now:%Y%m%dT%H%M%SZ}.db"


@dataclass
class Output:
    """The names of one capture. ``owner`` is the invoking user, who gets the files; None keeps them."""

    path: Path
    receipt_path: Path
    force: bool = False
    owner: Credentials | None = None
    _parent_fd: int = -1
    _partial_fd: int = -1
    _recorder: Credentials | None = None
    kept: Path | None = None
    """Where :meth:`create` has moved what an earlier capture left unfinished."""

    @property
    def partial(self) -> Path:
        """The directory of the running capture."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def seal_path(self) -> Path:
        """The detached signatures beside the bundle."""
        return self.path.with_name(self.path.name + ".seal")

    def check(self) -> None:
        """Refuse names that cannot be used, before anything is made."""
        parent = self.path.parent
        if not parent.is_dir():
            raise UsageError(f"--out {self.path}: the directory {parent} does not exist", hint=f"mkdir -p {parent}")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UsageError(f"--out {self.path}: no permission to write in {parent}", hint="choose another --out")
        for path in (self.path, self.seal_path, self.receipt_path, self.partial):
            if not path.is_symlink() and not path.exists():
                continue
            if not self.force:
                what = "a capture that did not end" if path == self.partial else "other content"
                raise OutputExists(f"{path} exists already, with {what}", hint="choose another --out, or --force")
            if path != self.partial and (path.is_symlink() or not path.is_file()):
                raise OutputExists(f"{path} is not an ordinary file, so --force does not replace it", hint="remove it")

    def create(self, recorder: Credentials | None) -> None:
        """Make ``<out>.partial/`` for the recorder's user; under ``force`` an older one is moved, never removed."""
        self._parent_fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if self.force:
            self._keep_older()
        try:
            os.mkdir(self.partial.name, 0o700, dir_fd=self._parent_fd)
        except FileExistsError:
            raise OutputExists(f"{self.partial} exists already", hint="a capture did not end: move it away") from None
        except OSError as e:
            raise HostUnfit(f"{self.partial} could not be made: {e.strerror}", hint="choose another --out") from None
        os.fsync(self._parent_fd)  # before a receipt is shown for what will lie in it
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.partial.name, flags, dir_fd=self._parent_fd)
        if os.fstat(fd).st_uid != os.geteuid():
            os.close(fd)
            raise HostUnfit(
                f"{self.partial} was replaced while it was being made", hint="capture into another directory"
            )
        self._partial_fd, self._recorder = fd, recorder
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held while this process lives: a capture runs here
        if recorder is not None:
            os.fchown(self._partial_fd, recorder.uid, recorder.gid)

    def save_receipt(self, text: str) -> None:
        """Write the start receipt; it must be on disk before anybody relies on it."""
        directory = os.open(self.receipt_path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._write_new(directory, self.receipt_path.name, text.encode("utf-8"))
            os.fsync(directory)
        except OSError as e:
            raise HostUnfit(f"the receipt {self.receipt_path} could not be written: {e.strerror}") from None
        finally:
            os.close(directory)

    def publish(self) -> None:
        """Move the sealed bundle and its seal to their names, hand them to the owner, remove the partial directory."""
        for name, target in ((f"{BUNDLE_NAME}.seal", self.seal_path.name), (BUNDLE_NAME, self.path.name)):
            self._move(name, target)
        for name in _PARTIAL_FILES:
            _unlink_if_there(name, self._partial_fd)
        os.rmdir(self.partial.name, dir_fd=self._parent_fd)
        os.fsync(self._parent_fd)

    def hand_over_partial(self) -> None:
        """After a failed capture: let the invoking user read what was recorded."""
        if self.owner is None or self._partial_fd < 0:
            return
        for name in _PARTIAL_FILES:
            try:
                fd = self._open_recorded(name)
            except (OSError, HostUnfit):
                continue
            self._give(fd)
        if "CAP_CHOWN" in CapabilitySets.of().effective:
            os.fchown(self._partial_fd, self.owner.uid, self.owner.gid)

    def discard(self) -> None:
        """Remove the partial directory of a capture that failed before its first leaf."""
        if self._partial_fd >= 0:
            for name in os.listdir(self._partial_fd):  # noqa: PTH208 - of the open directory
                if name in _PARTIAL_FILES:
                    _unlink_if_there(name, self._partial_fd)
                elif name.startswith(REHEARSAL_PREFIX):  # a recorder that was killed while it rehearsed
                    shutil.rmtree(name, ignore_errors=True, dir_fd=self._partial_fd)
            with contextlib.suppress(OSError):  # somebody else's file in it is no reason to hide why the capture failed
                os.rmdir(self.partial.name, dir_fd=self._parent_fd)

    def close(self) -> None:
        """Close the directories."""
        for fd in (self._partial_fd, self._parent_fd):
            if fd >= 0:
                os.close(fd)
        self._partial_fd = self._parent_fd = -1

    def _move(self, name: str, target: str) -> None:
        fd = self._open_recorded(name)
        try:
            self._give_name(name, self._partial_fd, target, self._parent_fd)
        except FileExistsError:
            os.close(fd)
            raise OutputExists(
                f"{self.path.with_name(target)} appeared while the capture ran",
                hint=f"the sealed bundle is in {self.partial}: move it to another name",
            ) from None
        self._give(fd)

    def _give_name(self, name: str, folder: int, target: str, target_folder: int) -> None:
        """Rename; FileExistsError where that would replace a file without ``force``."""
        if not self.force:
            try:
                os.link(name, target, src_dir_fd=folder, dst_dir_fd=target_folder, follow_symlinks=False)
            except OSError as e:  # a file system without hard links: the name was free when the capture began
                if e.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                    raise
            else:
                os.unlink(name, dir_fd=folder)
                return
        os.rename(name, target, src_dir_fd=folder, dst_dir_fd=target_folder)

    def _open_recorded(self, name: str) -> int:
        """A file that the recorder itself has made; HostUnfit for any other.

        A recorder that was taken over could link a file of root's here, to have it handed to the invoking user.
        """
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._partial_fd)
        status, recorder = os.fstat(fd), self._recorder
        own = recorder is None or (status.st_uid == recorder.uid and status.st_nlink == 1)
        if own and stat.S_ISREG(status.st_mode):
            return fd
        os.close(fd)
        raise HostUnfit(
            f"{self.partial / name} is not a file that the recorder made: owner {status.st_uid}, "
            f"{status.st_nlink} names",
            hint="do not trust it, and find out who wrote there",
        )

    def _give(self, fd: int) -> None:
        """Make an open regular file the owner's, readable for all; closes it."""
        try:
            os.fchmod(fd, _PUBLIC_MODE)
            if stat.S_ISREG(os.fstat(fd).st_mode) and "CAP_CHOWN" in CapabilitySets.of().effective:
                owner = self.owner or Credentials(os.geteuid(), os.getegid())
                os.fchown(fd, owner.uid, owner.gid)
        finally:
            os.close(fd)

    def _write_new(self, directory: int, name: str, data: bytes) -> None:
        temporary = f".{name}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            os.write(fd, data)
            os.fsync(fd)
            self._give_name(temporary, directory, name, directory)
        except OSError:
            os.unlink(temporary, dir_fd=directory)
            os.close(fd)
            raise
        self._give(fd)

    def _keep_older(self) -> None:
        """Move what an earlier capture left to ``<out>.partial.N``: it is evidence. OutputExists while that runs."""
        try:
            fd = os.open(self.partial.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._parent_fd)
        except FileNotFoundError:
            return
        except OSError as e:
            raise OutputExists(
                f"{self.partial} is not a directory of a capture: {e.strerror}", hint="remove it"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputExists(f"{self.partial}: a capture runs there", hint="choose another --out") from None
        except OSError:  # a file system without locks
            pass
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.rmdir(self.partial.name, dir_fd=self._parent_fd)  # nothing in it
            return
        for n in range(1, _KEPT_LIMIT):
            name = f"{self.partial.name}.{n}"
            with contextlib.suppress(OSError):  # a folder that is not empty, or a file, is never replaced
                os.rename(self.partial.name, name, src_dir_fd=self._parent_fd, dst_dir_fd=self._parent_fd)
                self.kept = self.partial.with_name(name)
                return
        raise OutputExists(f"{self.partial} holds a capture that did not end", hint="move it away")


def _unlink_if_there(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
