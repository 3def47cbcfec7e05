"""call.py LIBRARY FUNCTION DEPTH: as call.c, from CPython through ctypes, DEPTH Python frames deep.

For each line with a number on stdin, calls the function so often with a null pointer and answers with the nanoseconds
that it took. Needs nothing of this project.
"""

from __future__ import annotations

import ctypes
import sys
import time


def deep(function: ctypes._NamedFuncPointer, count: int, depth: int) -> int:
    """Make the calls below ``depth`` more frames; nanoseconds."""
    if depth > 1:
        return deep(function, count, depth - 1)
    start = time.perf_counter_ns()
    for _ in range(count):
        function(None)
    return time.perf_counter_ns() - start


def main(library: str, name: str, depth: str) -> None:
    function = ctypes.CDLL(library)[name]
    for line in sys.stdin:
        print(deep(function, int(line), int(depth) - 2), flush=True)  # this function and the module are two


if __name__ == "__main__":
    main(*sys.argv[1:])
