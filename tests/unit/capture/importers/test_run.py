"""An import from end to end: a sealed bundle that says IMPORTED, with the originals' digests and what was left out."""

from __future__ import annotations

import bisect
import gzip
import hashlib
import json
from pathlib import Path

import pytest

from gpuaudit.analyze.gpu_time import read_gpus
from gpuaudit.analyze.store import Store
from gpuaudit.analyze.window import read_window
from gpuaudit.bundle.errors import InputUnusable, OutputExists, UsageError
from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.verify import IMPORTED_NOTICE, verify
from gpuaudit.capture.importers.model import Request
from gpuaudit.capture.importers.reading import HEAD_LINES
from gpuaudit.capture.importers.run import ImportOptions, run_import
from tests.unit.capture.importers.test_dcgmi import LOG as DMON
from tests.unit.capture.importers.test_nvidia_smi import FIVE_NS
from tests.unit.capture.importers.test_nvidia_smi import LOG as SMI

VLLM = Path(__file__).parents[3] / "data" / "vllm"


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AUDIT_KEYS", str(tmp_path / "keys"))


def written(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


def artefact(path: Path, name: str) -> list[dict[str, object]]:
    with Bundle.open(path) as bundle:
        found: list[dict[str, object]] = json.loads({n: b for _, n, b in bundle.artefacts()}[name])
    return found


def test_three_formats_in_one_bundle(tmp_path: Path) -> None:
    smi, dmon = written(tmp_path, "smi.csv", SMI), written(tmp_path, "dmon.log", DMON)
    out = tmp_path / "all.db"
    request = Request(start_ns=FIVE_NS, interval_ns=10**9, settings=(("max_num_seqs", "32"),))
    result = run_import(ImportOptions((smi, dmon, VLLM / "light.jsonl.gz"), out, request=request))
    found = verify(out)
    assert found.status == "UNKNOWN-SIGNER"
    assert IMPORTED_NOTICE in found.notices
    assert not [n for n in found.notices if "wall clock" in n], "the recordings' axis is no clock that was set"
    told = artefact(out, "imports")
    assert [t["sha256"] for t in told] == [
        hashlib.sha256(p.read_bytes()).hexdigest() for p in (smi, dmon, VLLM / "light.jsonl.gz")
    ]
    assert told == result.files
    with Bundle.open(out) as bundle:
        assert bundle.open_body["imported"] == {"files": 3}
        assert [g["uuid"] for g in bundle.open_body["gpus"]] == ["GPU-aa", "GPU-bb"]
        store = Store.from_bundle(bundle)
    assert store.sql("SELECT engine, op, found_by, remote FROM engines") == [
        (2, "vllm", "imported from light.jsonl.gz", 0)
    ]
    assert store.sql("SELECT op, value, source FROM engine_config WHERE op IN ('max_num_seqs', 'block_size', 'model')"
                     " ORDER BY op") == [
        ("block_size", "128", "metric label"), ("max_num_seqs", "32", "given at import"),
        ("model", "tiny-llama", "metric label"),
    ]  # fmt: skip
    window = read_window(store)
    assert window.start_utc_ns == window.start_ns
    assert window.utc_uncertainty_ns == 0
    states = {str(s["source"]): s["state"] for s in artefact(out, "sources")}
    assert states["nvml"] == "recorded"
    assert states["cuda"] == "not recorded"


def test_a_gpu_that_two_files_tell_of_is_one_gpu(tmp_path: Path) -> None:
    """dcgmi knows GPUs by index: beside nvidia-smi's UUIDs their time would count twice. That it is one is told."""
    files = (written(tmp_path, "smi.csv", SMI), written(tmp_path, "dmon.log", DMON))
    out = tmp_path / "both.db"
    run_import(ImportOptions(files, out, request=Request(start_ns=FIVE_NS, interval_ns=10**9)))
    assert "GPU 0 is taken to be GPU-aa, the only GPU that a file of this import has there." in str(
        artefact(out, "imports")[1]["assumptions"]
    )
    with Bundle.open(out) as bundle:
        store = Store.from_bundle(bundle)
    assert [g.uuid for g in read_gpus(store)] == ["GPU-aa", "GPU-bb"]
    assert store.sql("SELECT DISTINCT gpu_uuid FROM gpm_samples ORDER BY 1") == [("GPU-aa",), ("GPU-bb",)]


def test_a_gpu_that_could_be_either_stands_alone(tmp_path: Path) -> None:
    """Where two hosts' logs name index 0, a third that has no UUID is neither's, and says so."""
    other = written(tmp_path, "other.csv", SMI.replace("GPU-aa", "GPU-cc"))
    files = (written(tmp_path, "smi.csv", SMI), other, written(tmp_path, "dmon.log", DMON))
    out = tmp_path / "three.db"
    run_import(ImportOptions(files, out, request=Request(start_ns=FIVE_NS, interval_ns=10**9)))
    with Bundle.open(out) as bundle:
        uuids = sorted(str(g["uuid"]) for g in bundle.open_body["gpus"])
    assert uuids == ["GPU-aa", "GPU-bb", "GPU-cc", "index 0, UUID not recorded"]
    assert "other files have several there" in str(artefact(out, "imports")[2]["assumptions"])


def test_every_value_of_every_poll_is_carried(tmp_path: Path) -> None:
    """Forward-filled samples give back each recorded text's own numbers, poll by poll."""
    out = tmp_path / "v.db"
    run_import(ImportOptions((VLLM / "prefix_hits.jsonl.gz",), out))
    with Bundle.open(out) as bundle:
        store = Store.from_bundle(bundle)
    changes = store.sql(
        "SELECT v.start_ns, value FROM engine_samples v JOIN engine_series USING (series) "
        "WHERE metric = 'vllm:generation_tokens_total' ORDER BY 1"
    )
    polls = [t for (t,) in store.sql("SELECT start_ns FROM engine_scrapes WHERE op = 'ok' ORDER BY 1")]
    counted = [changes[bisect.bisect_right(changes, t, key=lambda c: c[0]) - 1][1] for t in polls]
    expected = []
    with gzip.open(VLLM / "prefix_hits.jsonl.gz", "rt") as f:
        for line in f:
            poll = json.loads(line)
            for row in poll.get("text", "").splitlines():
                if row.startswith("vllm:generation_tokens_total{"):
                    expected.append(float(row.rpartition(" ")[2]))
    assert counted == expected
    assert len(expected) > 200


def test_the_same_file_gives_the_same_rows(tmp_path: Path) -> None:
    smi = written(tmp_path, "smi.csv", SMI)
    stores = []
    for name in ("a.db", "b.db"):
        run_import(ImportOptions((smi,), tmp_path / name))
        with Bundle.open(tmp_path / name) as bundle:
            stores.append(Store.from_bundle(bundle).sql("SELECT * FROM nvml_samples ORDER BY ALL"))
    assert stores[0] == stores[1]


def test_an_unknown_file_leaves_nothing_behind(tmp_path: Path) -> None:
    path = written(tmp_path, "notes.txt", "hello\n")
    with pytest.raises(InputUnusable, match="in no format that can be imported"):
        run_import(ImportOptions((path,), tmp_path / "x.db"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]


def test_a_file_that_breaks_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    first, rest = gzip.decompress((VLLM / "idle.jsonl.gz").read_bytes()).split(b"\n", 1)
    data = gzip.compress(first + b"\n" + b"{}\n" * (HEAD_LINES + 1) + rest)  # it breaks past what tells the format
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputUnusable, match="broken after line"):
        run_import(ImportOptions((path,), tmp_path / "x.db"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.jsonl.gz", "keys"]


def test_a_file_whose_lines_cannot_be_read_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    path = written(tmp_path, "smi.csv", SMI.splitlines()[0] + "\n" + "x\n" * 5)
    with pytest.raises(InputUnusable, match=r"no line of it could be read: line 2: 1 cells, expected 15"):
        run_import(ImportOptions((path,), tmp_path / "x.db"))


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    smi = written(tmp_path, "smi.csv", SMI)
    run_import(ImportOptions((smi,), tmp_path / "x.db"))
    with pytest.raises(OutputExists):
        run_import(ImportOptions((smi,), tmp_path / "x.db"))
    run_import(ImportOptions((smi,), tmp_path / "x.db", force=True))


def test_one_file_twice_is_refused(tmp_path: Path) -> None:
    smi = written(tmp_path, "smi.csv", SMI)
    with pytest.raises(UsageError, match="named twice"):
        run_import(ImportOptions((smi, smi), tmp_path / "x.db"))
