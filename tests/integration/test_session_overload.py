"""A whole capture of more calls than its budget has rows for: the sealed sums are those that the program knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuaudit.bundle.reader import Bundle
from tests.doubles.build import build
from tests.integration.recording import truth
from tests.integration.sessions import capture, environment, rows

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]


def test_the_sealed_sums_are_the_programs_own(doubles: Path, tmp_path: Path) -> None:
    build("storm", tmp_path)
    stormy, out = build("stormy", tmp_path), tmp_path / "a.db"
    options: list[str | Path] = ["--source", "cuda", "--budget", "3000", "--out", out]
    done = capture([*options, "--", stormy, tmp_path / "truth"], environment(tmp_path / "keys"))
    assert done.returncode == 0, done.stderr
    calls, totals = rows(out, "cuda_calls"), rows(out, "call_totals")
    for made in truth(tmp_path / "truth"):
        mine = [c for c in calls if (c["tid"], c["op"]) == (made["tid"], made["op"])]
        sums = [t for t in totals if (t["tid"], t["op"]) == (made["tid"], made["op"])]
        assert len(mine) + sum(t["count"] for t in sums) == made["count"]
        assert sum(c["size_bytes"] or 0 for c in mine) + sum(t["size_bytes"] for t in sums) == made["size_bytes"]
        assert bool(sums) == (made["op"] not in ("cudaMalloc", "cudaEventSynchronize"))
    assert not [g for g in rows(out, "gaps") if g["source"] == "cuda"]  # counted is not lost
    with Bundle.open(out) as bundle:
        assert bundle.open_body["options"]["budget_per_s"] == 3000
