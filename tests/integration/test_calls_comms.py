"""Identity of communicators that are made of others: the same on all ranks, whatever their handles are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpuaudit.capture.settings import Settings
from tests.doubles.build import build
from tests.integration.recording import Recording, Row, recording, start
from tests.integration.test_calls_exact import MASK, fold

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("bpf")]

IDENTITY = bytes(range(128))
GOLDEN = 0x9E3779B97F4A7C15

# Every rank splits the same parents in the same order; what else it does differs.
RANKS = """
import ctypes as C, json, sys
n, rank = C.CDLL(sys.argv[1]), int(sys.argv[2])
class Id(C.Structure): _fields_ = [('internal', C.c_char * 128)]
n.ncclCommInitRank.argtypes = [C.c_void_p, C.c_int, Id, C.c_int]
def made(): return C.c_void_p()
def told(**handles): print(json.dumps({k: v.value for k, v in handles.items()}), flush=True)
filler = [bytearray(rank * 100000 + 17) for _ in range(rank + 3)]
world, first, second, none, shrunk, failed, inner, grown = (made() for _ in range(8))
n.ncclCommInitRank(C.byref(world), 2, Id.from_buffer_copy(bytes(range(128))), rank)
n.ncclCommSplit(world, 7, rank, C.byref(first), None)
n.ncclCommSplit(world, rank, 0, C.byref(second), None)
n.ncclCommSplit(world, -1, 0, C.byref(none), None)
n.ncclCommShrink(world, None, 0, C.byref(shrunk), None, 0)
n.ncclCommShrink(world, None, 0, C.byref(failed), None, 2)
n.ncclCommSplit(first, 0, 0, C.byref(inner), None)
out = C.c_int()
n.ncclCommUserRank(shrunk, C.byref(out))
n.ncclAllReduce(None, None, C.c_size_t(4), 7, 2, shrunk, None)
n.ncclCommCount(shrunk, C.byref(out))
n.ncclGroupStart()
n.ncclSend(None, C.c_size_t(3), 8, 1 - rank, shrunk, C.c_void_p(0x55))
n.ncclGroupEnd()
n.ncclCommGrow(shrunk, 3, C.byref(Id.from_buffer_copy(bytes(128))), -1 if rank else 1, C.byref(grown), None)
n.ncclAllReduce(None, None, C.c_size_t(4), 7, 2, grown, None)
n.ncclCommDestroy(first)
n.ncclCommSplit(first, 0, 0, C.byref(failed), None)
told(world=world, first=first, second=second, shrunk=shrunk, inner=inner)
"""

ALL = """
import ctypes as C, sys
n, comms = C.CDLL(sys.argv[1]), (C.c_void_p * 20)()
n.ncclCommInitAll(comms, 20, None)
for c in comms: n.ncclAllReduce(None, None, C.c_size_t(4), 7, 2, C.c_void_p(c), None)
print([c for c in comms])
"""


def of_split(parent: int, split: int, colour: int) -> int:
    """The identity of the n-th communicator made of a parent (docs/reference, probes)."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    return mix(mix(mix(GOLDEN ^ parent) ^ split) ^ (colour & 0xFFFFFFFF))


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, doubles: Path
) -> tuple[Recording, list[tuple[int, dict[str, int]]], tuple[int, list[int]]]:
    """One capture of two ranks in two processes, and of one process with twenty devices."""
    library = build("splits", tmp_path_factory.mktemp("splits"))
    with recording() as r:
        assert r.capture.prepare([str(library)]) == []
        ranks: list[subprocess.Popen[str]] = [start(sys.executable, "-c", RANKS, library, n) for n in ("0", "1")]
        handles = [json.loads(r.run(process)) for process in ranks]
        all_ = start(sys.executable, "-c", ALL, library)
        comms = json.loads(r.run(all_))
        r.finish()
        assert r.lost() == 0
    return r, [(p.pid, h) for p, h in zip(ranks, handles, strict=True)], (all_.pid, comms)


def shown(row: Row) -> tuple[str, int | None, int | None]:
    return row["op"], row["comm_id"], row["parent_comm_id"]


