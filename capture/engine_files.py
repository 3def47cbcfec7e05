"""The model folder of an engine, opened in the attacher: a few files by name, never outside the folder.

A model is named by a folder, or by its repository at a hub; then its folder is in the hub's cache. The folder is the
one that the process itself names, below its own root, and everything is opened with the rights of the process's user:
root's are not lent to what somebody wrote on a command line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from gpuaudit.capture import processes
from gpuaudit.capture.engine_command import EngineCommand
from gpuaudit.capture.engine_rights import Rights, taken_on
from gpuaudit.capture.processes import PROC

FILES = re.compile(r"(?:config\.json|model\.safetensors\.index\.json|[A-Za-z0-9][A-Za-z0-9._-]{0,100}\.safetensors)\Z")
"""Names that may be opened: settings of the model, and its weights for their headers."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z")
_REVISION = re.compile(r"[A-Za-z0-9._/-]{1,128}\Z")


class ModelFolder:
    """``open(name)`` gives a descriptor of one of :data:`FILES`; OSError where there is none, or it may not be had."""

    def __init__(self, pid: int, command: EngineCommand) -> None:
        self._pid = pid
        self._command = command
        self._start_ns = processes.start_ns(pid)

    def open(self, name: str) -> int:
        """The file ``name`` of the folder, an ordinary one."""
        if not FILES.match(name):
            raise OSError(errno.EACCES, "not a file of a model")
        with taken_on(Rights.of(self._pid)):
            folder, prefix = self._folder()
            try:
                return _ordinary(folder, prefix + name)
            finally:
                os.close(folder)

    def _folder(self) -> tuple[int, str]:
        """A descriptor of the folder that nothing leads out of, and where in it the model's files are."""
        root = os.open(f"{PROC}/{self._pid}/root", os.O_PATH | os.O_CLOEXEC)
        try:
            if processes.start_ns(self._pid) != self._start_ns:
                raise OSError(errno.ESRCH, "the process ended")
            model = self._command.model or ""
            path = model if model.startswith("/") else str(Path(f"{PROC}/{self._pid}/cwd").readlink() / model)
            with contextlib.suppress(OSError):
                return processes.open_inside(root, path, flags=os.O_PATH | os.O_DIRECTORY), ""
            if not _REPOSITORY.match(model):
                raise OSError(errno.ENOENT, "no such folder")
            return self._cached(root, "models--" + model.replace("/", "--"))
        finally:
            os.close(root)

    def _cached(self, root: int, name: str) -> tuple[int, str]:
        """In the cache of the hub: the folder of all revisions, and the revision that is meant."""
        revision = self._command.flags.get("revision") or "main"
        if not _REVISION.match(revision) or ".." in revision:
            raise OSError(errno.EINVAL, "no revision")
        for cache in self._caches():
            try:
                folder = processes.open_inside(root, f"{cache}/{name}", flags=os.O_PATH | os.O_DIRECTORY)
            except OSError:
                continue
            try:
                return folder, f"snapshots/{_commit(folder, revision)}/"
            except OSError:
                os.close(folder)
                raise
        raise OSError(errno.ENOENT, "no such model in the cache")

    def _caches(self) -> Iterator[str]:
        """huggingface_hub, constants.py: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
        told = self._command.variables
        places = (
            self._command.flags.get("download-dir"), told.get("HF_HUB_CACHE"), told.get("HUGGINGFACE_HUB_CACHE"),
            told.get("HF_HOME") and f"{told['HF_HOME']}/hub",
            told.get("XDG_CACHE_HOME") and f"{told['XDG_CACHE_HOME']}/huggingface/hub",
            told.get("HOME") and f"{told['HOME']}/.cache/huggingface/hub",
        )  # fmt: skip
        return (p for p in places if p and p.startswith("/"))


def _ordinary(folder: int, name: str) -> int:
    """An ordinary file within ``folder``. What it is is seen before it is opened: to open a device can do something."""
    found = processes.open_inside(folder, name, flags=os.O_PATH, resolve=processes.RESOLVE_BENEATH)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EACCES, "not an ordinary file")
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)


def _commit(folder: int, revision: str) -> str:
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    fd = _ordinary(folder, f"refs/{revision}")
    try:
        commit = os.read(fd, 64).decode("ascii", "replace").strip()
    finally:
        os.close(fd)
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise OSError(errno.EINVAL, "no revision")
    return commit
