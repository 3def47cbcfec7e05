"""HIP (hip_runtime_api.h of ROCm 5 and later): the CUDA runtime's and driver's calls by other names.

``_spt`` are the twins for the per-thread default stream. The values of hipMemcpyKind are those of cudaMemcpyKind.
"""

from __future__ import annotations

from dataclasses import replace

from gpuaudit.capture.probe_rows.places import (
    R8,
    R9,
    RCX,
    RDI,
    RDX,
    RSI,
    at,
    calls,
    changes,
    constant,
    narrow,
    out,
    product,
    stack,
    unless,
    upper,
)
from gpuaudit.capture.probe_types import Library, Places, Probe

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = (constant(kind) for kind in (1, 2, 3))

MEMORY: tuple[Probe, ...] = (
    *changes("hipMalloc hipMallocHost hipMemAllocHost", device_pointer=out(RDI), size_bytes=RSI),
    *changes(
        "hipMallocManaged hipHostMalloc hipHostAlloc hipExtMallocWithFlags", device_pointer=out(RDI), size_bytes=RSI,
        flags=RDX,
    ),
    *changes("hipMallocAsync", device_pointer=out(RDI), size_bytes=RSI, stream=RDX),
    *changes("hipMallocFromPoolAsync", device_pointer=out(RDI), size_bytes=RSI, handle=RDX, stream=RCX),
    *changes("hipMallocPitch hipMemAllocPitch", device_pointer=out(RDI), size_bytes=product(RCX, out(RSI))),
    *changes("hipMalloc3D", device_pointer=out(RDI), size_bytes=product(stack(1), stack(2), out(RDI, 8))),
    *changes("hipMallocArray", handle=out(RDI), flags=R8),
    *changes("hipMalloc3DArray", handle=out(RDI), flags=RDX),
    *changes("hipMallocMipmappedArray", handle=out(RDI), flags=RCX),
    *changes("hipArrayCreate hipArray3DCreate hipMipmappedArrayCreate", handle=out(RDI)),
    *changes("hipFree hipFreeHost hipHostFree hipHostUnregister hipIpcCloseMemHandle", device_pointer=RDI),
    *changes("hipFreeAsync", device_pointer=RDI, stream=RSI),
    *changes(
        "hipFreeArray hipArrayDestroy hipFreeMipmappedArray hipMipmappedArrayDestroy hipMemPoolDestroy", handle=RDI
    ),
    *changes("hipHostRegister", device_pointer=RDI, size_bytes=RSI, flags=RDX),
    *changes("hipIpcOpenMemHandle", device_pointer=out(RDI), flags=RSI),
    *changes("hipMemPoolCreate", handle=out(RDI), device=at(RSI, 12)),
    *changes("hipMemPoolTrimTo hipMemPoolSetAccess", handle=RDI),
    *changes("hipDeviceSetMemPool", device=RDI, handle=RSI),
    *changes("hipMemAddressReserve", device_pointer=out(RDI), size_bytes=RSI, flags=R8),
    *changes("hipMemAddressFree hipMemUnmap hipMemSetAccess", device_pointer=RDI, size_bytes=RSI),
    *changes("hipMemCreate", handle=out(RDI), size_bytes=RSI, flags=RCX),
    *changes("hipMemRelease", handle=RDI),
    *changes("hipMemMap", device_pointer=RDI, size_bytes=RSI, handle=RCX, flags=R8),
    *changes("hipMemMapArrayAsync", stream=RDX),
    *changes("hipMemRetainAllocationHandle", handle=out(RDI), device_pointer=RSI),
    *changes("hipMemExportToShareableHandle", handle=RSI, flags=RCX),
    *changes("hipMemImportFromShareableHandle", handle=out(RDI)),
    *changes("hipMemPoolSetAttribute", handle=RDI, flags=RSI),
    *changes("hipMemPoolExportToShareableHandle", handle=RSI, flags=RCX),
    *changes("hipMemPoolExportPointer hipIpcGetMemHandle", device_pointer=RSI),
    *changes("hipMemPoolImportFromShareableHandle", handle=out(RDI), flags=RCX),
    *changes("hipMemPoolImportPointer", device_pointer=out(RDI), handle=RSI),
    *changes("hipImportExternalMemory hipImportExternalSemaphore", handle=out(RDI)),
    *changes("hipDestroyExternalMemory hipDestroyExternalSemaphore", handle=RDI),
    *changes("hipExternalMemoryGetMappedBuffer", device_pointer=out(RDI), handle=RSI, size_bytes=at(RDX, 8)),
    *calls("hipMemPrefetchAsync", device_pointer=RDI, size_bytes=RSI, device=RDX, stream=RCX),
    *calls("hipMemAdvise", device_pointer=RDI, size_bytes=RSI, flags=RDX, device=RCX),
    *calls("hipMemGetInfo"),
)  # fmt: skip
"""Allocations, and what becomes of them. hipMemAllocationProp has changed between releases: the device of hipMemCreate
is not told."""

