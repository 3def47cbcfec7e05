"""Status words and exit codes of verify, for bundles nobody tampered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuaudit.bundle import note, sealfile
from gpuaudit.bundle.errors import BundleInvalid, InputUnusable
from gpuaudit.bundle.receipt import Receipt
from gpuaudit.bundle.verify import STATUSES, verify
from tests.bundles import MemorySigner, copy_bundle, fill, make_bundle, open_writer, withhold


@pytest.fixture(scope="module")
def signer() -> MemorySigner:
    return MemorySigner()


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, signer: MemorySigner) -> Path:
    path = tmp_path_factory.mktemp("sealed") / "bundle.db"
    make_bundle(path, signer, challenge="q 17")
    return path


def test_sealed(sealed: Path, signer: MemorySigner) -> None:
    result = verify(sealed, trust=[MemorySigner().identity, signer.identity], challenge="q 17")
    assert (result.status, result.exit_code) == ("SEALED", 0)
    assert result.origin == "lab/host-1/0b9f3a52-6a7e-4c1d-9a51-3f1f3f6f2a10"
    assert result.challenge == "q 17"
    assert result.identity_sha256 == signer.identity.fingerprint
    assert [c.name for c in result.checks if c.ok] == [
        "leaves", "checkpoints", "identity", "seal", "challenge", "file digest", "decoding",
    ]  # fmt: skip


def test_unknown_signer(sealed: Path) -> None:
    result = verify(sealed)
    assert (result.status, result.exit_code) == ("UNKNOWN-SIGNER", 1)


def test_unsealed_beside_its_log(tmp_path: Path, signer: MemorySigner) -> None:
    writer = make_bundle(tmp_path / "bundle.db", signer, seal=False)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.name.endswith("-shm")}
    result = verify(tmp_path / "bundle.db", trust=[signer.identity])
    assert (result.status, result.exit_code, result.size) == ("UNSEALED", 1, 5)
    assert any("write-ahead log" in n for n in result.notices)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.name.endswith("-shm")} == before
    writer.close()
    closed = verify(tmp_path / "bundle.db", trust=[signer.identity])
    assert (closed.status, closed.root_b64) == ("UNSEALED", result.root_b64)


def test_sealed_by_epoch_when_the_identity_is_absent(tmp_path: Path) -> None:
    token = MemorySigner()
    writer = open_writer(tmp_path / "bundle.db", token)
    fill(writer)
    token.absent = True
    assert not writer.seal({}).by_identity
    writer.close()
    result = verify(tmp_path / "bundle.db", trust=[token.identity])
    assert (result.status, result.exit_code) == ("SEALED-BY-EPOCH", 1)
    assert STATUSES["SEALED-BY-EPOCH"] in result.notices
    assert next(c for c in result.checks if c.name == "file digest").ok


def test_identity_signature_taken_off_the_seal_is_tampering(tmp_path: Path, sealed: Path, signer: MemorySigner) -> None:
    """The seal's body says who seals, so a SEALED bundle cannot be made to look SEALED-BY-EPOCH."""
    from tests.bundles import alter, leaves

    path = copy_bundle(sealed, tmp_path, seal=False)
    text, signatures = note.parse(leaves(path)[5][3])
    alter(path, "UPDATE checkpoint SET note=? WHERE size=6", parameters=(note.assemble(text, signatures[:1]),))
    with pytest.raises(BundleInvalid, match="leaf 5: its checkpoint is signed by"):
        verify(path, trust=[signer.identity])


def test_withheld_payload(tmp_path: Path, sealed: Path, signer: MemorySigner) -> None:
    path = copy_bundle(sealed, tmp_path)
    withhold(path, signer, 1, 3)
    result = verify(path, trust=[signer.identity])
    assert (result.status, result.exit_code, result.withheld) == ("WITHHELD", 0, (1, 3))
    demanded = verify(path, trust=[signer.identity], complete=True)
    assert (demanded.status, demanded.exit_code) == ("WITHHELD", 1)


def test_receipt(tmp_path: Path, signer: MemorySigner) -> None:
    receipt = make_bundle(tmp_path / "bundle.db", signer, challenge="abc").receipt
    kept = Receipt.from_text(receipt.to_text())
    assert kept == receipt
    assert verify(tmp_path / "bundle.db", trust=[signer.identity], receipt=kept).exit_code == 0
    other = make_bundle(tmp_path / "other.db", signer, challenge="abc").receipt
    mismatch = verify(tmp_path / "bundle.db", trust=[signer.identity], receipt=other)
    assert (mismatch.status, mismatch.exit_code) == ("RECEIPT-MISMATCH", 1)
    assert "epoch0, leaf0_hash" in next(c.detail for c in mismatch.checks if c.name == "start receipt")


def test_receipt_demanded_and_absent(sealed: Path, signer: MemorySigner) -> None:
    result = verify(sealed, trust=[signer.identity], require_receipt=True)
    assert (result.status, result.exit_code) == ("RECEIPT-ABSENT", 1)


def test_cosigner_demanded(tmp_path: Path, sealed: Path, signer: MemorySigner) -> None:
    second = MemorySigner()
    result = verify(sealed, trust=[signer.identity], require_cosigner=second.identity)
    assert (result.status, result.exit_code) == ("COSIGNER-ABSENT", 1)
    itself = verify(sealed, trust=[signer.identity], require_cosigner=signer.identity)
    assert itself.status == "COSIGNER-ABSENT"
    path = copy_bundle(sealed, tmp_path)
    beside = sealfile.path_beside(path)
    record = sealfile.parse(beside.read_bytes())[0]
    line = note.sign(record.text, "second/person", second)
    beside.write_text(sealfile.assemble([note.assemble(record.text, [*record.signatures, line])]), "utf-8")
    assert verify(path, trust=[signer.identity], require_cosigner=second.identity).status == "SEALED"


def test_gravest_word_comes_first_and_all_are_told(tmp_path: Path, signer: MemorySigner) -> None:
    make_bundle(tmp_path / "bundle.db", signer, seal=False).close()
    result = verify(tmp_path / "bundle.db", require_receipt=True)
    assert result.status == "RECEIPT-ABSENT"
    assert {STATUSES[s] for s in ("RECEIPT-ABSENT", "UNKNOWN-SIGNER", "UNSEALED")} <= set(result.notices)


def test_record_of_a_later_kind_is_told_and_no_error(tmp_path: Path, sealed: Path, signer: MemorySigner) -> None:
    path = copy_bundle(sealed, tmp_path)
    beside = sealfile.path_beside(path)
    later = note.assemble("gpu-audit timestamp v1\nAAAA\n", [note.sign("x\n", "clock", signer)])
    beside.write_text(beside.read_text("utf-8") + sealfile.assemble([later]), "utf-8")
    result = verify(path, trust=[signer.identity])
    assert result.status == "SEALED"
    assert any("gpu-audit timestamp v1" in n for n in result.notices)


@pytest.mark.parametrize("text", ["", "gpu-audit start receipt v1\norigin: a", "hello"])
def test_what_is_no_receipt(text: str) -> None:
    with pytest.raises(InputUnusable, match="start receipt"):
        Receipt.from_text(text)
