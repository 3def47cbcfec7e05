"""The CUDA runtime (cuda_runtime_api.h of CUDA 11 to 13): one row for each exported name.

``_ptds`` and ``_ptsz`` are the twins for the per-thread default stream: code of their own, with the same arguments.
Bytes of an array are not told: its size is in elements of a format, its layout is the driver's.
"""

from __future__ import annotations

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
    only,
    out,
    product,
    stack,
    unless,
    upper,
)
from gpuaudit.capture.probe_types import Library, Places, Probe

UP_TO_11 = r".*\.so\.(9|10|11)(\..*)?"
UP_TO_12 = r".*\.so\.(9|10|11|12)(\..*)?"
SINCE_12 = r".*\.so\.(1[2-9]|[2-9][0-9])(\..*)?"
SINCE_13 = r".*\.so\.(1[3-9]|[2-9][0-9])(\..*)?"
"""The major version is in the file's name; the same names have other arguments in another version."""

DEVICE_TO_DEVICE = constant(3)

MEMORY: tuple[Probe, ...] = (
    *changes("cudaMalloc cudaMallocHost", device_pointer=out(RDI), size_bytes=RSI),
    *changes("cudaMallocManaged cudaHostAlloc", device_pointer=out(RDI), size_bytes=RSI, flags=RDX),
    *changes("cudaMallocAsync _ptsz", device_pointer=out(RDI), size_bytes=RSI, stream=RDX),
    *changes("cudaMallocFromPoolAsync _ptsz", device_pointer=out(RDI), size_bytes=RSI, handle=RDX, stream=RCX),
    *changes("cudaMallocPitch", device_pointer=out(RDI), size_bytes=product(RCX, out(RSI))),
    *changes("cudaMalloc3D", device_pointer=out(RDI), size_bytes=product(stack(1), stack(2), out(RDI, 8))),
    *changes("cudaMallocArray", handle=out(RDI), flags=R8),
    *changes("cudaMalloc3DArray", handle=out(RDI), flags=RDX),
    *changes("cudaMallocMipmappedArray", handle=out(RDI), flags=RCX),
    *changes("cudaFree cudaFreeHost cudaHostUnregister cudaIpcCloseMemHandle", device_pointer=RDI),
    *changes("cudaFreeAsync _ptsz", device_pointer=RDI, stream=RSI),
    *changes("cudaFreeArray cudaFreeMipmappedArray cudaMemPoolDestroy", handle=RDI),
    *changes("cudaHostRegister", device_pointer=RDI, size_bytes=RSI, flags=RDX),
    *changes("cudaMemPoolCreate", handle=out(RDI), device=at(RSI, 12)),
    *changes("cudaMemPoolSetAttribute", handle=RDI, flags=RSI),
    *changes("cudaMemPoolSetAccess cudaMemPoolTrimTo", handle=RDI),
    *changes("cudaMemPoolExportToShareableHandle", handle=RSI, flags=RCX),
    *changes("cudaMemPoolExportPointer", device_pointer=RSI),
    *changes("cudaMemPoolImportFromShareableHandle", handle=out(RDI), flags=RCX),
    *changes("cudaMemPoolImportPointer", device_pointer=out(RDI), handle=RSI),
    *changes("cudaDeviceSetMemPool", device=RDI, handle=RSI),
    *changes("cudaDeviceGraphMemTrim", device=RDI),
    *changes("cudaIpcGetMemHandle", device_pointer=RSI),
    *changes("cudaIpcOpenMemHandle", device_pointer=out(RDI), flags=RSI),
    *changes("cudaImportExternalMemory cudaImportExternalSemaphore", handle=out(RDI)),
    *changes("cudaDestroyExternalMemory cudaDestroyExternalSemaphore", handle=RDI),
    *changes("cudaExternalMemoryGetMappedBuffer", device_pointer=out(RDI), handle=RSI, size_bytes=at(RDX, 8)),
    *changes("cudaExternalMemoryGetMappedMipmappedArray", other_handle=out(RDI), handle=RSI),
    *calls("cudaMemGetInfo"),
)
"""Allocations, and what becomes of them."""

