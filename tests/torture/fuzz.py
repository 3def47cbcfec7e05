"""Mutation fuzzing of everything that is read from outside: nothing changed may pass, nothing may crash or hang.

Each target takes changed bytes and says what went wrong, or nothing. What is allowed is to refuse them with an error
of the family, or to find the same evidence as before. Batches run in a child process with limits, so that a crash of
the interpreter, a hang or an explosion of memory is a finding as well.
"""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from gpuaudit.analyze.load import parse_document
from gpuaudit.analyze.run import document_bytes
from gpuaudit.bundle import header, segment
from gpuaudit.bundle.errors import AuditError, BundleInvalid
from gpuaudit.bundle.receipt import Receipt
from gpuaudit.bundle.sealfile import path_beside
from gpuaudit.bundle.verify import verify
from tests.bundles import MemorySigner, alter, copy_bundle, leaves, make_bundle
from tests.documents import document
from tests.torture.mutate import mutate
from tests.torture.progress import Progress

BATCH = 250
BATCH_LIMIT_S = 1800
MEMORY_LIMIT_BYTES = 8 << 30
"""Of the address space: the readers promise to stay within 3 GiB (bundle/guard.py), the libraries need the rest."""


class Seeds:
    """One genuine bundle and what hangs on it, made once per batch; every target changes a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signer = MemorySigner()
        self.bundle = folder / "seed.db"
        make_bundle(self.bundle, self.signer)
        self.seal = path_beside(self.bundle).read_bytes()
        self.data = self.bundle.read_bytes()
        self.leaves = leaves(self.bundle)
        self.findings = document_bytes(document())

    def copy(self, data: bytes, seal: bytes | None) -> Path:
        """A bundle file of these bytes, and its ``.seal`` if there is to be one."""
        path = self.folder / "copy.db"
        for stale in self.folder.glob("copy.db*"):
            stale.unlink()
        path.write_bytes(data)
        if seal is not None:
            path_beside(path).write_bytes(seal)
        return path


def _bundle_with_seal(seeds: Seeds, draw: random.Random) -> str:
    data = mutate(seeds.data, draw)
    path = seeds.copy(data, seeds.seal)
    try:
        found = verify(path, trust=[seeds.signer.identity])
    except AuditError:
        return ""
    return "" if data == seeds.data else f"a changed file passed as {found.status}"


def _bundle_without_seal(seeds: Seeds, draw: random.Random) -> str:
    path = seeds.copy(mutate(seeds.data, draw), None)
    try:
        found = verify(path, trust=[seeds.signer.identity])
        same = leaves(path)
    except AuditError:
        return ""
    if same == seeds.leaves:
        return ""
    prefix = same == seeds.leaves[: len(same)] and found.status == "UNSEALED"
    return "" if prefix else f"changed evidence passed as {found.status}"


UPDATES = {
    "header": "UPDATE leaf SET header=CAST(? AS BLOB) WHERE idx=?",
    "payload": "UPDATE leaf SET payload=CAST(? AS BLOB) WHERE idx=?",
    "note": "UPDATE checkpoint SET note=CAST(? AS TEXT) WHERE size=?+1",
}


def _leaf(seeds: Seeds, draw: random.Random) -> str:
    """Change one field of one leaf through SQL, so that SQLite itself has nothing to complain about."""
    path = copy_bundle(seeds.bundle, seeds.folder / "leaf", seal=False)
    idx, head, payload, note = draw.choice(seeds.leaves)
    field, old = draw.choice((("header", head), ("payload", payload), ("note", note.encode())))
    new = mutate(old, draw)
    alter(path, UPDATES[field], parameters=(new, idx), unchecked=True)
    try:
        found = verify(path, trust=[seeds.signer.identity])
    except BundleInvalid as error:
        named = re.search(rf"\b({idx}|{idx + 1})\b", str(error))
        return "" if named else f"leaf {idx} was changed and is not named: {error}"
    return "" if new == old else f"{field} of leaf {idx} was changed, and it passed as {found.status}"


def _seal_file(seeds: Seeds, draw: random.Random) -> str:
    path = seeds.copy(seeds.data, mutate(seeds.seal, draw))
    try:
        verify(path, trust=[seeds.signer.identity])
    except AuditError:
        return ""
    return ""  # a record of an unknown kind may be added; that the evidence is unchanged is checked by its own digest


def _segment(seeds: Seeds, draw: random.Random) -> str:
    """A hostile holder of an identity: header and payload fit each other, and lie."""
    idx, head, payload, _ = draw.choice([leaf for leaf in seeds.leaves if b'"columns":[{' in leaf[1]])
    both = draw.random() < 0.5
    try:
        parsed = header.parse(mutate(head, draw) if both else head, idx)
        segment.decode(parsed, mutate(payload, draw) if not both else payload)
    except AuditError:
        return ""
    return ""


def _findings(seeds: Seeds, draw: random.Random) -> str:
    data = mutate(seeds.findings, draw)
    try:
        document = parse_document(data)
    except AuditError:
        return ""
    return "" if document_bytes(document) == data else "a document was read that is not what its bytes say"


def _receipt(seeds: Seeds, draw: random.Random) -> str:
    text = Receipt("lab/host/uuid", "", "0" * 64, "1" * 64, "2" * 64).to_text()
    try:
        Receipt.from_text(mutate(text.encode(), draw).decode("utf-8", "replace"))
    except AuditError:
        return ""
    return ""


TARGETS: dict[str, Callable[[Seeds, random.Random], str]] = {
    "bundle with .seal": _bundle_with_seal,
    "bundle without .seal": _bundle_without_seal,
    "leaf": _leaf,
    ".seal": _seal_file,
    "segment": _segment,
    "findings": _findings,
    "receipt": _receipt,
}


def batch(first: int, count: int, seed: int) -> list[str]:
    """Runs ``first`` to ``first + count`` of a seed, in this process."""
    problems = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        seeds = Seeds(Path(folder))
        for i in range(first, first + count):
            name = list(TARGETS)[i % len(TARGETS)]
            try:
                problem = TARGETS[name](seeds, random.Random(f"{seed}/{i}"))
            except Exception as error:  # that is what is looked for
                problem = f"{type(error).__name__}: {error}"
            if problem:
                problems.append(f"{name}, run {i} of seed {seed}: {problem}")
    return problems


def run(count: int, seed: int) -> list[str]:
    """``count`` changed inputs over all targets; sentences about those that were not handled."""
    problems: list[str] = []
    with Progress("fuzz", count) as progress:
        for first in range(0, count, BATCH):
            some = min(BATCH, count - first)
            problems += _in_child(first, some, seed)
            progress.step(some)
    return problems


def _in_child(first: int, count: int, seed: int) -> list[str]:
    command = [sys.executable, "-m", "tests.torture.fuzz", str(first), str(count), str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BATCH_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return [f"runs {first} to {first + count - 1} of seed {seed} took longer than {BATCH_LIMIT_S} s"]
    if done.returncode:
        return [
            f"runs {first} to {first + count - 1} of seed {seed} ended with {done.returncode}: {done.stderr[-2000:]}"
        ]
    found = json.loads(done.stdout)
    return [str(problem) for problem in found]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    print(json.dumps(batch(*(int(argument) for argument in sys.argv[1:4]))))