_TO: dict[str, Places] = {"device_pointer": RDI, "source_pointer": RSI, "size_bytes": RDX}
_2D: dict[str, Places] = {
    "device_pointer": RDI,
    "source_pointer": RDX,
    "size_bytes": product(R8, R9),
    "direction": stack(0),
}
_2D_TO_ARRAY: dict[str, Places] = {
    "handle": RDI,
    "source_pointer": RCX,
    "size_bytes": product(R9, stack(0)),
    "direction": stack(1),
}
_2D_FROM_ARRAY: dict[str, Places] = {
    "device_pointer": RDI,
    "handle": RDX,
    "size_bytes": product(R9, stack(0)),
    "direction": stack(1),
}
_TO_SYMBOL: dict[str, Places] = {"handle": RDI, "source_pointer": RSI, "size_bytes": RDX, "direction": R8}
_FROM_SYMBOL: dict[str, Places] = {"device_pointer": RDI, "handle": RSI, "size_bytes": RDX, "direction": R8}
_PEER: dict[str, Places] = {
    "device_pointer": RDI, "device": RSI, "source_pointer": RDX, "peer_device": RCX, "size_bytes": R8,
    "direction": DEVICE_TO_DEVICE,
}  # fmt: skip
_3D: dict[str, Places] = {
    "device_pointer": (at(RDI, 96), *unless(at(RDI, 64))), "source_pointer": (at(RDI, 32), *unless(at(RDI, 0))),
    "size_bytes": (*product(at(RDI, 128), at(RDI, 136), at(RDI, 144)), *unless(at(RDI, 0), at(RDI, 64))),
    "direction": at(RDI, 152),
}  # fmt: skip
_PARAM_2D: dict[str, Places] = {"size_bytes": product(at(RDI, 112), at(RDI, 120))}

COPIES: tuple[Probe, ...] = (
    *calls("hipMemcpy _spt", **_TO, direction=RCX),
    *calls("hipMemcpyAsync _spt hipMemcpyWithStream", **_TO, direction=RCX, stream=R8),
    *calls("hipMemcpyHtoD", **_TO, direction=HOST_TO_DEVICE),
    *calls("hipMemcpyHtoDAsync", **_TO, direction=HOST_TO_DEVICE, stream=RCX),
    *calls("hipMemcpyDtoH", **_TO, direction=DEVICE_TO_HOST),
    *calls("hipMemcpyDtoHAsync", **_TO, direction=DEVICE_TO_HOST, stream=RCX),
    *calls("hipMemcpyDtoD", **_TO, direction=DEVICE_TO_DEVICE),
    *calls("hipMemcpyDtoDAsync", **_TO, direction=DEVICE_TO_DEVICE, stream=RCX),
    *calls("hipMemcpy2D _spt", **_2D),
    *calls("hipMemcpy2DAsync", **_2D, stream=stack(1)),
    *calls("hipMemcpy2DToArray _spt", **_2D_TO_ARRAY),
    *calls("hipMemcpy2DToArrayAsync", **_2D_TO_ARRAY, stream=stack(2)),
    *calls("hipMemcpy2DFromArray _spt", **_2D_FROM_ARRAY),
    *calls("hipMemcpy2DFromArrayAsync", **_2D_FROM_ARRAY, stream=stack(2)),
    *calls("hipMemcpyToArray", handle=RDI, source_pointer=RCX, size_bytes=R8, direction=R9),
    *calls("hipMemcpyFromArray", device_pointer=RDI, handle=RSI, size_bytes=R8, direction=R9),
    *calls("hipMemcpyAtoH", device_pointer=RDI, handle=RSI, size_bytes=RCX, direction=DEVICE_TO_HOST),
    *calls("hipMemcpyHtoA", handle=RDI, source_pointer=RDX, size_bytes=RCX, direction=HOST_TO_DEVICE),
    *calls("hipMemcpyToSymbol _spt", **_TO_SYMBOL),
    *calls("hipMemcpyToSymbolAsync", **_TO_SYMBOL, stream=R9),
    *calls("hipMemcpyFromSymbol _spt", **_FROM_SYMBOL),
    *calls("hipMemcpyFromSymbolAsync", **_FROM_SYMBOL, stream=R9),
    *calls("hipMemcpyPeer", **_PEER),
    *calls("hipMemcpyPeerAsync", **_PEER, stream=R9),
    *calls("hipMemcpy3D _spt", **_3D),
    *calls("hipMemcpy3DAsync", **_3D, stream=RSI),
    *calls("hipMemcpyParam2D hipDrvMemcpy2DUnaligned", **_PARAM_2D),
    *calls("hipMemcpyParam2DAsync", **_PARAM_2D, stream=RSI),
    *calls("hipDrvMemcpy3D"),
    *calls("hipDrvMemcpy3DAsync", stream=RSI),
)
"""As in the CUDA runtime. HIP_MEMCPY3D has changed between releases: bytes of hipDrvMemcpy3D are not told."""

