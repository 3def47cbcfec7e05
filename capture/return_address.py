"""Whether an address can be one that a function returns to, by the instructions around it (x86-64).

Where a caller keeps no frame pointer, a walk by frame pointers reads some other word in its place, which may happen to
be the address of code: a pointer to a function, say. A return address stands behind a call.
"""

from __future__ import annotations

CALL_BYTES = 7
"""The longest call: FF, ModRM, SIB and four bytes of displacement."""

RESTORER = bytes.fromhex("48c7c00f0000000f05")
"""mov $15, %rax; syscall: where a signal handler returns to (rt_sigreturn(2)), which nobody calls."""

_NEAR, _INDIRECT = 0xE8, 0xFF
_SIB, _NO_BASE = 4, 5


def follows_call(before: bytes) -> bool:
    """Whether the last bytes of ``before``, :data:`CALL_BYTES` of them, can be a call instruction.

    From the Intel manual, volume 2: E8 with four bytes, or FF /2 with a register or memory operand. Bytes that only
    look like one pass too: it is a necessary condition.
    """
    if len(before) < CALL_BYTES:
        return False
    if before[-5] == _NEAR:
        return True
    return any(before[-length] == _INDIRECT and _length(before[-length + 1 :]) == length for length in range(2, 8))


def _length(operand: bytes) -> int:
    """Length of FF /2 with this ModRM and what follows; 0 for another instruction."""
    modrm = operand[0]
    mod, extension, rm = modrm >> 6, modrm >> 3 & 7, modrm & 7
    if extension != 2:
        return 0
    if mod == 3:
        return 2
    has_sib = rm == _SIB
    base = operand[1] & 7 if has_sib and len(operand) > 1 else rm
    displacement = {0: 4 if base == _NO_BASE else 0, 1: 1, 2: 4}[mod]
    return 2 + has_sib + displacement


def is_returned_to(before: bytes, after: bytes) -> bool:
    """Whether an address between these bytes can be one that a function returns to."""
    return follows_call(before) or after.startswith(RESTORER)