PREFETCHES: tuple[Probe, ...] = (
    *only(UP_TO_12, calls("cudaMemPrefetchAsync _ptsz", device_pointer=RDI, size_bytes=RSI, device=RDX, stream=RCX)),
    *only(SINCE_13, calls(
        "cudaMemPrefetchAsync _ptsz", device_pointer=RDI, size_bytes=RSI, device=upper(RDX), flags=RCX, stream=R8
    )),
    *calls(
        "cudaMemPrefetchAsync_v2 _ptsz", device_pointer=RDI, size_bytes=RSI, device=upper(RDX), flags=RCX, stream=R8
    ),
    *only(UP_TO_12, calls("cudaMemAdvise", device_pointer=RDI, size_bytes=RSI, flags=RDX, device=RCX)),
    *only(SINCE_13, calls("cudaMemAdvise", device_pointer=RDI, size_bytes=RSI, flags=RDX, device=upper(RCX))),
    *calls("cudaMemAdvise_v2", device_pointer=RDI, size_bytes=RSI, flags=RDX, device=upper(RCX)),
    *calls(
        "cudaMemPrefetchBatchAsync _ptsz cudaMemDiscardAndPrefetchBatchAsync _ptsz", flags=stack(0), stream=stack(1)
    ),
    *calls("cudaMemDiscardBatchAsync _ptsz", flags=RCX, stream=R8),
)  # fmt: skip

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
_TO_ARRAY: dict[str, Places] = {"handle": RDI, "source_pointer": RCX, "size_bytes": R8, "direction": R9}
_FROM_ARRAY: dict[str, Places] = {"device_pointer": RDI, "handle": RSI, "size_bytes": R8, "direction": R9}
_TO_SYMBOL: dict[str, Places] = {"handle": RDI, "source_pointer": RSI, "size_bytes": RDX, "direction": R8}
_FROM_SYMBOL: dict[str, Places] = {"device_pointer": RDI, "handle": RSI, "size_bytes": RDX, "direction": R8}
_PEER: dict[str, Places] = {
    "device_pointer": RDI, "device": RSI, "source_pointer": RDX, "peer_device": RCX, "size_bytes": R8,
    "direction": DEVICE_TO_DEVICE,
}  # fmt: skip
# An extent that an array takes part in counts elements: bytes only where both arrays are null.
_3D: dict[str, Places] = {
    "device_pointer": (at(RDI, 96), *unless(at(RDI, 64))), "source_pointer": (at(RDI, 32), *unless(at(RDI, 0))),
    "size_bytes": (*product(at(RDI, 128), at(RDI, 136), at(RDI, 144)), *unless(at(RDI, 0), at(RDI, 64))),
    "direction": at(RDI, 152),
}  # fmt: skip
_3D_PEER: dict[str, Places] = {
    "device_pointer": (at(RDI, 104), *unless(at(RDI, 72))), "source_pointer": (at(RDI, 32), *unless(at(RDI, 0))),
    "size_bytes": (*product(at(RDI, 144), at(RDI, 152), at(RDI, 160)), *unless(at(RDI, 0), at(RDI, 72))),
    "direction": DEVICE_TO_DEVICE, "device": at(RDI, 136), "peer_device": at(RDI, 64),
}  # fmt: skip

