"""Every place of every row is the argument that its column says, by NVIDIA's own headers and the compiler's ABI.

The names below are declared here and not taken from the table: which C expression may feed which column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from gpuaudit.bundle.table import NUMPY_DTYPE
from gpuaudit.bundle.tables import TABLES
from gpuaudit.capture.probe_types import From, Mode, Place, Probe
from tests.doubles.build import compiler
from tests.doubles.interfaces import INTERFACES, Interface
from tests.doubles.prototypes import Header


def _axis(kind: str, names: str, axis: str) -> str:
    upper = axis.upper()
    found = f"{kind}Dim.{axis} config->{kind}Dim.{axis} {kind}Dim{upper} config->{kind}Dim{upper} {names}.{axis}"
    return found + (f" localWorkSize{upper}" if kind == "block" else "")


_KINDS = (("grid", "numBlocks"), ("block", "dimBlocks"))
_AXES = {f"{kind}_{axis}": _axis(kind, names, axis) for kind, names in _KINDS for axis in "xyz"}
_AXES["grid_x"] += " grid_width"
_AXES["grid_y"] += " grid_height"

EXPECTED: dict[str, str] = {
    **_AXES,
    "shared_bytes": "sharedMem sharedMemBytes config->dynamicSmemBytes config->sharedMemBytes",
    "stream": "stream hStream *stream *pStream *phStream config->stream config->hStream "
    "instantiateParams->uploadStream instantiateParams->hUploadStream",
    "function": "func kernel fn callback f function function_address *pKernel *hfunc *pFunc *function",
    "elapsed_ms": "*ms *pMilliseconds",
    "direction": "kind p->kind",
    "device": "device dev dstDevice dstDeviceId deviceId location.id poolProps->location.id pool_props->location.id "
    "prop->location.id p->dstDevice",
    "peer_device": "srcDevice srcDeviceId peerDevice peerDeviceId p->srcDevice",
    "source_pointer": "src srcHost srcDevice p->srcPtr.ptr",
    "device_pointer": "*devPtr *ptr *pHost *dptr *pp *pdptr *ptr_out *dev_ptr pitchedDevPtr->ptr devPtr ptr dst dptr p "
    "addr memptr dstDevice dstHost dest hostPtr dev_ptr pitchedDevPtr.ptr p->dstPtr.ptr",
    "size_bytes": "size count bytesize ByteCount sizeBytes length bufferDesc->size prop->size *bytes *sizeOut",
    "flags": "flags Flags mode value uc us ui advice attr limit isEnabled deviceFlags syncMode "
    "instantiateParams->flags",
    "handle": "graph hGraph originalGraph graphExec hGraphExec node hNode event hEvent start hStart memPool mem_pool "
    "pool array hArray mipmappedArray hMipmappedArray extMem extSem dst src dstArray srcArray symbol ctx hCtx greenCtx "
    "peerContext peerCtx dstContext pCopy->dstContext handle mcHandle library hmod module kernel state *array "
    "*mipmappedArray *memPool *mem_pool *pool *pool_out *extMem_out *extSem_out *event *phEvent *pGraph *phGraph "
    "*library *module *phCtx *pctx *ctx *pHandle *handle *mcHandle *stateOut",
    "other_handle": "end hEnd stop hGraph node hNode event hEvent src srcArray srcContext pCopy->srcContext memHandle "
    "*pGraphExec *phGraphExec *pGraphClone *phGraphClone *pGraphNode *phGraphNode *pMod *pContext *mipmap",
    "count": "count sendcount recvcount",
    "datatype": "datatype",
    "reduce_op": "op",
    "root": "root",
    "peer": "peer",
    "comm_handle": "comm *comm *newcomm",
    "parent_handle": "comm",
    "nranks": "nranks ndev nRanks *count",
    "rank": "rank myrank *rank",
    "color": "color",
    "key": "key",
}
"""Expressions that may feed a column; a ``*`` is what a pointer leads to when the function has succeeded."""

PRODUCTS = {
    "width × height", "Width × Height", "height × *pitch at return", "Height × *pPitch at return",
    "extent.height × extent.depth × pitchedDevPtr->pitch at return", "extent.width × extent.height × extent.depth",
    "pCopy->WidthInBytes × pCopy->Height", "pCopy->WidthInBytes × pCopy->Height × pCopy->Depth",
    "p->extent.width × p->extent.height × p->extent.depth unless p->srcArray unless p->dstArray",
    "p->dstPtr.ptr unless p->dstArray", "p->srcPtr.ptr unless p->srcArray",
}  # fmt: skip
"""Several places of one column. An allocation has ``pitch`` bytes a row, a copy or set ``width``."""

IDENTITIES = {
    "ncclGetUniqueId": "fold of *uniqueId at return", "ncclCommGetUniqueId": "fold of *uniqueId at return",
    "ncclCommInitRank": "fold of commId", "ncclCommInitRankConfig": "fold of commId",
    "ncclCommInitRankScalable": "fold of *commIds", "ncclCommGrow": "fold of *uniqueId",
}  # fmt: skip

MUST: dict[str, str] = {
    "stream hStream pStream phStream": "stream", "kind": "direction", "event hEvent": "handle other_handle",
    "datatype": "datatype", "root": "root", "peer": "peer", "gridDimX": "grid_x",
    "comm newcomm": "comm_handle parent_handle", "count": "count size_bytes nranks", "bytesize ByteCount": "size_bytes",
    "sharedMem sharedMemBytes": "shared_bytes",
    "hGraphExec graphExec": "handle", "flags Flags": "flags",
}  # fmt: skip
"""A parameter with one of these names has to be read into one of these columns, but for :data:`NOT_READ`."""

NOT_READ = re.compile(
    r"nccl(CommRevoke|CommSuspend|PutSignal|Signal|WaitSignal).flags|\w+(SetAccess|PoolSetAccess).count|"
    r"\w+(Batch|BatchDecompress)\w*.count|\w*MemMapArrayAsync\w*.count|\w+BatchMemOp\w*.count|cuInit.*|"
    r"\w+Graph(Exec|Add)\w+.(event|hEvent|kind|count)|ncclCommCount.count|cudaInitDevice.flags|"
    r"ncclRedOpCreatePreMulSum.datatype"
)
"""Counts of arrays, arguments of nodes, the second of two flags, flags of NCCL (``function.parameter``)."""


def with_header(interface: Interface) -> Header:
    if compiler() is None:
        pytest.skip("gcc is not installed")
    try:
        return interface.header
    except PackageNotFoundError:
        pytest.skip(f"pip install {interface.wheel}")


def rows(interface: Interface, header: Header) -> Iterator[Probe]:
    """Rows whose function this version of the library has."""
    return (p for p in interface.probes if p.op in header.prototypes)


def told(header: Header, probe: Probe, column: str) -> str:
    """The C expression of a column: ``width × height``, ``*devPtr at return``."""
    signs = {Mode.SET: "", Mode.TIMES: "× ", Mode.UNLESS: "unless "}
    places = [place for name, place in probe.slots if name == column]
    return " ".join(signs[p.mode] + header.expression(probe.op, p).text for p in places)


def constant(op: str, column: str) -> str:
    """What the name of a driver's copy says of its direction, as a number of cudaMemcpyKind."""
    assert column == "direction"
    for kind, ends in ((1, "HtoD HtoA"), (2, "DtoH AtoH"), (3, "DtoD DtoA AtoD AtoA")):
        if any(end in op for end in ends.split()):
            return str(kind)
    return "3" if "Peer" in op else "4"


