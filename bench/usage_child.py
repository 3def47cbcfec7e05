"""Started by :func:`bench.usage.run` as a small process of its own; imports nothing but the standard library.

``python usage_child.py COMMAND…`` discards the command's stdout, passes its stderr on, prints one line of JSON and ends
with the command's status (128 + signal number, where it was killed).
"""

from __future__ import annotations

import json
import os
import sys
import time


def main(command: list[str]) -> int:
    """Run the command; its status."""
    start_ns = time.monotonic_ns()
    discard = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=[discard])
    _, status, usage = os.wait4(pid, 0)
    seconds = (time.monotonic_ns() - start_ns) / 1e9
    cpu_s = usage.ru_utime + usage.ru_stime
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "peak_bytes": usage.ru_maxrss << 10}))  # KiB on Linux
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
