"""The threat table of the bundle format, one test per row at least: the attack, and the control that meets it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from gpuaudit.bundle import header, limits, segment, zstd
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.guard import Decoder
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.verify import verify
from gpuaudit.bundle.writer import EpochKey
from tests.bundles import (
    MemorySigner,
    StepClock,
    alter,
    change_header,
    copy_bundle,
    fill,
    gap_rows,
    leaves,
    make_bundle,
    open_writer,
    replace_leaf,
    resign,
)

OTHER_UUID = "11111111-2222-4333-8444-555555555555"


def fresh_keys(identity: MemorySigner) -> dict[str, EpochKey | MemorySigner]:
    """What an attacker has who holds the identity key but no epoch key of the past."""
    return {"identity": identity, **{str(i): EpochKey() for i in range(8)}}


def test_edited_leaf_that_is_signed_again_with_the_identity(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    """Edit: even the holder of the identity key lacks the epoch key of the leaf."""
    path = copy_bundle(sealed, tmp_path, seal=False)
    replace_leaf(path, 1, change_header(path, 1, lost=0))
    resign(path, 1, fresh_keys(signer))
    with pytest.raises(BundleInvalid, match=r"leaf 1: the signature of .*/epoch/1"):
        verify(path, trust=[signer.identity])


def test_inserted_leaf(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path, seal=False)
    for idx in (5, 4, 3):
        moved = change_header(path, idx, idx=idx + 1)
        alter(path, "UPDATE leaf SET idx=idx+1 WHERE idx=?", parameters=(idx,))
        alter(path, "UPDATE leaf SET header=? WHERE idx=?", parameters=(moved.to_bytes(), idx + 1))
    alter(path, "INSERT INTO leaf SELECT 3,'artefact',header,payload FROM leaf WHERE idx=4")
    replace_leaf(path, 3, header.parse(leaves(path)[3][1].replace(b'"idx":4', b'"idx":3'), 3))
    alter(path, "INSERT INTO checkpoint SELECT 7,note FROM checkpoint WHERE size=6")
    resign(path, 3, fresh_keys(signer) | {"6": EpochKey()})
    with pytest.raises(BundleInvalid, match="leaf 3"):
        verify(path, trust=[signer.identity])


def test_truncation_is_called_unsealed(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    """A cut to a genuine checkpoint proves only what stands before it, and verify says so."""
    path = copy_bundle(sealed, tmp_path, seal=False)
    alter(path, "DELETE FROM leaf WHERE idx>=3", "DELETE FROM checkpoint WHERE size>3", "VACUUM")
    result = verify(path, trust=[signer.identity])
    assert (result.status, result.exit_code, result.size) == ("UNSEALED", 1, 3)
    assert any("nothing after that leaf is proven" in n for n in result.notices)


def test_truncation_with_the_seal_file_left(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    path = copy_bundle(sealed, tmp_path)
    alter(path, "DELETE FROM leaf WHERE idx>=3", "DELETE FROM checkpoint WHERE size>3", "VACUUM")
    with pytest.raises(BundleInvalid, match=r"\.seal belongs to another bundle"):
        verify(path, trust=[signer.identity])


def test_host_taken_during_the_capture(tmp_path: Path, signer: MemorySigner) -> None:
    """Root at time T has the identity key and the epoch key of the moment: leaves sealed before T stay as they are."""
    path = tmp_path / "bundle.db"
    writer = open_writer(path, signer)
    fill(writer)
    stolen = writer._key
    writer.close()
    replace_leaf(path, 2, change_header(path, 2, seen=6))
    resign(path, 2, {**fresh_keys(signer), str(writer.size): stolen})
    with pytest.raises(BundleInvalid, match=r"leaf 2: the signature of .*/epoch/2"):
        verify(path, trust=[signer.identity])


def test_epoch_keys_are_dropped_after_their_leaf(tmp_path: Path, signer: MemorySigner) -> None:
    writer = open_writer(tmp_path / "bundle.db", signer)
    key = writer._key
    writer.append_event("first", {})
    assert key._private is None
    assert writer._key is not key
    writer.seal({})
    assert writer._key._private is None
    writer.close()


def test_child_made_by_fork_holds_no_epoch_key() -> None:
    key = EpochKey()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"none" if key._private is None else b"key!")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 4) == b"none"
    assert key._private is not None


def test_forged_bundle_without_the_identity_key(tmp_path: Path, signer: MemorySigner) -> None:
    """The forger claims the identity by its public key; the first note needs the private one."""
    claimed = MemorySigner()
    claimed.public_key = signer.public_key
    path = tmp_path / "bundle.db"
    make_bundle(path, claimed)
    with pytest.raises(BundleInvalid, match=r"leaf 0: the signature of .*/identity"):
        verify(path, trust=[signer.identity])


def test_forged_unsealed_bundle(tmp_path: Path, signer: MemorySigner) -> None:
    path = tmp_path / "bundle.db"
    make_bundle(path, MemorySigner(), seal=False).close()
    result = verify(path, trust=[signer.identity])
    assert (result.status, result.exit_code) == ("UNKNOWN-SIGNER", 1)


def test_whole_forgery_with_the_identity_key(sealed: Path, tmp_path: Path, signer: MemorySigner) -> None:
    """Only the start receipt tells two captures by the same identity apart; without it verify warns."""
    receipt = make_bundle(tmp_path / "true.db", signer, challenge="7f3a").receipt
    make_bundle(tmp_path / "forged.db", signer, challenge="7f3a")
    assert verify(tmp_path / "true.db", trust=[signer.identity], receipt=receipt).exit_code == 0
    forged = verify(tmp_path / "forged.db", trust=[signer.identity], receipt=receipt)
    assert (forged.status, forged.exit_code) == ("RECEIPT-MISMATCH", 1)
    assert any("could have made the whole bundle" in n for n in verify(sealed, trust=[signer.identity]).notices)


def test_swapped_identity_key(sealed: Path, signer: MemorySigner) -> None:
    """The key inside the bundle is never trusted, only pinned fingerprints are."""
    for trust in ([], [MemorySigner().identity]):
        result = verify(sealed, trust=trust)
        assert (result.status, result.exit_code) == ("UNKNOWN-SIGNER", 1)
    assert result.identity_sha256 == signer.identity.fingerprint


def test_replayed_bundle(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    """The challenge in leaf 0 shows that a bundle was made for the question; the ledger that it was seen before."""
    ledger = tmp_path / "seen"
    assert verify(sealed, trust=[signer.identity], challenge="today").status == "CHALLENGE-MISMATCH"
    first = verify(sealed, trust=[signer.identity], ledger=ledger)
    again = verify(sealed, trust=[signer.identity], ledger=ledger)
    assert not any("before" in n for n in first.notices)
    assert any("verified here before" in n for n in again.notices)
    twin = tmp_path / "twin.db"
    make_bundle(twin, signer)
    forked = verify(twin, trust=[signer.identity], ledger=ledger)
    assert any("Another sealed bundle of the same origin" in n for n in forked.notices)


def test_ledger_takes_nothing_from_strangers(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    """Else anybody could have a genuine bundle suspected, with one of their own that claims its origin."""
    ledger = tmp_path / "seen"
    make_bundle(tmp_path / "strange.db", MemorySigner())
    assert verify(tmp_path / "strange.db", trust=[signer.identity], ledger=ledger).status == "UNKNOWN-SIGNER"
    assert not any("before" in n for n in verify(sealed, trust=[signer.identity], ledger=ledger).notices)


def test_clock_set_back_by_the_operator(tmp_path: Path, signer: MemorySigner) -> None:
    clock = StepClock()
    writer = open_writer(tmp_path / "bundle.db", signer, clock=clock)
    clock.utc -= 3600 * 10**9
    writer.append_event("tick", {})
    writer.seal({})
    writer.close()
    result = verify(tmp_path / "bundle.db", trust=[signer.identity])
    assert any("wall clock was set by -3600.000 s before leaf 1" in n for n in result.notices)


def test_boot_clock_that_runs_backwards(tmp_path: Path, signer: MemorySigner) -> None:
    clock = StepClock()
    writer = open_writer(tmp_path / "bundle.db", signer, clock=clock)
    clock.boot -= 10 * 10**9
    writer.append_event("tick", {})
    writer.seal({})
    writer.close()
    with pytest.raises(BundleInvalid, match="leaf 1: made in another boot, or earlier"):
        verify(tmp_path / "bundle.db", trust=[signer.identity])


@pytest.mark.parametrize("v", [0, 2, "1"])
def test_downgrade_to_another_header_version(sealed: Path, v: object) -> None:
    body = leaves(sealed)[1][1]
    other = body.replace(b'"v":1', f'"v":{v!r}'.replace("'", '"').encode())
    with pytest.raises(BundleInvalid, match="leaf 1"):
        header.parse(other, 1)


def test_zstd_bomb(tmp_path: Path, signer: MemorySigner) -> None:
    """100 MiB of zeros in a few kB, where the header speaks of 20 rows."""
    bomb = zstd.compress(bytes(100 << 20))
    with pytest.raises(BundleInvalid, match="the header 160"):
        zstd.decompress(bomb, 160)


def test_zstd_bomb_that_lies_about_its_size() -> None:
    """The frame says 160 bytes and holds more: decoding stops at what it says."""
    bomb = bytearray(zstd.compress(bytes(200)))
    assert bomb[4] & 0xE0 == 0x20  # single segment, one byte of content size (RFC 8878, section 3.1.1.1)
    bomb[5] = 160
    with pytest.raises(BundleInvalid):
        zstd.decompress(bytes(bomb), 160)


def test_signed_bomb_in_a_segment_names_its_leaf(tmp_path: Path, signer: MemorySigner) -> None:
    """A hostile signer may sign anything; the decoder's child refuses it."""
    rows = gap_rows(20)
    real = segment.encode(TABLES["gaps"], rows)
    frame = zstd.compress(bytes(120 << 20))
    first = replace(real.columns[0], length=len(frame))
    moved = len(frame) - real.columns[0].length
    columns = (first, *(replace(c, offset=c.offset + moved) for c in real.columns[1:]))
    data = frame + real.data[real.columns[0].length :]
    writer = open_writer(tmp_path / "bundle.db", signer)
    from gpuaudit.bundle.writer import _Leaf

    writer._append(_Leaf("gap", data, "gaps", real.raw_len, 20, columns, (20, 20, 0)))
    writer.seal({})
    writer.close()
    with pytest.raises(BundleInvalid, match="leaf 1: column start_ns: a zstd frame says"):
        verify(tmp_path / "bundle.db", trust=[signer.identity])


