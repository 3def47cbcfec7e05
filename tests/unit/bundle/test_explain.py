"""The auditor's shell script is run as it is printed: it proves a genuine bundle and refuses a changed one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gpuaudit.bundle import note
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.verify import explain_commands, verify
from tests.bundles import MemorySigner, alter, change_header, copy_bundle, leaves, make_bundle, replace_leaf, withhold

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("bash", "sqlite3", "openssl", "sha256sum", "xxd")),
    reason="needs bash, sqlite3, openssl, sha256sum and xxd",
)


def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    bash = [str(shutil.which("bash")), "-c", script]
    env = {**os.environ, **variables}
    return subprocess.run(bash, env=env, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def signer() -> MemorySigner:
    return MemorySigner()


@pytest.fixture
def bundle(tmp_path: Path, signer: MemorySigner) -> Path:
    path = tmp_path / "a b's ?#%" / "bundle.db"
    path.parent.mkdir()
    make_bundle(path, signer)
    return path


def test_proves_a_genuine_bundle(bundle: Path, signer: MemorySigner) -> None:
    script = explain_commands(bundle)
    done = run(script)
    assert done.returncode == 0, done
    root = verify(bundle, trust=[signer.identity]).root_b64
    assert done.stdout == f"PROVEN: root {root} over 6 leaves, sealed by the identity\n"
    assert done.stderr == ""
    assert f"ID={signer.identity.fingerprint}\n" in script


def test_needs_no_other_tools(bundle: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sqlite3", "openssl", "sha256sum", "xxd", "mktemp", "rm"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    done = run(explain_commands(bundle), PATH=str(tools))
    assert (done.returncode, done.stderr) == (0, ""), done


def edit_payload(path: Path) -> None:
    payload = leaves(path)[1][2]
    alter(path, "UPDATE leaf SET payload=? WHERE idx=1", parameters=(payload[:-1] + bytes([payload[-1] ^ 1]),))


def edit_header(path: Path) -> None:
    replace_leaf(path, 1, change_header(path, 1, lost=0))


def drop_leaf(path: Path) -> None:
    alter(path, "DELETE FROM leaf WHERE idx=3")


def append_leaf(path: Path) -> None:
    alter(path, "INSERT INTO leaf SELECT 6,kind,header,payload FROM leaf WHERE idx=4")


def swap_leaves(path: Path) -> None:
    for old, new in ((3, 9), (4, 3), (9, 4)):
        alter(path, "UPDATE leaf SET idx=? WHERE idx=?", parameters=(new, old))


def edit_signature_of(size: int) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        text, signatures = note.parse(leaves(path)[size - 1][3])
        raw = signatures[1].signature
        signatures[1] = replace(signatures[1], signature=bytes([raw[0] ^ 1]) + raw[1:])
        alter(path, "UPDATE checkpoint SET note=? WHERE size=?", parameters=(note.assemble(text, signatures), size))

    return edit


def put_note_of_another_leaf(path: Path) -> None:
    alter(path, "UPDATE checkpoint SET note=(SELECT note FROM checkpoint WHERE size=5) WHERE size=6")


@pytest.mark.parametrize("seal", [True, False])
@pytest.mark.parametrize(
    "attack",
    [
        edit_payload, edit_header, drop_leaf, append_leaf, swap_leaves, edit_signature_of(1), edit_signature_of(6),
        put_note_of_another_leaf,
    ],
)  # fmt: skip
def test_refuses_a_changed_bundle(bundle: Path, tmp_path: Path, attack: Callable[[Path], None], seal: bool) -> None:
    copy = copy_bundle(bundle, tmp_path / "copy", seal=seal)
    script = explain_commands(copy)  # of the untouched bundle, so that the change alone makes the difference
    attack(copy)
    done = run(script)
    assert (done.returncode, done.stdout.startswith("NOT PROVEN: ")) == (1, True), done


def test_refuses_a_changed_byte_that_sqlite_does_not_use(bundle: Path, tmp_path: Path) -> None:
    copy = copy_bundle(bundle, tmp_path / "copy")
    script = explain_commands(copy)
    with copy.open("r+b") as f:
        f.seek(72)
        f.write(b"\x01")
    assert run(script).stdout.startswith("NOT PROVEN: signature of lab/host-1/")


def test_refuses_another_identity(bundle: Path, tmp_path: Path, signer: MemorySigner) -> None:
    script = explain_commands(bundle).replace(signer.identity.fingerprint, MemorySigner().identity.fingerprint)
    assert run(script).stdout == "NOT PROVEN: fingerprint of the identity\n"


def test_unsealed_prefix_beside_its_log(tmp_path: Path, signer: MemorySigner) -> None:
    path = tmp_path / "bundle.db"
    writer = make_bundle(path, signer, seal=False)
    done = run(explain_commands(path))
    assert done.stdout.endswith("over 5 leaves, up to leaf 4, and not sealed\n"), done
    writer.close()
    assert run(explain_commands(path)).stdout == done.stdout


def test_sealed_by_epoch_and_withheld(tmp_path: Path, bundle: Path, signer: MemorySigner) -> None:
    withhold(bundle, signer, 1, 3)
    assert run(explain_commands(bundle)).returncode == 0
    token = MemorySigner()
    writer = make_bundle(tmp_path / "token.db", token, seal=False)
    token.absent = True
    writer.seal({})
    writer.close()
    assert run(explain_commands(tmp_path / "token.db")).stdout.endswith("sealed by its last epoch key\n")


def test_is_not_printed_for_a_tampered_bundle(bundle: Path) -> None:
    replace_leaf(bundle, 1, change_header(bundle, 1, lost=0))
    with pytest.raises(BundleInvalid, match="leaf 1"):
        explain_commands(bundle)
