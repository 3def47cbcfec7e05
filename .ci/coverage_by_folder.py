"""Print the line coverage of each stage's folder from the coverage data file of the run (COVERAGE_FILE).

It is that of the tests that were traced (scripts/test says which): a lower bound, of analyze/ above all.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

from coverage import Coverage


def main() -> None:
    cov = Coverage()
    cov.load()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "coverage.json"
        cov.json_report(outfile=str(out), ignore_errors=True)
        files = json.loads(out.read_text(encoding="utf-8"))["files"]
    covered: dict[str, int] = defaultdict(int)
    lines: dict[str, int] = defaultdict(int)
    for path, entry in files.items():
        parts = PurePosixPath(path).parts
        stage = parts[parts.index("gpuaudit") + 1] if "gpuaudit" in parts else parts[0]
        covered[stage] += entry["summary"]["covered_lines"]
        lines[stage] += entry["summary"]["num_statements"]
    print(f"{'folder':<10}{'lines':>8}{'covered':>9}{'share':>8}")
    for stage in sorted(lines):
        print(f"{stage + '/':<10}{lines[stage]:>8}{covered[stage]:>9}{covered[stage] / max(lines[stage], 1):>8.1%}")


if __name__ == "__main__":
    main()
