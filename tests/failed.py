"""Tests that failed in a run of pytest: ``python -m tests.failed CACHE`` prints their names, a line each.

CACHE is the run's cache folder. Side by side, pytest adds the group of a test to its name, which selects nothing then.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def failed(cache: Path) -> list[str]:
    """Names that pytest selects these tests by; empty where none failed or the run never came so far."""
    path = cache / "v" / "cache" / "lastfailed"
    if not path.exists():
        return []
    names = json.loads(path.read_text("utf-8"))
    return sorted(name.removesuffix(f"@{name.partition('::')[0]}") for name in names)


if __name__ == "__main__":
    print("\n".join(failed(Path(sys.argv[1]))))
