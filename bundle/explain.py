"""The shell script by which an auditor checks a bundle with sqlite3, openssl 3, sha256sum and xxd alone."""

from __future__ import annotations

import shlex
from pathlib import Path
from urllib.parse import quote

from gpuaudit.bundle import sealfile
from gpuaudit.bundle.chain import walk
from gpuaudit.bundle.errors import InputUnusable
from gpuaudit.bundle.reader import Bundle

_HEAD = """#!/usr/bin/env bash
# Checks a bundle with sqlite3, openssl 3, sha256sum and xxd. The last line must begin with PROVEN.
# ID is the SHA-256 of the identity's public key: compare it with the fingerprint that you were given.
set -euo pipefail
"""

_FUNCTIONS = r"""T=$(mktemp -d); trap 'rm -rf "$T"' EXIT
no() { echo "NOT PROVEN: $1"; exit 1; }
q() { sqlite3 "$U" "$1"; }
sum() { local s; s=$(xxd -r -p | sha256sum); echo "${s%% *}"; }
header() { q "SELECT json_extract(CAST(header AS TEXT),'\$.$2') FROM leaf WHERE idx=$1"; }
key() { printf '302a300506032b6570032100%s' "$1" | xxd -r -p > "$T/key"; }
signed() { # is $T/text signed by $T/key under the name $1? signature lines come on stdin
  local dash name sig; : > "$T/sig"
  while read -r dash name sig; do
    [ "$dash $name" != "— $1" ] || openssl base64 -d -A <<< "$sig" | xxd -s 4 -p | xxd -r -p > "$T/sig"
  done
  openssl pkeyutl -verify -pubin -keyform DER -inkey "$T/key" -rawin -in "$T/text" -sigfile "$T/sig" \
    > "$T/out" 2>&1 || no "signature of $1"; }
checkpoint() { # is the note of size $1, whose root is ${H[0]}, signed under the name $2?
  ROOT=$(xxd -r -p <<< "${H[0]}" | openssl base64); printf '%s\n' "$ORIGIN" "$1" "$ROOT" > "$T/text"
  signed "$2" < <(q "SELECT note FROM checkpoint WHERE size=$1"); }
"""

_LEAVES = r"""[ "$(q "SELECT count(*)||' '||max(idx) FROM leaf")" = "$N $((N-1))" ] || no "number of leaves"
IDENTITY=$(q "SELECT json_extract(CAST(substr(payload,17) AS TEXT),'\$.identity') FROM leaf WHERE idx=0")
key "$IDENTITY"; [ "$(xxd -p -c 44 "$T/key" | sum)" = "$ID" ] || no "fingerprint of the identity"
for ((i=0; i<N; i++)); do
  H[i]=$(q "SELECT '00'||hex(header) FROM leaf WHERE idx=$i" | sum)
  [ "$i" != 0 ] || checkpoint 1 "$ORIGIN/identity"
  case " $WITHHELD " in *" $i "*) continue ;; esac
  [ "$(q "SELECT hex(payload) FROM leaf WHERE idx=$i" | sum)" = "$(header "$i" sha256)" ] || no "payload of leaf $i"
done
for ((n=N; n>1; n=(n+1)/2)); do
  for ((i=0; i+1<n; i+=2)); do H[i/2]=$(sum <<< "01${H[i]}${H[i+1]}"); done
  ((n%2==0)) || H[n/2]=${H[n-1]}
done
"""

_COPY = 'cp -- "$B" "$T/db"; cp -- "$B-wal" "$T/db-wal"; U=$T/db\n'
_BY_IDENTITY = 'checkpoint "$N" "$ORIGIN/identity"\n'
_BY_EPOCH = 'key "$(header {idx} {name})"; checkpoint "$N" "$ORIGIN/epoch/$((N-1))"\n'
_FILE = r"""FILE=$(sha256sum < "$B"); FILE=${FILE%% *}; BYTES=$(($(q "PRAGMA page_count") * $(q "PRAGMA page_size")))
printf '%s\n' "$KIND" "$ORIGIN" "$N" "$ROOT" "$FILE" "$BYTES" > "$T/text"
for i in $WITHHELD; do echo "$i $(header "$i" sha256)" >> "$T/text"; done
signed "$ORIGIN/identity" < "$B.seal"
"""


def explain_commands(path: Path | str) -> str:
    """A bash script, filled in for the bundle at ``path``; BundleInvalid when that is not sound.

    It recomputes the root from the headers, compares every payload with its digest, and checks the identity's
    signature on leaf 0, then on the seal and on the file digest (where the identity did not seal: the epoch key's
    signature on the last checkpoint). It ends with exit code 1 and NOT PROVEN at the first thing that does not hold.
    """
    with Bundle.open(path) as bundle:
        chain = walk(bundle)
        copied = bundle.from_wal
        path = bundle.path.absolute()
    if not str(path).isprintable():
        raise InputUnusable(f"{str(path)!r:.200}: a script cannot hold this name", hint="rename it")
    name, idx = ("epoch0", 0) if chain.size == 1 else ("next_key", chain.size - 2)
    values = {
        "B": str(path), "U": f"file:{quote(str(path))}?immutable=1", "ORIGIN": chain.origin, "N": str(chain.size),
        "ID": chain.identity.fingerprint, "WITHHELD": " ".join(map(str, chain.missing)),
        "KIND": sealfile.WITHHELD_KIND if chain.missing else sealfile.FILE_KIND,
    }  # fmt: skip
    parts = [_HEAD, *(f"{k}={shlex.quote(v)}\n" for k, v in values.items()), _FUNCTIONS]
    parts += [_COPY if copied else "", _LEAVES]
    if chain.sealed_by == "identity":
        parts += [_BY_IDENTITY, _FILE if sealfile.path_beside(path).exists() else ""]
        proven = "sealed by the identity"
    else:
        parts.append(_BY_EPOCH.format(idx=idx, name=name))
        proven = "sealed by its last epoch key" if chain.sealed_by else f"up to leaf {chain.size - 1}, and not sealed"
    return "".join([*parts, f'echo "PROVEN: root $ROOT over $N leaves, {proven}"\n'])
