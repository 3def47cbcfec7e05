"""Values behind pointers, and products: whole and right, or null."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.doubles.build import build
from tests.integration.recording import Row, recording, start

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

CODE = """
import ctypes as C, mmap, sys
n = C.CDLL(sys.argv[1])
S, P = C.c_size_t, C.c_void_p
pointer, pitch = P(), S()
def pitched(width, height): n.cudaMallocPitch(C.byref(pointer), C.byref(pitch), S(width), S(height))
pitched(1000, 3)
pitched(1 << 40, 1 << 25)
pitched(13, 3)
n.thread_that_ends_in_a_call()
def copy(width, height): n.cudaMemcpy2D(P(1), S(2), P(3), S(4), S(width), S(height), 1)
copy(3, 5)
copy(1 << 32, (1 << 32) - 1)
copy(1 << 32, 1 << 32)
copy(0, 1 << 63)
copy((1 << 64) - 1, 1)
# cudaMemcpy3DParms: arrays at 0 and 64, extent at 128, kind at 152
words = (C.c_uint64 * 20)()
words[16:20] = [7, 11, 13, 2]
n.cudaMemcpy3D(words)
words[0] = 0xabc  # an array: the extent counts its elements
n.cudaMemcpy3D(words)
n.cudaMemcpy3D(None)
n.cudaMemcpy3D(P(0x10))
n.cudaMemcpy3D(P(0xffff800000000000))  # the kernel's half of the addresses
page = mmap.mmap(-1, 2 * mmap.PAGESIZE)
whole = C.addressof(C.c_char.from_buffer(page))
C.CDLL(None).mprotect(P(whole + mmap.PAGESIZE), S(mmap.PAGESIZE), 0)
n.cudaMemcpy3D(P(whole + mmap.PAGESIZE - 130))  # the extent lies in a page that may not be read
"""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory, doubles: Path) -> dict[str, list[Row]]:
    library = build("values", tmp_path_factory.mktemp("values"))
    with recording() as r:
        assert r.capture.prepare([str(library)]) == []
        process = start(sys.executable, "-c", CODE, library)
        r.run(process)
        r.finish()
        return {
            op: r.of("cuda_calls", pid=process.pid, op=op) for op in ("cudaMallocPitch", "cudaMemcpy2D", "cudaMemcpy3D")
        }


def test_a_factor_that_is_known_at_return(calls: dict[str, list[Row]]) -> None:
    """Null where the product leaves 64 bits, where the call failed, and where it never returned."""
    rows = calls["cudaMallocPitch"]
    assert [(row["size_bytes"], row["return_code"]) for row in rows] == [(3072, 0), (None, 0), (None, 2), (None, None)]
    assert [row["device_pointer"] for row in rows] == [0x1000, 0x1000, None, None]


def test_products_of_arguments(calls: dict[str, list[Row]]) -> None:
    sizes = [row["size_bytes"] for row in calls["cudaMemcpy2D"]]
    assert sizes == [15, (1 << 64) - (1 << 32), None, 0, (1 << 64) - 1]
    assert {row["direction"] for row in calls["cudaMemcpy2D"]} == {1}


def test_what_cannot_be_read_is_null(calls: dict[str, list[Row]]) -> None:
    """No pointer, an address that is none, one of the kernel, a page that may not be read: the call is a row all the
    same. Bytes are known only where the extent counts bytes."""
    rows = calls["cudaMemcpy3D"]
    assert [row["size_bytes"] for row in rows] == [7 * 11 * 13, None, None, None, None, None]
    assert [row["direction"] for row in rows] == [2, 2, None, None, None, None]
    assert {row["return_code"] for row in rows} == {0}
