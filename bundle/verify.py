"""Whether a bundle is what was sealed, by whom, and what is not proven: ``audit verify``.

Signatures come first, decoding last and in a child process with limits. A bundle that was tampered with raises
BundleInvalid, naming the leaf; everything short of that is a status word with an exit code and a sentence.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpuaudit.bundle import note, sealfile
from gpuaudit.bundle.chain import Chain, walk
from gpuaudit.bundle.errors import EXIT_DONE, EXIT_NEGATIVE, BundleInvalid, InputUnusable
from gpuaudit.bundle.explain import explain_commands
from gpuaudit.bundle.guard import Decoder
from gpuaudit.bundle.keys import Identity
from gpuaudit.bundle.ledger import Ledger
from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.receipt import Receipt
from gpuaudit.bundle.sealfile import FILE_KIND, Record

__all__ = ["STATUSES", "Check", "Verification", "explain_commands", "verify"]

STATUSES: dict[str, str] = {
    "RECEIPT-MISMATCH": "It is not the capture that the start receipt tells of.",
    "RECEIPT-ABSENT": "A start receipt was demanded, and none was given.",
    "CHALLENGE-MISMATCH": "Leaf 0 does not hold the challenge that was demanded.",
    "UNKNOWN-SIGNER": "The identity that signed it is not among the trusted ones.",
    "UNSEALED": "It has no seal: it is proven up to its last checkpoint, and nothing after that leaf is proven; "
    "a cut to a genuine checkpoint looks the same.",
    "COSIGNER-ABSENT": "A countersignature was demanded, and there is none by that identity.",
    "SEALED-BY-EPOCH": "The identity was absent at the end; the last epoch key alone sealed it.",
    "WITHHELD": "Payloads were withheld by the identity.",
    "SEALED": "Sealed by a trusted identity.",
}
"""Status words and what they say, the gravest first: a bundle gets the first that applies."""

_DONE = ("SEALED", "WITHHELD")
_NO_RECEIPT = "No start receipt was given: whoever holds the identity key could have made the whole bundle."
_NO_DIGEST = "There is no .seal file: the digest of the whole file was not checked. Every header, payload and note was."


@dataclass(frozen=True)
class Check:
    """One thing that was checked: its name, whether it holds, and what was found."""

    name: str
    ok: bool
    detail: str


@dataclass
class Verification:
    """The answer. ``identity_sha256`` is the fingerprint of the identity that signed; ``notices`` are sentences."""

    status: str
    exit_code: int
    origin: str
    root_b64: str
    size: int
    file_sha256: str
    identity_sha256: str
    challenge: str
    withheld: tuple[int, ...] = ()
    notices: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


@dataclass(frozen=True)
class _Demands:
    receipt: Receipt | None
    require_receipt: bool
    challenge: str | None
    cosigner: Identity | None
    complete: bool


_CLOCK_SET = "The wall clock was set by"

IMPORTED_NOTICE = (
    "IMPORTED: it holds recordings made by other tools; the seal proves that they have not changed since the import."
)


def verify(
    path: Path | str, *, trust: Sequence[Identity] = (), receipt: Receipt | None = None, complete: bool = False,
    require_cosigner: Identity | None = None, require_receipt: bool = False, challenge: str | None = None,
    ledger: Path | None = None, decode: bool = True,
) -> Verification:  # fmt: skip
    """Verify a bundle and say so in a status word.

    ``trust``: identities pinned by their fingerprint; the key inside a bundle is never trusted by itself. ``receipt``,
    ``challenge``, ``require_cosigner``: what must fit. ``complete``: withheld payloads are a negative answer.
    ``ledger``: a file of the roots seen before, by trusted identities; this one is looked up and added. ``decode``
    False leaves out the last check, that every segment decodes. Raises BundleInvalid for what was tampered with or is
    no bundle, InputUnusable for what cannot be read.
    """
    demands = _Demands(receipt, require_receipt, challenge, require_cosigner, complete)
    with Bundle.open(path) as bundle:
        records = _read_seal(bundle)
        digest, length = _digest(bundle.path)
        chain = walk(bundle)
        withheld = _check_seal_file(records, chain, bundle, digest, length)
        result = _judge(chain, withheld, records, trust, demands)
        result.file_sha256 = digest
        if decode:
            result.checks.append(_decode_all(bundle))
        bundle.check_unchanged()
        if bundle.open_body.get("imported") is not None:
            # Leaves of an import follow the recordings' axis, which is days from the importing host's boot clock.
            result.notices = [n for n in result.notices if not n.startswith(_CLOCK_SET)]
            result.notices.append(IMPORTED_NOTICE)
        if bundle.from_wal:
            result.notices.append("It was read beside its write-ahead log: the capture did not end properly.")
    if ledger is not None and result.identity_sha256 in {i.fingerprint for i in trust}:
        result.notices += Ledger(ledger).record(
            result.origin, result.size, result.root_b64, chain.sealed_by is not None
        )
    return result


def _read_seal(bundle: Bundle) -> list[Record]:
    """The records of the ``.seal``; empty when there is none."""
    records = sealfile.read_beside(bundle.path)
    name = sealfile.path_beside(bundle.path).name
    if records and not any(r.has_digest for r in records):
        raise BundleInvalid(f"{name} holds no digest of the file")
    if records and bundle.from_wal:
        raise BundleInvalid(
            f"{bundle.path.name} is finished (there is {name}), and yet a write-ahead log lies beside it"
        )
    return records


def _digest(path: Path) -> tuple[str, int]:
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest(), f.tell()
    except OSError as e:
        raise InputUnusable(f"cannot read {path}: {e.strerror}") from None


def _check_seal_file(
    records: list[Record], chain: Chain, bundle: Bundle, digest: str, length: int
) -> dict[int, str]:  # fmt: skip
    """Check every record against the chain and the last against the file; the payloads that may be missing."""
    last: Record | None = None
    for record in (r for r in records if r.has_digest):
        if (record.origin, record.size, record.root) != (chain.origin, chain.size, chain.root):
            raise BundleInvalid(".seal belongs to another bundle: origin, size or root differ")
        if chain.sealed_by is None:
            raise BundleInvalid("there is a .seal, and yet the last leaf is no seal")
        _check_record_signatures(record, chain)
        last = record
    if last is not None and (last.file_sha256, last.file_len) != (digest, length):
        said = f"{last.file_sha256} over {last.file_len} bytes"
        raise BundleInvalid(f"the file was changed: SHA-256 is {digest} over {length} bytes, .seal says {said}")
    withheld = last.withheld if last is not None else {}
    for idx in chain.missing:
        if withheld.get(idx) != bundle.headers[idx].sha256:
            raise BundleInvalid(f"leaf {idx}: its payload is missing, and no withheld record in .seal names it")
    return {idx: sha for idx, sha in withheld.items() if idx in chain.missing}


def _check_record_signatures(record: Record, chain: Chain) -> None:
    """The last epoch key and the identity on a file record (the identity only if it sealed), the identity on others."""
    expected = []
    if record.kind == FILE_KIND:
        expected.append((f"{chain.origin}/epoch/{chain.size - 1}", chain.last_epoch_key))
    if record.kind != FILE_KIND or chain.sealed_by == "identity":
        expected.append((f"{chain.origin}/identity", chain.identity.public_key))
    for name, key in expected:
        own = [s for s in record.signatures if s.name == name]
        if len(own) != 1 or not note.verifies(own[0], record.text, name, key):
            raise BundleInvalid(f".seal: record {record.kind}: the signature of {name} is missing or not good")


def _judge(
    chain: Chain, withheld: dict[int, str], records: list[Record], trust: Sequence[Identity], demands: _Demands
) -> Verification:
    """The status word, and every check behind it."""
    checks: dict[str, Check] = {
        "leaves": Check("leaves", True, f"{chain.size} headers, payload digests and counters are as sealed"),
        "checkpoints": Check("checkpoints", True, f"{chain.size} roots and epoch signatures are good"),
    }
    fingerprint = chain.identity.fingerprint
    known = fingerprint in {i.fingerprint for i in trust}
    by_whom = f"SHA-256 {fingerprint}, {'trusted' if known else 'not trusted'}; it signed leaf 0"
    checks["UNKNOWN-SIGNER"] = Check("identity", known, by_whom)
    sealed = {"identity": "the identity signed it", "epoch": "the last epoch key alone signed it"}
    checks["UNSEALED"] = Check("seal", chain.sealed_by is not None, sealed.get(chain.sealed_by or "", "there is none"))
    if chain.sealed_by == "epoch":
        checks["SEALED-BY-EPOCH"] = Check("seal by identity", False, sealed["epoch"])
    if withheld:
        leaves = ", ".join(map(str, sorted(withheld)))
        checks["WITHHELD"] = Check("payloads", False, f"withheld: leaves {leaves}")
    checks |= _demanded(chain, records, demands)
    status = next((s for s in STATUSES if s in checks and not checks[s].ok), "SEALED")
    negative = status not in _DONE or (status == "WITHHELD" and demands.complete)
    notices = [STATUSES[s] for s in STATUSES if s in checks and not checks[s].ok]
    return Verification(
        status=status, exit_code=EXIT_NEGATIVE if negative else EXIT_DONE, origin=chain.origin,
        root_b64=base64.b64encode(chain.root).decode(), size=chain.size, file_sha256="", identity_sha256=fingerprint,
        challenge=chain.challenge, withheld=tuple(sorted(withheld)),
        notices=notices + _notices(chain, records, demands),
        checks=[*checks.values(), Check("file digest", bool(records), "signed in .seal" if records else "not checked")],
    )  # fmt: skip


def _demanded(chain: Chain, records: list[Record], demands: _Demands) -> dict[str, Check]:
    """Checks of what the caller asked for."""
    out: dict[str, Check] = {}
    receipt = demands.receipt
    if receipt is not None:
        got = Receipt(chain.origin, chain.challenge, chain.identity.fingerprint, chain.epoch0, chain.leaf0_hash)
        wrong = [name for name, value in vars(receipt).items() if value != getattr(got, name)]
        detail = f"differs in {', '.join(wrong)}" if wrong else "fits leaf 0"
        out["RECEIPT-MISMATCH"] = Check("start receipt", not wrong, detail)
    elif demands.require_receipt:
        out["RECEIPT-ABSENT"] = Check("start receipt", False, "demanded, and not given")
    if demands.challenge is not None:
        fits = demands.challenge == chain.challenge
        out["CHALLENGE-MISMATCH"] = Check("challenge", fits, f"leaf 0 holds {chain.challenge!r}")
    if demands.cosigner is not None:
        key = demands.cosigner.public_key
        lines = [(s, r.text) for r in records if r.has_digest for s in r.signatures]
        found = any(note.verifies(s, text, s.name, key) for s, text in lines) and key != chain.identity.public_key
        detail = f"SHA-256 {demands.cosigner.fingerprint}: {'found' if found else 'absent'}"
        out["COSIGNER-ABSENT"] = Check("countersignature", found, detail)
    return out


def _notices(chain: Chain, records: list[Record], demands: _Demands) -> list[str]:
    out = []
    if demands.receipt is None:
        out.append(_NO_RECEIPT)
    if not records:
        out.append(_NO_DIGEST)
    for kind in sorted({r.kind for r in records if not r.has_digest}):
        out.append(f"The .seal holds a record of a kind that this version does not know: {kind!r:.80}.")
    for idx, step_ns in chain.clock_steps:
        out.append(f"{_CLOCK_SET} {step_ns / 1e9:+.3f} s before leaf {idx}; times of rows are not affected.")
    return out


def _decode_all(bundle: Bundle) -> Check:
    """Decode every segment, in a child with limits; BundleInvalid naming the leaf that cannot be."""
    count = rows = 0
    with Decoder() as decoder:
        for h in bundle.headers:
            if h.has_rows and (payload := bundle.payload(h.idx)) is not None:
                decoder.check(h, payload)
                count += 1
                rows += h.rows or 0
    return Check("decoding", True, f"{count} segments hold {rows} rows")