@pytest.mark.parametrize("at", range(0, 400, 7))
def test_malformed_payload_never_ends_in_a_traceback(at: int) -> None:
    encoded = segment.encode(TABLES["gaps"], gap_rows(40))
    payload = bytearray(bytes(limits.SALT_BYTES) + encoded.data)
    payload[16 + at % (len(payload) - 16)] ^= 0xFF
    leaf = header.Header(
        1, "gap", "0" * 64, len(payload), encoded.raw_len, 40, "gaps", encoded.columns, "b", 1, 1, 40, 40, 0, "0" * 64
    )  # fmt: skip
    try:
        rows = segment.decode(leaf, bytes(payload))
    except BundleInvalid:
        return
    assert all(len(c) == 40 for c in rows.values())


def test_decoder_child_that_is_killed_is_a_refusal(sealed: Path) -> None:
    found = leaves(sealed)[1]
    with Decoder() as decoder:
        decoder.check(header.parse(found[1], 1), found[2])
        assert decoder._child is not None
        decoder._child.kill()
        with pytest.raises(BundleInvalid, match="leaf 1: its payload cannot be decoded within the limits"):
            decoder.check(header.parse(found[1], 1), found[2])
        decoder.check(header.parse(found[1], 1), found[2])


def test_lost_events_cannot_be_denied(sealed: Path, signer: MemorySigner, tmp_path: Path) -> None:
    """seen, written and lost are signed in every header, and written must be what the leaves hold."""
    path = copy_bundle(sealed, tmp_path, seal=False)
    replace_leaf(path, 1, change_header(path, 1, seen=20, lost=0))
    with pytest.raises(BundleInvalid, match="leaf 1: its checkpoint says"):
        verify(path, trust=[signer.identity])
    replace_leaf(path, 1, change_header(path, 1, written=25))
    with pytest.raises(BundleInvalid, match="leaf 1: says 25 rows of gaps were written, the leaves hold 20"):
        verify(path, trust=[signer.identity])