def test_a_split_has_the_same_identity_on_every_rank(
    recorded: tuple[Recording, list[tuple[int, dict[str, int]]], object],
) -> None:
    r, ranks, _ = recorded
    world = fold(IDENTITY)
    first, shrunk = of_split(world, 0, 7), of_split(world, 3, -1)
    for rank, (pid, handle) in enumerate(ranks):
        made = [row for row in r.of("nccl_comms", pid=pid) if row["parent_handle"] is not None]
        assert [shown(row) for row in made] == [
            ("ncclCommSplit", first, world),
            ("ncclCommSplit", of_split(world, 1, rank), world),
            ("ncclCommSplit", None, world),  # no colour: the rank is in none of them, and the split counts
            ("ncclCommShrink", shrunk, world),
            ("ncclCommShrink", None, world),  # refused
            ("ncclCommSplit", of_split(first, 0, 0), first),
            ("ncclCommGrow", fold(bytes(128)), shrunk),
            ("ncclCommSplit", None, None),  # of a communicator that is gone
        ]
        assert [row["comm_handle"] for row in made[:2]] == [handle["first"], handle["second"]]
        assert [row["parent_handle"] for row in made] == [
            *[handle["world"]] * 5, handle["first"], handle["shrunk"], handle["first"],
        ]  # fmt: skip
        assert (made[6]["nranks"], made[6]["rank"]) == (3, -1 if rank else 1)
        assert [(row["color"], row["key"]) for row in made[:4]] == [(7, rank), (rank, 0), (-1, 0), (None, None)]
    assert len({handle["first"] for _, handle in ranks}) + len({handle["world"] for _, handle in ranks}) > 2


def test_ranks_are_known_once_nccl_has_told_them(
    recorded: tuple[Recording, list[tuple[int, dict[str, int]]], object],
) -> None:
    r, ranks, _ = recorded
    for rank, (pid, handle) in enumerate(ranks):
        asked = [c for c in r.of("nccl_comms", pid=pid) if c["op"] in ("ncclCommUserRank", "ncclCommCount")]
        assert [(c["comm_handle"], c["rank"], c["nranks"]) for c in asked] == [
            (handle["shrunk"], rank, None), (handle["shrunk"], rank, 2),
        ]  # fmt: skip
        reduced, sent, grown = r.of("nccl_calls", pid=pid)
        assert reduced["comm_id"] == sent["comm_id"] == of_split(fold(IDENTITY), 3, -1)
        assert [(c["rank"], c["nranks"]) for c in (reduced, sent)] == [(rank, None), (rank, 2)]
        assert (sent["peer"], sent["count"], sent["size_bytes"], sent["stream"]) == (1 - rank, 3, 24, 0x55)
        # of a rank that was in the parent already, nobody has said which one it is now
        assert (grown["comm_id"], grown["rank"], grown["nranks"]) == (fold(bytes(128)), None if rank else 1, 3)
        groups = [c["op"] for c in r.of("nccl_comms", pid=pid) if "Group" in c["op"]]
        assert groups == ["ncclGroupStart", "ncclGroupEnd"]


def test_the_communicators_of_all_devices_at_once(recorded: tuple[Recording, object, tuple[int, list[int]]]) -> None:
    """The first sixteen get their ranks; an identity of this process only, and none for the others."""
    r, _, (pid, comms) = recorded
    (made,) = r.of("nccl_comms", pid=pid)
    assert (made["op"], made["nranks"], made["comm_handle"]) == ("ncclCommInitAll", 20, comms[0])
    calls = r.of("nccl_calls", pid=pid)
    assert [c["comm_handle"] for c in calls] == comms
    assert [c["rank"] for c in calls] == [*range(16), *[None] * 4]
    assert {(c["comm_id"], c["nranks"]) for c in calls[:16]} == {(made["comm_id"], 20)}
    assert {(c["comm_id"], c["nranks"]) for c in calls[16:]} == {(None, None)}


MANY = """
import ctypes as C, sys
n, comm = C.CDLL(sys.argv[1]), C.c_void_p()
class Id(C.Structure): _fields_ = [('internal', C.c_char * 128)]
n.ncclCommInitRank.argtypes = [C.c_void_p, C.c_int, Id, C.c_int]
for i in range(20000): n.ncclCommInitRank(C.byref(comm), 4, Id.from_buffer_copy(i.to_bytes(128, 'little')), 2)
n.ncclAllReduce(None, None, C.c_size_t(4), 7, 2, comm, None)
"""


@pytest.mark.alone  # so many calls fill the ring of every capture on this host that knows the library
def test_communicators_that_nobody_gives_up_make_room(tmp_path: Path, doubles: Path) -> None:
    library = build("splits", tmp_path)
    with recording(settings=Settings()) as r:
        assert r.capture.prepare([str(library)]) == []
        process = start(sys.executable, "-c", MANY, library)
        r.run(process)
        r.finish()
        assert r.lost() == 0
        (call,) = r.of("nccl_calls", pid=process.pid)
        assert (call["comm_id"], call["rank"], call["nranks"]) == (fold((19999).to_bytes(128, "little")), 2, 4)
        assert not [g for g in r.rows["gaps"] if "communicators" in g["reason"]]
        counted = sum(t["count"] for t in r.of("call_totals", pid=process.pid))
        assert len(r.of("nccl_comms", pid=process.pid)) + counted == 20000
