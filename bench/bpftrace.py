"""bpftrace on one function, as somebody would use it who wants what our probes give."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from types import TracebackType

from gpuaudit.bundle.errors import AuditError, HostUnfit

SCRIPTS = {
    "count": "uprobe:{f} {{ @n = count(); }} uretprobe:{f} {{ }}",
    "histogram": "uprobe:{f} {{ @start[tid] = nsecs; }} "
    'uretprobe:{f} /@start[tid]/ {{ @ns = hist(nsecs - @start[tid]); delete(@start[tid]); @n = count(); }}',
    "line": "uprobe:{f} {{ @start[tid] = nsecs; @pointer[tid] = arg0; }} "
    'uretprobe:{f} /@start[tid]/ {{ printf("%llu %llu %d %d %llx %d\\n", @start[tid], nsecs - @start[tid], pid, tid, '
    "@pointer[tid], retval); delete(@start[tid]); delete(@pointer[tid]); @n = count(); }}",
}  # fmt: skip
"""Count the calls; a histogram of their duration; one line of text for each call with what our record of it holds."""

_READY = "bench-ready"
_START_S, _END_S = 60.0, 30.0
# bpftrace needs tracefs. Where it is not mounted, it is mounted in a mount namespace of this one process.
_SHELL = (
    "test -e /sys/kernel/tracing/uprobe_events || mount -t tracefs nodev /sys/kernel/tracing || exit 4; "
    'exec bpftrace -B line -e "$1"'
)


class BpfTrace:
    """A script of :data:`SCRIPTS` on ``function`` of the file ``library``, attached while the context lasts."""

    def __init__(self, script: str, library: Path, function: str) -> None:
        for tool, package in (("bpftrace", "bpftrace"), ("unshare", "util-linux")):
            if shutil.which(tool) is None:
                raise HostUnfit(f"{tool} not found", hint=f"apt-get install {package}")
        self._text = f'{SCRIPTS[script].format(f=f"{library}:{function}")} interval:ms:50 {{ printf("{_READY}\\n"); }}'
        self._ready = threading.Event()
        self._tail: list[str] = []
        self.lines = 0
        """Lines that a ``line`` script printed."""
        self.counted = 0
        """Calls that it counted; valid after the context."""
        self.lost = 0
        """Lines that it says it lost."""

    def __enter__(self) -> BpfTrace:
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SHELL, "sh", self._text]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(_START_S) or self._process.poll() is not None:
            self._process.kill()
            self._reader.join(_END_S)
            raise HostUnfit(f"bpftrace did not start: {' '.join(self._tail[-3:])[:300] or 'it said nothing'}")
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line[:1].isdigit():
                self.lines += 1
            elif line.startswith(_READY):
                self._ready.set()
            else:
                self._tail.append(line.strip())
                del self._tail[:-200]
        self._ready.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join(_END_S)
        if error is not None:
            return
        said = "\n".join(self._tail)
        self.lost = sum(int(n) for n in re.findall(r"Lost (\d+) events", said))
        found = re.search(r"^@n: (\d+)$", said, re.MULTILINE)
        if found is None:
            raise AuditError(f"bpftrace counted nothing: {said[-300:]}")
        self.counted = int(found.group(1))