COPIES: tuple[Probe, ...] = (
    *calls("cudaMemcpy _ptds", **_TO, direction=RCX),
    *calls("cudaMemcpyAsync _ptsz", **_TO, direction=RCX, stream=R8),
    *calls("cudaMemcpyWithAttributesAsync _ptsz", **_TO, stream=R8),
    *calls("cudaMemcpy2D _ptds", **_2D),
    *calls("cudaMemcpy2DAsync _ptsz", **_2D, stream=stack(1)),
    *calls("cudaMemcpy2DToArray _ptds", **_2D_TO_ARRAY),
    *calls("cudaMemcpy2DToArrayAsync _ptsz", **_2D_TO_ARRAY, stream=stack(2)),
    *calls("cudaMemcpy2DFromArray _ptds", **_2D_FROM_ARRAY),
    *calls("cudaMemcpy2DFromArrayAsync _ptsz", **_2D_FROM_ARRAY, stream=stack(2)),
    *calls(
        "cudaMemcpy2DArrayToArray _ptds", handle=RDI, other_handle=RCX, size_bytes=product(stack(0), stack(1)),
        direction=stack(2),
    ),
    *calls("cudaMemcpyToArray _ptds", **_TO_ARRAY),
    *calls("cudaMemcpyToArrayAsync _ptsz", **_TO_ARRAY, stream=stack(0)),
    *calls("cudaMemcpyFromArray _ptds", **_FROM_ARRAY),
    *calls("cudaMemcpyFromArrayAsync _ptsz", **_FROM_ARRAY, stream=stack(0)),
    *calls("cudaMemcpyArrayToArray _ptds", handle=RDI, other_handle=RCX, size_bytes=stack(0), direction=stack(1)),
    *calls("cudaMemcpyToSymbol _ptds", **_TO_SYMBOL),
    *calls("cudaMemcpyToSymbolAsync _ptsz", **_TO_SYMBOL, stream=R9),
    *calls("cudaMemcpyFromSymbol _ptds", **_FROM_SYMBOL),
    *calls("cudaMemcpyFromSymbolAsync _ptsz", **_FROM_SYMBOL, stream=R9),
    *calls("cudaMemcpyPeer", **_PEER),
    *calls("cudaMemcpyPeerAsync", **_PEER, stream=R9),
    *calls("cudaMemcpy3D _ptds", **_3D),
    *calls("cudaMemcpy3DAsync _ptsz", **_3D, stream=RSI),
    *calls("cudaMemcpy3DPeer _ptds", **_3D_PEER),
    *calls("cudaMemcpy3DPeerAsync _ptsz", **_3D_PEER, stream=RSI),
    *calls("cudaMemcpy3DWithAttributesAsync _ptsz", flags=RSI, stream=RDX),
    *only(UP_TO_12, calls("cudaMemcpyBatchAsync _ptsz", stream=stack(2))),
    *only(SINCE_13, calls("cudaMemcpyBatchAsync _ptsz", stream=stack(1))),
    *only(UP_TO_12, calls("cudaMemcpy3DBatchAsync _ptsz", flags=RCX, stream=R8)),
    *only(SINCE_13, calls("cudaMemcpy3DBatchAsync _ptsz", flags=RDX, stream=RCX)),
)  # fmt: skip
"""``handle`` is the array or symbol that a copy goes to, or comes from; ``other_handle`` the array it comes from
where both are arrays."""

_SET_2D: dict[str, Places] = {"device_pointer": RDI, "flags": RDX, "size_bytes": product(RCX, R8)}
_SET_3D: dict[str, Places] = {
    "device_pointer": stack(0),
    "flags": RDI,
    "size_bytes": product(stack(4), stack(5), stack(6)),
}

SETS: tuple[Probe, ...] = (
    *calls("cudaMemset _ptds", device_pointer=RDI, flags=RSI, size_bytes=RDX),
    *calls("cudaMemsetAsync _ptsz", device_pointer=RDI, flags=RSI, size_bytes=RDX, stream=RCX),
    *calls("cudaMemset2D _ptds", **_SET_2D),
    *calls("cudaMemset2DAsync _ptsz", **_SET_2D, stream=R9),
    *calls("cudaMemset3D _ptds", **_SET_3D),
    *calls("cudaMemset3DAsync _ptsz", **_SET_3D, stream=RSI),
)
"""``flags`` is the value that the memory is set to."""