def elements(op: str) -> str:
    """Factor of a memset that counts elements of 8, 16 or 32 bits."""
    bits = re.search(r"MemsetD(?:2D)?(8|16|32)", op)
    return f" × {int(bits[1]) // 8}" if bits else ""


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda i: i.file)
def test_every_place_is_the_argument_that_its_column_says(interface: Interface) -> None:
    header = with_header(interface)
    wrong = []
    for probe in rows(interface, header):
        for column in probe.places:
            try:
                said = told(header, probe, column)
            except KeyError as e:
                wrong.append(f"{probe.op}: {column}: {e}")
                continue
            allowed = set(EXPECTED.get(column, "").split())
            allowed |= {f"{text} at return" for text in allowed if "*" in text or "->" in text}
            if column == "comm_id":
                allowed = {IDENTITIES[probe.op]}
            elif said.isdigit():
                allowed = {constant(probe.op, column)}
            elif elements(probe.op) and column == "size_bytes":
                allowed = {f"{text}{elements(probe.op)}" for text in ("N", "count", "Width × Height")}
            elif " × " in said or " unless " in said:
                allowed = PRODUCTS
            if said not in allowed:
                wrong.append(f"{probe.op}: {column} is {said}")
    assert wrong == []


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda i: i.file)
def test_what_a_function_tells_is_read(interface: Interface) -> None:
    """A stream, a size, a direction, a communicator among the parameters: the row has it."""
    header = with_header(interface)
    missing = []
    for probe in rows(interface, header):
        read = " ".join(f"{name}={told(header, probe, name)}" for name in probe.places)
        for parameter in header.prototypes[probe.op]:
            columns = [c for names, c in MUST.items() if parameter.name in names.split()]
            if not columns or NOT_READ.fullmatch(f"{probe.op}.{parameter.name}"):
                continue
            if not any(re.search(rf"\b{c}=[^=]*\b{parameter.name}\b", read) for c in columns[0].split()):
                missing.append(f"{probe.op}.{parameter.name}")
    assert missing == []


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda i: i.file)
def test_widths(interface: Interface) -> None:
    """No column takes in the undefined upper half of a narrower argument, or bytes behind what a pointer leads to."""
    header = with_header(interface)
    wrong = []
    for probe in rows(interface, header):
        columns = {c.name: c for c in TABLES[probe.table].columns}
        for name, place in probe.slots:
            if place.source in (From.CONSTANT, From.STACK_ID, From.POINTER_ID, From.POINTEE_ID):
                continue
            column = columns[name]
            width = 4 if column.ring == "f32" else np.dtype(NUMPY_DTYPE[column.type]).itemsize
            has = header.expression(probe.op, place).size
            if has < (place.bytes or width):
                wrong.append(f"{probe.op}: {name} has {width} bytes, its argument {has}")
    assert wrong == []