_SET_2D: dict[str, Places] = {"device_pointer": RDI, "flags": RDX, "size_bytes": product(RCX, R8)}
_SET_3D: dict[str, Places] = {
    "device_pointer": stack(0),
    "flags": RDI,
    "size_bytes": product(stack(4), stack(5), stack(6)),
}


def _sets() -> tuple[Probe, ...]:
    """``flags`` is the value; the counts of hipMemsetD16 and D32 are of elements with that many bits."""
    one: dict[str, Places] = {"device_pointer": RDI, "flags": RSI, "size_bytes": RDX}
    found = [
        *calls("hipMemset _spt", **one), *calls("hipMemsetAsync", **one, stream=RCX),
        *calls("hipMemset2D _spt", **_SET_2D), *calls("hipMemset2DAsync", **_SET_2D, stream=R9),
        *calls("hipMemset3D _spt", **_SET_3D), *calls("hipMemset3DAsync", **_SET_3D, stream=RSI),
    ]  # fmt: skip
    for size in (1, 2, 4):
        counted: dict[str, Places] = {
            **one,
            "flags": replace(RSI, bytes=size),
            "size_bytes": product(RDX, constant(size)),
        }
        found += calls(f"hipMemsetD{8 * size}", **counted)
        found += calls(f"hipMemsetD{8 * size}Async", **counted, stream=RCX)
    return tuple(found)


_BLOCKS: dict[str, Places] = {
    "function": RDI, "grid_x": RSI, "grid_y": upper(RSI), "grid_z": RDX, "block_x": RCX, "block_y": upper(RCX),
    "block_z": R8, "shared_bytes": stack(0), "stream": stack(1),
}  # fmt: skip
_MODULE: dict[str, Places] = {"function": RDI, "block_x": R8, "block_y": R9, "block_z": stack(0), "stream": stack(2)}


