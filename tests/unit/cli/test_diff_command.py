"""``audit diff`` on two sealed bundles: what it prints, the document, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from gpuaudit.bundle import canonical, sealfile
from gpuaudit.bundle.tables import TABLES
from tests.bundles import MemorySigner, gap_rows, open_writer
from tests.commands import audit, check_refused, environment
from tests.recorded_engines import DATA


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory, env: Mapping[str, str]) -> tuple[Path, Path]:
    """The light and the heavy regime as bundles."""
    folder = tmp_path_factory.mktemp("bundles")
    out = []
    for regime in ("light", "heavy_queue"):
        out.append(folder / f"{regime}.db")
        done = audit("import", DATA / f"{regime}.jsonl.gz", "--out", out[-1], env=env)
        assert done.returncode == 0, done.stderr
    return out[0], out[1]


def test_it_prints_verdict_and_figures(sides: tuple[Path, Path], env: Mapping[str, str]) -> None:
    done = audit("diff", sides[1], sides[1], env=env)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    (verdict,) = (line for line in lines if line.startswith("verdict"))
    assert verdict.startswith("verdict   NoChange: throughput alone decides"), "no GPU was recorded"
    assert all("SEALED, IMPORTED, grade B" in line for line in lines[:2])
    (throughput,) = (line for line in lines if line.startswith("Throughput"))
    assert throughput.count("tokens/s") == 2


def test_another_load_is_an_answer_and_no_failure(sides: tuple[Path, Path], env: Mapping[str, str]) -> None:
    done = audit("diff", *sides, "--json", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    document = canonical.loads_canonical(done.stdout.strip().encode())
    assert document["schema"] == "gpu-audit/diff/2"
    (engine,) = document["engines"]
    assert engine["verdict"] == "NotComparable"
    assert engine["reason"].startswith("the load differs")
    assert document["before"]["imported"] is True


def test_a_bundle_that_was_changed_is_refused(
    sides: tuple[Path, Path], env: Mapping[str, str], tmp_path: Path
) -> None:  # fmt: skip
    changed = tmp_path / "changed.db"
    shutil.copyfile(sides[1], changed)
    shutil.copyfile(sealfile.path_beside(sides[1]), sealfile.path_beside(changed))
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(bytes(data))
    check_refused(audit("diff", sides[0], changed, env=env), 3)
    check_refused(audit("diff", changed, sides[0], env=env), 3)


def test_a_bundle_without_an_engine_is_compared_in_the_rest(
    sides: tuple[Path, Path], env: Mapping[str, str], tmp_path: Path
) -> None:  # fmt: skip
    writer = open_writer(tmp_path / "plain.db", MemorySigner())
    writer.append_segment(TABLES["gaps"], gap_rows(3), seen=3, written=3, lost=0)
    writer.seal({"gaps": {"seen": "3", "written": "3", "lost": "0"}})
    writer.close()
    done = audit("diff", sides[0], tmp_path / "plain.db", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "unpaired  before: engine" in done.stdout
    assert "waste     not comparable: before: " in done.stdout
    check_refused(audit("diff", sides[0], tmp_path / "none.db", env=env), 3, "none.db")
    check_refused(audit("diff", sides[0], env=env), 2, "1 capture to compare", "from 2")


def test_three_captures_are_regimes(sides: tuple[Path, Path], env: Mapping[str, str]) -> None:
    named = [x for name in ("alone", "one more", "crowded") for x in ("--name", name)]
    done = audit("diff", sides[0], sides[0], sides[1], *named, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    heads = [line for line in done.stdout.splitlines() if line.startswith("regime")]
    assert heads == ["regime    one more, beside alone", "regime    crowded, beside alone"]
    assert done.stdout.count("verdict   ") == 2
    assert "verdict   NotComparable: the load differs" in done.stdout