LAUNCHES: tuple[Probe, ...] = (
    *calls(
        "cudaLaunchKernel _ptsz cudaLaunchCooperativeKernel _ptsz __cudaLaunchKernel _ptsz", function=RDI,
        grid_x=RSI, grid_y=upper(RSI), grid_z=RDX, block_x=RCX, block_y=upper(RCX), block_z=R8, shared_bytes=stack(0),
        stream=stack(1),
    ),
    *calls(
        "cudaLaunchKernelExC _ptsz", function=RSI, grid_x=at(RDI), grid_y=at(RDI, 4), grid_z=at(RDI, 8),
        block_x=at(RDI, 12), block_y=at(RDI, 16), block_z=at(RDI, 20), shared_bytes=at(RDI, 24), stream=at(RDI, 32),
    ),
    *calls("cudaLaunchCooperativeKernelMultiDevice", flags=RDX),
    *calls("cudaLaunchHostFunc _ptsz", stream=RDI, function=RSI),
    *calls("cudaLaunchHostFunc_v2 _ptsz cudaStreamAddCallback _ptsz", stream=RDI, function=RSI, flags=RCX),
)  # fmt: skip

STREAMS: tuple[Probe, ...] = (
    *calls("cudaDeviceSynchronize cudaThreadSynchronize"),
    *calls("cudaStreamSynchronize _ptsz cudaStreamQuery _ptsz", stream=RDI),
    *calls("cudaStreamWaitEvent _ptsz", stream=RDI, handle=RSI, flags=RDX),
    *calls("cudaStreamAttachMemAsync _ptsz", stream=RDI, device_pointer=RSI, size_bytes=RDX, flags=RCX),
    *calls(
        "cudaSignalExternalSemaphoresAsync _ptsz _v2 _v2_ptsz cudaWaitExternalSemaphoresAsync _ptsz _v2 _v2_ptsz",
        stream=RCX,
    ),
    *changes("cudaStreamCreate", stream=out(RDI)),
    *changes("cudaStreamCreateWithFlags cudaStreamCreateWithPriority", stream=out(RDI), flags=RSI),
    *changes("cudaStreamDestroy", stream=RDI),
    *changes("cudaEventCreate cudaIpcOpenEventHandle", handle=out(RDI)),
    *changes("cudaEventCreateWithFlags", handle=out(RDI), flags=RSI),
    *changes("cudaEventDestroy", handle=RDI),
    *changes("cudaIpcGetEventHandle", handle=RSI),
    *calls("cudaEventRecord _ptsz", handle=RDI, stream=RSI),
    *calls("cudaEventRecordWithFlags _ptsz", handle=RDI, stream=RSI, flags=RDX),
    *calls("cudaEventSynchronize cudaEventQuery", handle=RDI),
    *calls("cudaEventElapsedTime _v2", elapsed_ms=out(RDI), handle=RSI, other_handle=RDX),
)  # fmt: skip
"""Streams and events. ``handle`` is the event."""

_NODES = (
    "KernelNode MemcpyNode MemcpyNode1D MemcpyNodeFromSymbol MemcpyNodeToSymbol MemsetNode HostNode ChildGraphNode "
    "EmptyNode EventRecordNode EventWaitNode ExternalSemaphoresSignalNode ExternalSemaphoresWaitNode MemAllocNode "
    "MemFreeNode Node Node_v2"
)
_NODES_SET = (
    "KernelNodeSetParams MemcpyNodeSetParams MemcpyNodeSetParams1D MemcpyNodeSetParamsFromSymbol "
    "MemcpyNodeSetParamsToSymbol MemsetNodeSetParams HostNodeSetParams ChildGraphNodeSetParams "
    "EventRecordNodeSetEvent EventWaitNodeSetEvent ExternalSemaphoresSignalNodeSetParams "
    "ExternalSemaphoresWaitNodeSetParams NodeSetParams"
)