def test_every_row_is_in_one_of_the_headers() -> None:
    """No row is left unchecked because no header here has its function."""
    checked = {id(p) for i in INTERFACES for p in rows(i, with_header(i))}
    known_nowhere = {p.op for i in INTERFACES for p in i.library.probes if id(p) not in checked}
    assert known_nowhere == set()


def test_a_wrong_place_is_found() -> None:
    """The check itself: the stream of cudaMemcpyAsync is its fifth argument and not its fourth."""
    header = with_header(INTERFACES[2])
    assert header.expression("cudaMemcpyAsync", Place(From.REGISTER, 4)).text == "stream"
    assert header.expression("cudaMemcpyAsync", Place(From.REGISTER, 3)).text == "kind"
    assert header.expression("cudaMemset3DAsync", Place(From.STACK, 5)).text == "extent.height"
    assert header.expression("cudaMemset3DAsync", Place(From.REGISTER, 1)).text == "stream"
    assert header.expression("cudaMemPrefetchAsync", Place(From.REGISTER, 2, shift_bits=32)).text == "location.id"
    with pytest.raises(KeyError):
        header.expression("cudaMemcpyAsync", Place(From.REGISTER, 5))
    with pytest.raises(KeyError, match="const"):
        header.expression("cudaMemcpy3D", Place(From.POINTEE, 0, offset=128))
