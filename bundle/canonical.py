"""Canonical JSON (RFC 8785) and a strict parser for JSON that somebody hostile may have written.

One value has exactly one encoding, so that a digest of it means something: keys sorted by UTF-16 code units, shortest
number form, no white space. Integers past 2^53 − 1 are refused (RFC 7493, section 2.2): pass them as decimal strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from json.encoder import encode_basestring
from typing import Any

from gpuaudit.bundle.errors import BundleInvalid
from gpuaudit.bundle.limits import MAX_JSON_COMMAS

MAX_SAFE_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader keeps exact (RFC 7493, section 2.2)."""

MAX_DEPTH = 64
"""Nesting that a document of ours never reaches (the deepest, findings.json, has 8)."""

Json = Any
"""None, bool, int, float, str, list or dict with string keys."""


def dumps(obj: Json) -> bytes:
    """The RFC 8785 encoding of ``obj``; ValueError for what it cannot hold (NaN, large integers, lone surrogates)."""
    out: list[str] = []
    _write(obj, out, 0)
    try:
        return "".join(out).encode("utf-8")
    except UnicodeEncodeError as e:
        raise ValueError(f"canonical JSON: lone surrogate in a string: {e.object[e.start : e.end]!r}") from None


def _write(obj: Json, out: list[str], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"canonical JSON: nested deeper than {MAX_DEPTH}")
    if isinstance(obj, str):
        out.append(encode_basestring(obj))
    elif obj is None or isinstance(obj, bool):
        out.append({None: "null", True: "true", False: "false"}[obj])
    elif isinstance(obj, int | float):
        out.append(_number(obj))
    elif isinstance(obj, list | tuple):
        _sequence("[", obj, "]", out, depth)
    elif isinstance(obj, dict):
        _mapping(obj, out, depth)
    else:
        raise ValueError(f"canonical JSON: cannot hold a {type(obj).__name__}")


def _sequence(start: str, items: Iterable[Json], end: str, out: list[str], depth: int) -> None:
    out.append(start)
    for i, item in enumerate(items):
        if i:
            out.append(",")
        _write(item, out, depth + 1)
    out.append(end)


def _mapping(obj: dict[Any, Json], out: list[str], depth: int) -> None:
    if not all(isinstance(k, str) for k in obj):
        raise ValueError("canonical JSON: a key is not a string")
    out.append("{")
    order = None if "".join(obj).isascii() else _utf16
    for i, key in enumerate(sorted(obj, key=order)):
        if i:
            out.append(",")
        out.append(encode_basestring(key))
        out.append(":")
        _write(obj[key], out, depth + 1)
    out.append("}")


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be", "surrogatepass")


def _number(value: int | float) -> str:
    if isinstance(value, int):
        if abs(value) > MAX_SAFE_INTEGER:
            raise ValueError(f"canonical JSON: {value} is past 2^53 − 1; pass it as a decimal string")
        return str(int(value))
    if not math.isfinite(value):
        raise ValueError(f"canonical JSON: {value} is not a number")
    return _ecmascript(float(value))


def _ecmascript(value: float) -> str:
    """Number.prototype.toString of ECMA-262; the digits are Python's shortest repr, only the layout differs."""
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    point = int(exponent or 0) + len(whole) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        text = digits + "0" * (point - count)
    elif 0 < point <= 21:
        text = digits[:point] + "." + digits[point:]
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        e = point - 1
        text = digits[0] + ("." + digits[1:] if count > 1 else "") + f"e{'+' if e > 0 else '-'}{abs(e)}"
    return sign + text


def loads(data: bytes) -> Json:
    """Parse UTF-8 JSON strictly; BundleInvalid for anything doubtful.

    Refused: duplicate keys, NaN and infinities, integers past 2^53 − 1, lone surrogates, a byte-order mark, nesting
    past ``MAX_DEPTH``, more than ``MAX_JSON_COMMAS``, and bytes that are not JSON.
    """
    if data.count(b",") > MAX_JSON_COMMAS:
        raise BundleInvalid(f"JSON holds more than {MAX_JSON_COMMAS} commas")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer,
            parse_float=_float,
        )  # fmt: skip
    except RecursionError:
        raise BundleInvalid(f"JSON is nested deeper than {MAX_DEPTH}") from None
    except ValueError as e:  # JSONDecodeError, UnicodeDecodeError and our own refusals
        raise BundleInvalid(f"not the JSON it should be: {e}") from None
    _check(value)
    return value


def loads_canonical(data: bytes) -> Json:
    """Like :func:`loads`, and the bytes must be the canonical encoding of what they say; BundleInvalid otherwise."""
    value = loads(data)
    if dumps(value) != data:
        raise BundleInvalid("JSON is not in canonical form (RFC 8785)")
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key stands twice")
    return out


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_SAFE_INTEGER:
        raise ValueError("an integer is past 2^53 − 1")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is past the range of a double")
    return value


def _check(value: Json) -> None:
    """Refuse nesting past ``MAX_DEPTH`` and strings that are not Unicode text, without recursion."""
    pending: list[tuple[Json, int]] = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise BundleInvalid(f"JSON is nested deeper than {MAX_DEPTH}")
        if isinstance(item, dict):
            pending += ((k, depth + 1) for k in item)
            pending += ((v, depth + 1) for v in item.values())
        elif isinstance(item, list):
            pending += ((v, depth + 1) for v in item)
        elif isinstance(item, str) and not item.isascii():
            try:
                item.encode("utf-8")
            except UnicodeEncodeError:
                raise BundleInvalid("JSON holds a lone surrogate, which is not Unicode text") from None
