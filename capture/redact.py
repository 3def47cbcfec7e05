"""Secrets in command lines: what is recognised as one is replaced before it is recorded.

Recognised are: the value of an option, an assignment (``NAME=value``), a header or a member of JSON whose name says
that it is one (:func:`is_secret`); the user part of a URL; and texts that begin as the keys of well-known services do.
A secret under a name that says nothing, or among the positional arguments, is not recognised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

REDACTED = "[redacted]"

_WORDS = frozenset({
    "token", "tokens", "password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets", "credential",
    "credentials", "bearer", "authorization", "apikey", "apikeys", "cookie",
})  # fmt: skip
_BEFORE_KEY = frozenset({
    "api", "access", "private", "secret", "auth", "account", "encryption", "signing", "license", "master", "shared",
})  # fmt: skip
_NO_SECRET = frozenset({
    "id", "ids", "max", "min", "num", "number", "pad", "bos", "eos", "unk", "mask", "image", "per", "limit", "budget",
    "count", "stop", "special", "batched", "total", "prefill", "batch", "length", "new", "size", "skip", "by", "draft",
    "speculative", "interval", "stream", "avg", "mean", "tool", "long", "first", "last", "generated", "input", "output",
    "prompt", "decode", "encoder", "ratio", "index", "audio", "video", "vision", "type", "start", "end", "boi", "eoi",
})  # fmt: skip
"""With one of these, ``token`` is a piece of text: --max-num-batched-tokens, --eos-token-id."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_FLAG = re.compile(r"--?([A-Za-z][A-Za-z0-9_.-]{0,127})\Z")
_ASSIGNED = re.compile(r"([-A-Za-z0-9_.+/]{1,128})=(?=.)", re.DOTALL)
_INNER_FLAG = re.compile(r"(?<![\w-])(--?([A-Za-z][\w.-]{0,127})(?:=|[ \t\n]+)[\"']?)([^\s\"']+)")
_INNER_NAME = re.compile(
    r"(?<![\w.-])(([A-Za-z_][\w.-]{0,127})\\?[\"']?\s*[:=]\s*\\?[\"']?(?:(?:[Bb]earer|[Bb]asic)\s+)?)([^\s\"'\\,;&}]+)"
)
_USER_OF_URL = re.compile(r"(?<=://)[^\s/@?#]{1,512}(?=@)")
_KNOWN = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{8,}|hf_[A-Za-z0-9]{8,}|gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|"
    r"glpat-[\w-]{16,}|xox[abeoprs]-[\w-]{8,}|(?:AKIA|ASIA)[A-Z0-9]{16}|nvapi-[\w-]{16,}|"
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)"
)
"""Keys of OpenAI and its likes, Hugging Face, GitHub, GitLab, Slack, AWS, NVIDIA; JSON web tokens (RFC 7519)."""


def is_secret(name: str) -> bool:
    """Whether what goes by ``name`` (``--api-key``, ``HF_TOKEN``, ``wandb.apiKey``) is to be kept secret."""
    words = [w.lower() for w in _WORD.findall(name)]
    if any(a in _BEFORE_KEY and b in ("key", "keys") for a, b in pairwise(words)):
        return True
    found = _WORDS.intersection(words)
    return bool(found) and (not found <= {"token", "tokens"} or not _NO_SECRET.intersection(words))


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments with :data:`REDACTED` in the place of each secret; as many as there were."""
    out: list[str] = []
    hide = False
    for argument in arguments:
        flag = _FLAG.match(argument)
        assigned = _ASSIGNED.match(argument)
        if flag:
            hide = is_secret(flag[1])
            out.append(redact_text(argument))
        elif assigned and is_secret(assigned[1]):
            hide = False
            out.append(assigned[0] + REDACTED)
        elif hide:  # all that follow: vLLM's --api-key takes several
            out.append(REDACTED)
        else:
            out.append(redact_text(argument))
    return out


def redact_text(text: str) -> str:
    """One argument, a URL or a whole command in one text (``bash -c "…"``)."""
    text = _USER_OF_URL.sub(REDACTED, text)
    for pattern in (_INNER_FLAG, _INNER_NAME):
        text = _without_values(pattern, text)
    return _KNOWN.sub(REDACTED, text)


def _without_values(pattern: re.Pattern[str], text: str) -> str:
    """``pattern`` finds a name (group 2) with what parts it from its value (group 1), and the value."""
    out, at = [], 0
    while found := pattern.search(text, at):
        secret = is_secret(found[2])
        out += [text[at : found.end(1)], REDACTED if secret else ""]
        at = found.end() if secret else found.end(1)  # a value may itself hold names: a URL does
    return "".join(out) + text[at:]
