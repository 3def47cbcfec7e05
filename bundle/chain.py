"""The proof inside a bundle: leaf hashes, roots, a signed checkpoint per leaf, and the keys that follow each other.

:func:`walk` goes through it from leaf 0 to the last and stops at the first leaf that is not what was sealed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from gpuaudit.bundle import note
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.header import Header
from gpuaudit.bundle.keys import Identity
from gpuaudit.bundle.merkle import Frontier, leaf_hash
from gpuaudit.bundle.reader import Bundle

ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}/[A-Za-z0-9][A-Za-z0-9._-]{0,63}/[0-9a-f-]{36}\Z")
_HEX32 = re.compile(r"[0-9a-f]{64}\Z")
CLOCK_STEP_NS = 1_000_000_000
"""Wall-clock time may move against BOOTTIME by this much between two leaves before it is called a step; NTP slews
by at most 500 ppm (adjtimex(2)), which is 2.5 ms in the 5 s of a segment."""


@dataclass
class Chain:
    """What a walk has proven. ``sealed_by`` is identity, epoch, or None for a prefix."""

    origin: str
    identity: Identity
    challenge: str
    epoch0: str
    leaf0_hash: str
    root: bytes = b""
    size: int = 0
    sealed_by: str | None = None
    last_epoch_key: bytes = b""
    missing: list[int] = field(default_factory=list)
    """Leaves whose payload is not there; whether that is allowed, the ``.seal`` must say."""
    clock_steps: list[tuple[int, int]] = field(default_factory=list)
    """(leaf, ns) where wall-clock time was set during the capture."""


def walk(bundle: Bundle) -> Chain:
    """Prove every leaf, or raise BundleInvalid naming the first that fails."""
    headers = bundle.headers
    notes = bundle.notes()
    chain = _begin(bundle, headers[0])
    frontier = Frontier()
    counters: dict[str, tuple[int, int, int]] = {}
    epoch_key = bytes.fromhex(chain.epoch0)
    for h in headers:
        hashed = leaf_hash(h.to_bytes())
        frontier.append(hashed)
        _check_counters(h, counters)
        if h.idx:
            _check_time(headers[h.idx - 1], h, chain)
        if bundle.payload(h.idx) is None:
            chain.missing.append(h.idx)
        if h.kind == "seal":
            chain.sealed_by = _check_seal(bundle, headers)
        by_identity = h.idx == 0 or chain.sealed_by == "identity"
        text = note.checkpoint_text(chain.origin, h.idx + 1, frontier.root())
        _check_note(h.idx, next(notes, None), text, chain, epoch_key=epoch_key, by_identity=by_identity)
        chain.last_epoch_key = epoch_key
        epoch_key = bytes.fromhex(h.next_key or "")
    _expect_end(notes, len(headers))
    chain.root, chain.size = frontier.root(), frontier.size
    return chain


def _begin(bundle: Bundle, first: Header) -> Chain:
    body = bundle.open_body
    key, challenge = body.get("identity"), body.get("challenge")
    if not isinstance(key, str) or not _HEX32.match(key) or not isinstance(challenge, str):
        raise BundleInvalid("leaf 0: its body has no identity key or no challenge")
    try:
        origin = next(bundle.notes())[1].decode("utf-8").partition("\n")[0]
    except (StopIteration, UnicodeDecodeError):
        raise BundleInvalid("leaf 0: its checkpoint is missing or not text") from None
    if not ORIGIN.match(origin):
        raise BundleInvalid(f"leaf 0: the origin of its checkpoint is {origin!r:.120}")
    hashed = leaf_hash(first.to_bytes()).hex()
    return Chain(origin, Identity(bytes.fromhex(key), "the bundle"), challenge, first.epoch0 or "", hashed)


def _check_note(
    idx: int, found: tuple[int, bytes] | None, text: str, chain: Chain, *, epoch_key: bytes, by_identity: bool
) -> None:
    """The checkpoint of one leaf: exactly the text expected, exactly the signatures expected, each of them good."""
    if found is None or found[0] != idx + 1:
        raise BundleInvalid(f"leaf {idx}: its checkpoint is missing")
    try:
        got, signatures = note.parse(found[1].decode("utf-8"))
    except UnicodeDecodeError:
        raise BundleInvalid(f"leaf {idx}: its checkpoint is not text") from None
    except BundleInvalid as e:
        raise BundleInvalid(f"leaf {idx}: its checkpoint is {e.message}") from None
    if got != text:
        raise BundleInvalid(f"leaf {idx}: its checkpoint says {got!r:.200}, the leaves give {text!r:.200}")
    expected = [(f"{chain.origin}/epoch/{idx}", epoch_key)]
    if by_identity:
        expected.append((f"{chain.origin}/identity", chain.identity.public_key))
    if [s.name for s in signatures] != [name for name, _ in expected]:
        raise BundleInvalid(
            f"leaf {idx}: its checkpoint is signed by {[s.name for s in signatures]!r:.200}, "
            f"expected {[name for name, _ in expected]!r:.200}"
        )
    for signature, (name, key) in zip(signatures, expected, strict=True):
        if not note.verifies(signature, text, name, key):
            raise BundleInvalid(f"leaf {idx}: the signature of {name} on its checkpoint is not good")


def _expect_end(notes: Iterator[tuple[int, bytes]], size: int) -> None:
    left = next(notes, None)
    if left is not None:
        raise BundleInvalid(f"leaf {size}: missing, but checkpoint {left[0]} tells of it")


def _check_seal(bundle: Bundle, headers: list[Header]) -> str:
    """The seal's own statements: who seals, and the digest of every payload before it."""
    body = bundle.seal_body or {}
    sealed_by = body.get("sealed_by")
    if sealed_by not in ("identity", "epoch"):
        raise BundleInvalid(f"leaf {headers[-1].idx}: sealed by {sealed_by!r:.40}, expected identity or epoch")
    if body.get("manifest") != "".join(f"{h.sha256}  leaf-{h.idx}.payload\n" for h in headers[:-1]):
        raise BundleInvalid(f"leaf {headers[-1].idx}: its manifest does not list the payloads of this bundle")
    return str(sealed_by)


def _check_counters(h: Header, counters: dict[str, tuple[int, int, int]]) -> None:
    """``written`` counts the rows of the table up to and with this leaf; ``seen`` and ``lost`` never fall."""
    if h.table is None or h.rows is None or h.seen is None or h.lost is None:
        return
    seen, written, lost = counters.get(h.table, (0, 0, 0))
    total = written + h.rows
    if h.written != total:
        raise BundleInvalid(f"leaf {h.idx}: says {h.written} rows of {h.table} were written, the leaves hold {total}")
    if h.seen < max(seen, total) or h.lost < lost:
        raise BundleInvalid(f"leaf {h.idx}: its counters for {h.table} run backwards, or fewer were seen than written")
    counters[h.table] = (h.seen, total, h.lost)


def _check_time(before: Header, h: Header, chain: Chain) -> None:
    if h.boot_id != before.boot_id or h.boot_ns < before.boot_ns:
        raise BundleInvalid(f"leaf {h.idx}: made in another boot, or earlier than leaf {before.idx}, by CLOCK_BOOTTIME")
    step = (h.utc_ns - before.utc_ns) - (h.boot_ns - before.boot_ns)
    if abs(step) > CLOCK_STEP_NS:
        chain.clock_steps.append((h.idx, step))