def _exported_as(last: str, probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """Launches of a module's function that are exported by their C++ names."""
    rest = f"P18ihipModuleSymbol_tjjjjjjmP12ihipStream_tPPvS4_P11ihipEvent_tS6_{last}"
    return tuple(replace(p, symbols=(p.op, f"_Z{len(p.op)}{p.op}{rest}")) for p in probes)


LAUNCHES: tuple[Probe, ...] = (
    *calls("hipLaunchKernel _spt", **_BLOCKS),
    *calls("hipExtLaunchKernel", **_BLOCKS, flags=stack(4)),
    *calls("hipLaunchCooperativeKernel _spt", **{**_BLOCKS, "shared_bytes": narrow(stack(0))}),
    *calls(
        "hipModuleLaunchKernel", **_MODULE, grid_x=RSI, grid_y=RDX, grid_z=RCX, shared_bytes=narrow(stack(1))
    ),
    *_exported_as("j", calls("hipExtModuleLaunchKernel", **_MODULE, shared_bytes=stack(1), flags=stack(7))),
    *_exported_as("", calls("hipHccModuleLaunchKernel", **_MODULE, shared_bytes=stack(1))),
    *calls("hipLaunchCooperativeKernelMultiDevice hipExtLaunchMultiKernelMultiDevice", flags=RDX),
    *calls("hipLaunchByPtr", function=RDI),
    *calls("hipLaunchHostFunc", stream=RDI, function=RSI),
    *calls("hipStreamAddCallback", stream=RDI, function=RSI, flags=RCX),
)  # fmt: skip
"""hipExtModuleLaunchKernel takes the number of work items, not of blocks: its grid is not told."""

STREAMS: tuple[Probe, ...] = (
    *calls("hipDeviceSynchronize hipCtxSynchronize"),
    *calls("hipStreamSynchronize _spt hipStreamQuery _spt", stream=RDI),
    *calls("hipStreamWaitEvent _spt", stream=RDI, handle=RSI, flags=RDX),
    *calls("hipStreamAttachMemAsync", stream=RDI, device_pointer=RSI, size_bytes=RDX, flags=RCX),
    *calls(
        "hipStreamWaitValue32 hipStreamWaitValue64 hipStreamWriteValue32 hipStreamWriteValue64", stream=RDI,
        device_pointer=RSI, flags=RCX,
    ),
    *calls("hipSignalExternalSemaphoresAsync hipWaitExternalSemaphoresAsync", stream=RCX),
    *changes("hipStreamCreate hipExtStreamCreateWithCUMask", stream=out(RDI)),
    *changes("hipStreamCreateWithFlags hipStreamCreateWithPriority", stream=out(RDI), flags=RSI),
    *changes("hipStreamDestroy", stream=RDI),
    *changes("hipEventCreate hipIpcOpenEventHandle", handle=out(RDI)),
    *changes("hipEventCreateWithFlags", handle=out(RDI), flags=RSI),
    *changes("hipEventDestroy", handle=RDI),
    *changes("hipIpcGetEventHandle", handle=RSI),
    *calls("hipEventRecord", handle=RDI, stream=RSI),
    *calls("hipEventSynchronize hipEventQuery", handle=RDI),
    *calls("hipEventElapsedTime", elapsed_ms=out(RDI), handle=RSI, other_handle=RDX),
)  # fmt: skip

_NODES = (
    "KernelNode MemcpyNode MemcpyNode1D MemcpyNodeFromSymbol MemcpyNodeToSymbol MemsetNode HostNode ChildGraphNode "
    "EmptyNode EventRecordNode EventWaitNode"
)
_NODES_SET = (
    "KernelNodeSetParams MemcpyNodeSetParams MemcpyNodeSetParams1D MemcpyNodeSetParamsFromSymbol "
    "MemcpyNodeSetParamsToSymbol MemsetNodeSetParams HostNodeSetParams ChildGraphNodeSetParams "
    "EventRecordNodeSetEvent EventWaitNodeSetEvent"
)

GRAPHS: tuple[Probe, ...] = (
    *changes("hipStreamBeginCapture", stream=RDI, flags=RSI),
    *changes("hipStreamEndCapture", stream=RDI, handle=out(RSI)),
    *changes("hipGraphCreate", handle=out(RDI), flags=RSI),
    *changes("hipGraphClone hipGraphInstantiate", other_handle=out(RDI), handle=RSI),
    *changes("hipGraphInstantiateWithFlags", other_handle=out(RDI), handle=RSI, flags=RDX),
    *changes("hipGraphExecUpdate", handle=RDI, other_handle=RSI),
    *changes("hipGraphDestroy hipGraphExecDestroy hipGraphDestroyNode", handle=RDI),
    *changes(" ".join(f"hipGraphAdd{n}" for n in _NODES.split()), other_handle=out(RDI), handle=RSI),
    *changes(" ".join(f"hipGraphExec{n}" for n in _NODES_SET.split()), handle=RDI, other_handle=RSI),
    *calls("hipGraphLaunch", handle=RDI, stream=RSI),
)

DEVICES: tuple[Probe, ...] = (
    *changes("hipInit hipSetDeviceFlags", flags=RDI),
    *changes("hipSetDevice", device=RDI),
    *changes("hipDeviceReset hipProfilerStart hipProfilerStop"),
    *changes("hipDeviceEnablePeerAccess", peer_device=RDI, flags=RSI),
    *changes("hipDeviceDisablePeerAccess", peer_device=RDI),
    *changes("hipCtxCreate", handle=out(RDI), flags=RSI, device=RDX),
    *changes("hipCtxDestroy hipCtxDisablePeerAccess", handle=RDI),
    *changes("hipCtxEnablePeerAccess", handle=RDI, flags=RSI),
    *changes("hipDevicePrimaryCtxRetain", handle=out(RDI), device=RSI),
    *changes("hipDevicePrimaryCtxRelease hipDevicePrimaryCtxReset", device=RDI),
    *changes("hipDevicePrimaryCtxSetFlags", device=RDI, flags=RSI),
    *calls("hipCtxSetCurrent hipCtxPushCurrent", handle=RDI),
    *calls("hipCtxPopCurrent", handle=out(RDI)),
    *changes("hipModuleLoad hipModuleLoadData hipModuleLoadDataEx", handle=out(RDI)),
    *changes("hipModuleUnload", handle=RDI),
    *changes("hipModuleGetFunction", function=out(RDI), handle=RSI),
    *changes("hipModuleGetGlobal", device_pointer=out(RDI), size_bytes=out(RSI), handle=RDX),
)

HIP = Library(
    "hip", "cuda", r"libamdhip64\.so(\.[0-9]+)*", r"hip[A-Z]\w*",
    (*MEMORY, *COPIES, *_sets(), *LAUNCHES, *STREAMS, *GRAPHS, *DEVICES),
    note="rows as data, tested on doubles: not on the real library",
)  # fmt: skip
