"""From a bundle to its findings document: verify, then decode, then everything else, the same bytes every time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gpuaudit.analyze.appendix import appendix
from gpuaudit.analyze.catalogue import Catalogue
from gpuaudit.analyze.causal.detect import detectors
from gpuaudit.analyze.causal.merging import merged
from gpuaudit.analyze.charts import charts
from gpuaudit.analyze.context import Context, Found
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.finding import Chain, Document, Finding, Json, RuleOutcome, number_to_json
from gpuaudit.analyze.host import cost, host
from gpuaudit.analyze.inference.grouping import groups as root_causes
from gpuaudit.analyze.operations import operations
from gpuaudit.analyze.policy import Policy
from gpuaudit.analyze.prices import PriceBook, PriceFile
from gpuaudit.analyze.quality import read_quality
from gpuaudit.analyze.registry import plugins, section_makers
from gpuaudit.analyze.store import Store
from gpuaudit.analyze.waste import waste
from gpuaudit.analyze.window import read_window
from gpuaudit.bundle import canonical
from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.reader import Bundle
from gpuaudit.bundle.tool import tool_facts
from gpuaudit.bundle.verify import Verification, verify

if TYPE_CHECKING:
    from gpuaudit.bundle.keys import Identity

SEVERITIES = ("critical", "warning", "notice")


@dataclass(frozen=True)
class AnalyzeOptions:
    """What is asked of an analysis; ``trust`` are the pinned identities, ``rate`` a price per GPU-hour.

    ``policy`` overrides thresholds of rules and detectors (``analyze/policy.py``), ``prices`` is a price file in
    ``currency`` (``analyze/prices.py``), ``catalogue`` the one to use, with the user's overlays,
    ``duty_cycle`` is the share of all time in which the host works as in the capture: without it nothing is projected.
    """

    rate: Decimal | None = None
    currency: str = "USD"
    trust: Sequence[Identity] = ()
    policy: Policy | None = None
    prices: PriceFile | None = None
    catalogue: Catalogue | None = None
    duty_cycle: Fraction | None = None


def analyze(path: Path | str, options: AnalyzeOptions | None = None) -> Document:
    """The findings of a bundle; the file is read and never changed.

    BundleInvalid when it was tampered with (exit 3). An unsealed bundle or an unknown signer is analysed, said on
    page 1, and graded C at best.
    """
    options = options or AnalyzeOptions()
    verification, store = read_evidence(Path(path), options.trust)
    return analyze_store(store, verification, options)


def read_evidence(path: Path, trust: Sequence[Identity]) -> tuple[Verification, Store]:
    """A verified bundle decoded into a store: the very bytes that were verified, or BundleInvalid."""
    verification = verify(path, trust=trust, decode=False)
    with Bundle.open(path) as bundle:
        bundle.check_root(verification.root_b64)
        store = Store.from_bundle(bundle)
        bundle.check_unchanged()
    with path.open("rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != verification.file_sha256:
            raise BundleInvalid(f"{path.name} was changed while it was being analysed")
    return verification, store


def analyze_store(store: Store, verification: Verification, options: AnalyzeOptions) -> Document:
    """The findings of evidence that is in a store already; a pure function of its arguments."""
    return examine(store, verification, options)[0]


def examine(store: Store, verification: Verification, options: AnalyzeOptions) -> tuple[Document, Context]:
    """The same, with what the findings were made from: for what is drawn of them (``analyze/lanes.py``)."""
    catalogue = options.catalogue or Catalogue.load()
    prices = PriceBook.make(catalogue, options.rate, options.prices, options.currency)
    rate = prices.rate
    window = read_window(store)
    quality = read_quality(store, window, verification.status)
    context = Context(
        store, window, quality, EvidenceBook(store), options.policy or Policy.default(), catalogue, prices
    )
    findings, chains, outcomes = _evaluate(context)
    context.findings, context.groups, context.outcomes = findings, root_causes(context, findings), outcomes
    document = Document(
        tool=dict(tool_facts()),
        options={
            "rate": None if rate is None else f"{rate.per_hour:f}",
            "currency": options.currency if prices.given else "",
            "duty_cycle": None if options.duty_cycle is None else number_to_json(options.duty_cycle),
            "policy_sha256": context.policy.sha256,
            "prices_sha256": prices.listed.sha256 if prices.listed is not None else "",
            "catalogue_sha256": [o.sha256 for o in catalogue.overlays],
            "trusted_identities": sorted({i.fingerprint for i in options.trust}),
        },
        bundle=_bundle(store, verification),
        host=host(store.open_body),
        window=window.to_json(),
        quality=quality.to_json(context.book),
        operations=operations(store, context.book),
        outcomes=outcomes,
        findings=findings,
        chains=chains,
        waste=waste(context, options.duty_cycle),
        cost={"rows": cost(store, context.book)},
        charts=charts(context, chains),
        appendix=appendix(context, rate),
        groups=context.groups,
        sections=[make(context) for make in section_makers()],
    )
    document.evidence = context.book.entries()
    return document, context


def document_bytes(document: Document) -> bytes:
    """``findings.json``: canonical JSON (RFC 8785), so that equal findings are equal bytes."""
    return canonical.dumps(document.to_json())


def _evaluate(context: Context) -> tuple[list[Finding], list[Chain], list[RuleOutcome]]:
    findings: list[Finding] = []
    chains: list[Chain] = []
    outcomes: list[RuleOutcome] = []
    for plugin in plugins():
        outcome = plugin.evaluate(context)
        if not isinstance(outcome, Found):
            outcomes.append(RuleOutcome(plugin.declaration.id, "not evaluated", outcome.reason))
            continue
        findings += [x for x in outcome.items if isinstance(x, Finding)]
        chains += [x for x in outcome.items if isinstance(x, Chain)]
        outcomes.append(RuleOutcome(plugin.declaration.id, "finding" if outcome.items else "clear", outcome.reason))
    order = {known.declaration.id: n for n, known in enumerate(detectors())}
    chains = merged(chains, order, {p.declaration.id: p.declaration for p in plugins()})
    return _numbered(findings, "F"), _numbered(chains, "C"), outcomes


Item = TypeVar("Item", Finding, Chain)


def _numbered(items: list[Item], letter: str) -> list[Item]:
    """Gravest first, then by impact; what is equal keeps the order of rules and subjects."""
    ordered = sorted(items, key=lambda x: (SEVERITIES.index(x.severity), -(x.impact.value or 0)))
    return [replace(x, id=f"{letter}{i}") for i, x in enumerate(ordered, start=1)]


def _bundle(store: Store, v: Verification) -> dict[str, Json]:
    return {
        "origin": v.origin, "root": v.root_b64, "size": v.size, "status": v.status, "file_sha256": v.file_sha256,
        "identity_sha256": v.identity_sha256, "synthetic": store.open_body.get("synthetic") is not False,
        "imported": store.open_body.get("imported") is not None,
        "notices": [*v.notices, *_remote(store)],
    }  # fmt: skip


def _remote(store: Store) -> list[str]:
    """What page 1 says of engines that were asked over the network, which nothing else of a capture is."""
    urls = [str(u) for (u,) in store.sql("SELECT DISTINCT url FROM engines WHERE remote = 1 ORDER BY url")]
    return [f"Engines on other hosts were asked over the network, by --allow-remote: {', '.join(urls)}"] if urls else []