GRAPHS: tuple[Probe, ...] = (
    *changes("cudaStreamBeginCapture _ptsz", stream=RDI, flags=RSI),
    *changes("cudaStreamBeginCaptureToGraph _ptsz", stream=RDI, handle=RSI, flags=R9),
    *changes("cudaStreamBeginRecaptureToGraph _ptsz", stream=RDI, flags=RSI, handle=RDX),
    *changes("cudaStreamEndCapture _ptsz", stream=RDI, handle=out(RSI)),
    *changes("cudaGraphCreate", handle=out(RDI), flags=RSI),
    *changes("cudaGraphClone", other_handle=out(RDI), handle=RSI),
    *only(UP_TO_11, changes("cudaGraphInstantiate", other_handle=out(RDI), handle=RSI)),
    *only(SINCE_12, changes("cudaGraphInstantiate", other_handle=out(RDI), handle=RSI, flags=RDX)),
    *changes("cudaGraphInstantiateWithFlags", other_handle=out(RDI), handle=RSI, flags=RDX),
    *changes(
        "cudaGraphInstantiateWithParams _ptsz", other_handle=out(RDI), handle=RSI, flags=at(RDX), stream=at(RDX, 8)
    ),
    *changes("cudaGraphExecUpdate", handle=RDI, other_handle=RSI),
    *changes("cudaGraphDestroy cudaGraphExecDestroy cudaGraphDestroyNode", handle=RDI),
    *changes(" ".join(f"cudaGraphAdd{n}" for n in _NODES.split()), other_handle=out(RDI), handle=RSI),
    *changes(" ".join(f"cudaGraphExec{n}" for n in _NODES_SET.split()), handle=RDI, other_handle=RSI),
    *changes("cudaGraphNodeSetEnabled", handle=RDI, other_handle=RSI, flags=RDX),
    *calls("cudaGraphLaunch _ptsz cudaGraphUpload _ptsz", handle=RDI, stream=RSI),
)
"""``handle`` is the graph or the executable graph that is acted on, ``other_handle`` what was made from it, the graph
an executable is updated from, or the node."""

DEVICES: tuple[Probe, ...] = (
    *changes("cudaSetDevice", device=RDI),
    *changes("cudaInitDevice", device=RDI, flags=RSI),
    *calls("cudaGetDeviceProperties _v2", device=RSI),
    *changes("cudaSetDeviceFlags cudaDeviceSetLimit", flags=RDI),
    *changes("cudaDeviceReset cudaThreadExit cudaSetValidDevices cudaProfilerStart cudaProfilerStop"),
    *changes("cudaDeviceEnablePeerAccess", peer_device=RDI, flags=RSI),
    *changes("cudaDeviceDisablePeerAccess", peer_device=RDI),
    *changes("cudaGreenCtxCreate", handle=out(RDI), device=RDX, flags=RCX),
    *changes("cudaExecutionCtxDestroy", handle=RDI),
    *changes("cudaExecutionCtxStreamCreate", stream=out(RDI), handle=RSI, flags=RDX),
    *calls("cudaExecutionCtxSynchronize", handle=RDI),
    *calls("cudaExecutionCtxRecordEvent cudaExecutionCtxWaitEvent", handle=RDI, other_handle=RSI),
    *changes("cudaLibraryLoadData cudaLibraryLoadFromFile", handle=out(RDI)),
    *changes("cudaLibraryUnload", handle=RDI),
    *changes("cudaLibraryGetKernel", function=out(RDI), handle=RSI),
)
"""Devices, contexts, libraries of kernels. ``flags`` of cudaDeviceSetLimit is the limit that is set."""

CUDART = Library(
    "cudart", "cuda", r"libcudart(-[0-9a-f]+)?\.so(\.[0-9]+)*", r"(__)?cuda[A-Z]\w*",
    (*MEMORY, *PREFETCHES, *COPIES, *SETS, *LAUNCHES, *STREAMS, *GRAPHS, *DEVICES),
)  # fmt: skip
