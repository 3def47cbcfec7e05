"""Finding a GPU or model in the catalogue by the name it gives itself: whole words only, and nothing in doubt.

A row names the words that have to be in a name and those that may be. Any other word, unless it is one that says
nothing about which product it is, is a doubt: ``Llama-3.2-11B`` is not Llama 3.2 1B, ``RTX 4090 Laptop`` is not an RTX
4090. No row is better than a wrong row: everything computed from it would be wrong, and look right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

MAX_NAME = 512
"""A longer name is not a product's."""

_WORD = re.compile(r"[a-z0-9]+(?:\.[a-z0-9]+)*")
_SXM = re.compile(r"sxm\d\Z")
_RELEASE = re.compile(r"\d{4}\Z")
"""A release by year and month or month and day (2411, 0528): the same architecture."""

GPU_NEUTRAL = frozenset(["nvidia", "amd", "geforce", "radeon", "instinct", "gpu"])
"""Words of a GPU's name that tell no products apart."""

MODEL_NEUTRAL = frozenset(["instruct", "chat", "it", "base", "hf"])
"""Words of a model's name that say how it was trained or packed, not how large it is."""

QUANTISED = frozenset((
    "fp8", "int8", "8bit", "w8a8", "w8a16", "awq", "gptq", "int4", "4bit", "w4a16", "w4a8", "bnb", "gguf",
    "nvfp4", "mxfp4", "fp4", "nf4", "exl2", "marlin", "quantized",
))  # fmt: skip
"""Words that say the weights were quantised: the same model, but not the catalogue's type of weights."""


def gpu_words(name: str) -> frozenset[str]:
    """Words of a GPU's name; the generation of a socket (SXM4, SXM5) is not told apart."""
    return frozenset("sxm" if _SXM.match(w) else w for w in _words(name)) - GPU_NEUTRAL


def model_words(name: str) -> frozenset[str]:
    """Words of a model's own name: what stands after the publisher or folders, without words of packing."""
    own = name.rstrip("/").rsplit("/", 1)[-1]
    return frozenset(w for w in _words(own) if not _RELEASE.match(w)) - MODEL_NEUTRAL - QUANTISED


def own_words(name: str) -> frozenset[str]:
    """Every word of a model's own name, of packing and training too; none where it is too long."""
    return frozenset(_words(name.rstrip("/").rsplit("/", 1)[-1].replace("_", " ")))


def model_pattern_words(text: str) -> frozenset[str]:
    """Words of a pattern for models: as of a name, and its release."""
    return model_words(text) | release_words(text)


def release_words(name: str) -> frozenset[str]:
    """Four-digit words of a model's own name: some rows are found by their release alone."""
    return frozenset(w for w in _words(name.rstrip("/").rsplit("/", 1)[-1]) if _RELEASE.match(w))


def names_quantisation(name: str) -> bool:
    """Whether a model's name says that its weights were quantised."""
    return bool(frozenset(_words(name.rstrip("/").rsplit("/", 1)[-1])) & QUANTISED)


def _words(name: str) -> list[str]:
    return _WORD.findall(name.lower()) if len(name) <= MAX_NAME else []


@dataclass(frozen=True)
class Pattern:
    """Alternatives of words that have to be there, and words that may be."""

    alternatives: tuple[frozenset[str], ...]
    also: frozenset[str]

    @classmethod
    def parse(cls, match: str, also: str, normal: Callable[[str], frozenset[str]]) -> Pattern:
        """Of the columns ``match`` (``h100+hbm3 | h100+sxm``; empty: never) and ``also`` (words with spaces).

        ``normal`` makes words of a text as it does of a name. ValueError where an alternative has none that counts.
        """
        sets = tuple(normal(a.replace("+", " ")) for a in match.split("|") if a.strip())
        if not all(sets):
            raise ValueError("an alternative without a word that tells products apart")
        return cls(sets, normal(also))

    def matched(self, words: frozenset[str], spare: frozenset[str] = frozenset()) -> int:
        """How many words an alternative explains, with nothing left over; 0 where none does.

        ``spare`` are words that an alternative may name and that are no doubt when it does not.
        """
        fitting = [a for a in self.alternatives if a <= words | spare and words - a <= self.also]
        return max(map(len, fitting), default=0)


class _Named(Protocol):
    @property
    def pattern(self) -> Pattern: ...


R = TypeVar("R", bound=_Named)


def best(rows: Iterable[R], words: frozenset[str], spare: frozenset[str] = frozenset()) -> R | None:
    """The row that explains most of a name; None where none explains all of it, or two do so alike."""
    scored: Sequence[tuple[int, R]] = [(n, r) for r in rows if (n := r.pattern.matched(words, spare))]
    top = max((n for n, _ in scored), default=0)
    found = [r for n, r in scored if n == top]
    return found[0] if len(found) == 1 else None
