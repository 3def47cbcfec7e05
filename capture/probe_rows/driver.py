"""The CUDA driver (cuda.h of CUDA 11 to 13): one row for each exported name.

``_v2``, ``_v3`` … are versions of a function, ``_ptds`` and ``_ptsz`` twins for the per-thread default stream; a
runtime finds them by name. First versions with 32-bit device pointers (before CUDA 3.2) have no rows.
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
    upper,
)
from gpuaudit.capture.probe_types import Library, Places, Probe

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = (constant(kind) for kind in (1, 2, 3, 4))

MEMORY: tuple[Probe, ...] = (
    *changes("cuMemAlloc_v2 cuMemAllocHost_v2", device_pointer=out(RDI), size_bytes=RSI),
    *changes("cuMemAllocManaged cuMemHostAlloc", device_pointer=out(RDI), size_bytes=RSI, flags=RDX),
    *changes("cuMemAllocAsync _ptsz", device_pointer=out(RDI), size_bytes=RSI, stream=RDX),
    *changes("cuMemAllocFromPoolAsync _ptsz", device_pointer=out(RDI), size_bytes=RSI, handle=RDX, stream=RCX),
    *changes("cuMemAllocPitch_v2", device_pointer=out(RDI), size_bytes=product(RCX, out(RSI))),
    *changes("cuMemFree_v2 cuMemFreeHost cuMemHostUnregister cuIpcCloseMemHandle", device_pointer=RDI),
    *changes("cuMemFreeAsync _ptsz", device_pointer=RDI, stream=RSI),
    *changes("cuMemHostRegister _v2", device_pointer=RDI, size_bytes=RSI, flags=RDX),
    *changes("cuArrayCreate_v2 cuArray3DCreate_v2 cuMipmappedArrayCreate", handle=out(RDI)),
    *changes("cuArrayDestroy cuMipmappedArrayDestroy", handle=RDI),
    *changes("cuIpcGetMemHandle", device_pointer=RSI),
    *changes("cuIpcOpenMemHandle _v2", device_pointer=out(RDI), flags=RSI),
    *changes("cuImportExternalMemory cuImportExternalSemaphore", handle=out(RDI)),
    *changes("cuDestroyExternalMemory cuDestroyExternalSemaphore", handle=RDI),
    *changes("cuExternalMemoryGetMappedBuffer", device_pointer=out(RDI), handle=RSI, size_bytes=at(RDX, 8)),
    *changes("cuExternalMemoryGetMappedMipmappedArray", other_handle=out(RDI), handle=RSI),
    *calls("cuMemGetInfo_v2"),
)
"""Allocations, and what becomes of them."""

VIRTUAL_MEMORY: tuple[Probe, ...] = (
    *changes("cuMemAddressReserve", device_pointer=out(RDI), size_bytes=RSI, flags=R8),
    *changes("cuMemAddressFree cuMemUnmap cuMemSetAccess", device_pointer=RDI, size_bytes=RSI),
    *changes("cuMemCreate", handle=out(RDI), size_bytes=RSI, device=at(RDX, 12), flags=RCX),
    *changes("cuMemRelease", handle=RDI),
    *changes("cuMemMap", device_pointer=RDI, size_bytes=RSI, handle=RCX, flags=R8),
    *changes("cuMemMapArrayAsync _ptsz", stream=RDX),
    *changes("cuMemRetainAllocationHandle", handle=out(RDI), device_pointer=RSI),
    *changes("cuMemExportToShareableHandle", handle=RSI, flags=RCX),
    *changes("cuMemImportFromShareableHandle", handle=out(RDI)),
    *changes("cuMulticastCreate", handle=out(RDI), size_bytes=at(RSI, 8)),
    *changes("cuMulticastAddDevice", handle=RDI, device=RSI),
    *changes("cuMulticastBindMem", handle=RDI, other_handle=RDX, size_bytes=R8, flags=R9),
    *changes("cuMulticastBindMem_v2", handle=RDI, device=RSI, other_handle=RCX, size_bytes=R9, flags=stack(0)),
    *changes("cuMulticastBindAddr", handle=RDI, device_pointer=RDX, size_bytes=RCX, flags=R8),
    *changes("cuMulticastBindAddr_v2", handle=RDI, device=RSI, device_pointer=RCX, size_bytes=R8, flags=R9),
    *changes("cuMulticastUnbind", handle=RDI, device=RSI, size_bytes=RCX),
    *changes("cuMemPoolCreate", handle=out(RDI), device=at(RSI, 12)),
    *changes("cuMemPoolSetAttribute", handle=RDI, flags=RSI),
    *changes("cuMemPoolDestroy cuMemPoolSetAccess cuMemPoolTrimTo", handle=RDI),
    *changes("cuMemPoolExportToShareableHandle", handle=RSI, flags=RCX),
    *changes("cuMemPoolExportPointer", device_pointer=RSI),
    *changes("cuMemPoolImportFromShareableHandle", handle=out(RDI), flags=RCX),
    *changes("cuMemPoolImportPointer", device_pointer=out(RDI), handle=RSI),
    *changes("cuDeviceSetMemPool", device=RDI, handle=RSI),
    *changes("cuDeviceGraphMemTrim", device=RDI),
    *calls("cuMemPrefetchAsync _ptsz", device_pointer=RDI, size_bytes=RSI, device=RDX, stream=RCX),
    *calls("cuMemPrefetchAsync_v2 _ptsz", device_pointer=RDI, size_bytes=RSI, device=upper(RDX), flags=RCX, stream=R8),
    *calls("cuMemAdvise", device_pointer=RDI, size_bytes=RSI, flags=RDX, device=RCX),
    *calls("cuMemAdvise_v2", device_pointer=RDI, size_bytes=RSI, flags=RDX, device=upper(RCX)),
    *calls("cuMemPrefetchBatchAsync _ptsz cuMemDiscardAndPrefetchBatchAsync _ptsz", flags=stack(0), stream=stack(1)),
    *calls("cuMemDiscardBatchAsync _ptsz", flags=RCX, stream=R8),
    *calls("cuMemBatchDecompressAsync _ptsz", flags=RDX, stream=R8),
)
"""Address ranges and the memory mapped there, pools, managed memory. ``handle`` is a memory handle or a pool."""

_TO: dict[str, Places] = {"device_pointer": RDI, "source_pointer": RSI, "size_bytes": RDX}
_TO_ARRAY: dict[str, Places] = {"handle": RDI, "source_pointer": RDX, "size_bytes": RCX}
_FROM_ARRAY: dict[str, Places] = {"device_pointer": RDI, "handle": RSI, "size_bytes": RCX}
_PEER: dict[str, Places] = {
    "device_pointer": RDI, "handle": RSI, "source_pointer": RDX, "other_handle": RCX, "size_bytes": R8,
    "direction": DEVICE_TO_DEVICE,
}  # fmt: skip
_2D: dict[str, Places] = {"size_bytes": product(at(RDI, 112), at(RDI, 120))}
_3D: dict[str, Places] = {"size_bytes": product(at(RDI, 176), at(RDI, 184), at(RDI, 192))}
_3D_PEER: dict[str, Places] = {
    **_3D,
    "handle": at(RDI, 152),
    "other_handle": at(RDI, 64),
    "direction": DEVICE_TO_DEVICE,
}

COPIES: tuple[Probe, ...] = (
    *calls("cuMemcpy _ptds", **_TO, direction=DEFAULT),
    *calls("cuMemcpyAsync _ptsz", **_TO, direction=DEFAULT, stream=RCX),
    *calls("cuMemcpyWithAttributesAsync _ptsz", **_TO, direction=DEFAULT, stream=R8),
    *calls("cuMemcpyHtoD_v2 _ptds", **_TO, direction=HOST_TO_DEVICE),
    *calls("cuMemcpyHtoDAsync_v2 _ptsz", **_TO, direction=HOST_TO_DEVICE, stream=RCX),
    *calls("cuMemcpyDtoH_v2 _ptds", **_TO, direction=DEVICE_TO_HOST),
    *calls("cuMemcpyDtoHAsync_v2 _ptsz", **_TO, direction=DEVICE_TO_HOST, stream=RCX),
    *calls("cuMemcpyDtoD_v2 _ptds", **_TO, direction=DEVICE_TO_DEVICE),
    *calls("cuMemcpyDtoDAsync_v2 _ptsz", **_TO, direction=DEVICE_TO_DEVICE, stream=RCX),
    *calls("cuMemcpyDtoA_v2 _ptds", **_TO_ARRAY, direction=DEVICE_TO_DEVICE),
    *calls("cuMemcpyHtoA_v2 _ptds", **_TO_ARRAY, direction=HOST_TO_DEVICE),
    *calls("cuMemcpyHtoAAsync_v2 _ptsz", **_TO_ARRAY, direction=HOST_TO_DEVICE, stream=R8),
    *calls("cuMemcpyAtoD_v2 _ptds", **_FROM_ARRAY, direction=DEVICE_TO_DEVICE),
    *calls("cuMemcpyAtoH_v2 _ptds", **_FROM_ARRAY, direction=DEVICE_TO_HOST),
    *calls("cuMemcpyAtoHAsync_v2 _ptsz", **_FROM_ARRAY, direction=DEVICE_TO_HOST, stream=R8),
    *calls("cuMemcpyAtoA_v2 _ptds", handle=RDI, other_handle=RDX, size_bytes=R8, direction=DEVICE_TO_DEVICE),
    *calls("cuMemcpyPeer _ptds", **_PEER),
    *calls("cuMemcpyPeerAsync _ptsz", **_PEER, stream=R9),
    *calls("cuMemcpy2D_v2 _ptds cuMemcpy2DUnaligned_v2 _ptds", **_2D),
    *calls("cuMemcpy2DAsync_v2 _ptsz", **_2D, stream=RSI),
    *calls("cuMemcpy3D_v2 _ptds", **_3D),
    *calls("cuMemcpy3DAsync_v2 _ptsz", **_3D, stream=RSI),
    *calls("cuMemcpy3DPeer _ptds", **_3D_PEER),
    *calls("cuMemcpy3DPeerAsync _ptsz", **_3D_PEER, stream=RSI),
    *calls("cuMemcpy3DWithAttributesAsync _ptsz", flags=RSI, stream=RDX),
    *calls("cuMemcpyBatchAsync _ptsz", stream=stack(2)),
    *calls("cuMemcpyBatchAsync_v2 _ptsz", stream=stack(1)),
    *calls("cuMemcpy3DBatchAsync _ptsz", flags=RCX, stream=R8),
    *calls("cuMemcpy3DBatchAsync_v2 _ptsz cuFabricCpyBatchAsync _ptsz", flags=RDX, stream=RCX),
)
"""``handle`` is an array, or the context that a peer copy goes to; ``other_handle`` what it comes from."""


def _sets() -> tuple[Probe, ...]:
    """cuMemsetD8, D16 and D32: ``flags`` is the value, counts are of elements with that many bytes."""
    found: list[Probe] = []
    for size in (1, 2, 4):
        bits, width = 8 * size, constant(size)
        one: dict[str, Places] = {
            "device_pointer": RDI,
            "flags": replace(RSI, bytes=size),
            "size_bytes": product(RDX, width),
        }
        two: dict[str, Places] = {
            "device_pointer": RDI,
            "flags": replace(RDX, bytes=size),
            "size_bytes": product(RCX, R8, width),
        }
        found += calls(f"cuMemsetD{bits}_v2 _ptds", **one)
        found += calls(f"cuMemsetD{bits}Async _ptsz", **one, stream=RCX)
        found += calls(f"cuMemsetD2D{bits}_v2 _ptds", **two)
        found += calls(f"cuMemsetD2D{bits}Async _ptsz", **two, stream=R9)
    return tuple(found)


LAUNCHES: tuple[Probe, ...] = (
    *calls(
        "cuLaunchKernel _ptsz cuLaunchCooperativeKernel _ptsz", function=RDI, grid_x=RSI, grid_y=RDX, grid_z=RCX,
        block_x=R8, block_y=R9, block_z=stack(0), shared_bytes=narrow(stack(1)), stream=stack(2),
    ),
    *calls(
        "cuLaunchKernelEx _ptsz", function=RSI, grid_x=at(RDI), grid_y=at(RDI, 4), grid_z=at(RDI, 8),
        block_x=at(RDI, 12), block_y=at(RDI, 16), block_z=at(RDI, 20), shared_bytes=narrow(at(RDI, 24)),
        stream=at(RDI, 32),
    ),
    *calls("cuLaunchCooperativeKernelMultiDevice", flags=RDX),
    *calls("cuLaunch", function=RDI),
    *calls("cuLaunchGrid", function=RDI, grid_x=RSI, grid_y=RDX),
    *calls("cuLaunchGridAsync", function=RDI, grid_x=RSI, grid_y=RDX, stream=RCX),
    *calls("cuLaunchHostFunc _ptsz", stream=RDI, function=RSI),
    *calls("cuLaunchHostFunc_v2 _ptsz cuStreamAddCallback _ptsz", stream=RDI, function=RSI, flags=RCX),
)  # fmt: skip

STREAMS: tuple[Probe, ...] = (
    *calls("cuCtxSynchronize"),
    *calls("cuCtxSynchronize_v2", handle=RDI),
    *calls("cuStreamSynchronize _ptsz cuStreamQuery _ptsz", stream=RDI),
    *calls("cuStreamWaitEvent _ptsz", stream=RDI, handle=RSI, flags=RDX),
    *calls("cuStreamAttachMemAsync _ptsz", stream=RDI, device_pointer=RSI, size_bytes=RDX, flags=RCX),
    *calls(
        "cuStreamWaitValue32 _ptsz _v2 _v2_ptsz cuStreamWaitValue64 _ptsz _v2 _v2_ptsz "
        "cuStreamWriteValue32 _ptsz _v2 _v2_ptsz cuStreamWriteValue64 _ptsz _v2 _v2_ptsz",
        stream=RDI, device_pointer=RSI, flags=RCX,
    ),
    *calls("cuStreamBatchMemOp _ptsz _v2 _v2_ptsz", stream=RDI, flags=RCX),
    *calls("cuSignalExternalSemaphoresAsync _ptsz cuWaitExternalSemaphoresAsync _ptsz", stream=RCX),
    *changes("cuStreamCreate cuStreamCreateWithPriority", stream=out(RDI), flags=RSI),
    *changes("cuStreamDestroy _v2", stream=RDI),
    *changes("cuEventCreate", handle=out(RDI), flags=RSI),
    *changes("cuIpcOpenEventHandle", handle=out(RDI)),
    *changes("cuIpcGetEventHandle", handle=RSI),
    *changes("cuEventDestroy _v2", handle=RDI),
    *calls("cuEventRecord _ptsz", handle=RDI, stream=RSI),
    *calls("cuEventRecordWithFlags _ptsz", handle=RDI, stream=RSI, flags=RDX),
    *calls("cuEventSynchronize cuEventQuery", handle=RDI),
    *calls("cuEventElapsedTime _v2", elapsed_ms=out(RDI), handle=RSI, other_handle=RDX),
)  # fmt: skip
"""Streams and events. ``handle`` is the event, or the context that is synchronised."""

_NODES = (
    "KernelNode KernelNode_v2 MemcpyNode MemsetNode HostNode ChildGraphNode EmptyNode EventRecordNode EventWaitNode "
    "ExternalSemaphoresSignalNode ExternalSemaphoresWaitNode MemAllocNode MemFreeNode BatchMemOpNode Node Node_v2 "
    "Node_v3"
)
_NODES_SET = (
    "KernelNodeSetParams KernelNodeSetParams_v2 MemcpyNodeSetParams MemsetNodeSetParams HostNodeSetParams "
    "ChildGraphNodeSetParams EventRecordNodeSetEvent EventWaitNodeSetEvent ExternalSemaphoresSignalNodeSetParams "
    "ExternalSemaphoresWaitNodeSetParams BatchMemOpNodeSetParams NodeSetParams"
)

GRAPHS: tuple[Probe, ...] = (
    *changes("cuStreamBeginCapture _ptsz cuStreamBeginCaptureToCig _ptsz cuStreamEndCaptureToCig _ptsz", stream=RDI),
    *changes("cuStreamBeginCapture_v2 _ptsz", stream=RDI, flags=RSI),
    *changes("cuStreamBeginCaptureToGraph _ptsz", stream=RDI, handle=RSI, flags=R9),
    *changes("cuStreamBeginRecaptureToGraph _ptsz", stream=RDI, flags=RSI, handle=RDX),
    *changes("cuStreamEndCapture _ptsz", stream=RDI, handle=out(RSI)),
    *changes("cuGraphCreate", handle=out(RDI), flags=RSI),
    *changes("cuGraphClone cuGraphInstantiate _v2", other_handle=out(RDI), handle=RSI),
    *changes("cuGraphInstantiateWithFlags", other_handle=out(RDI), handle=RSI, flags=RDX),
    *changes("cuGraphInstantiateWithParams _ptsz", other_handle=out(RDI), handle=RSI, flags=at(RDX), stream=at(RDX, 8)),
    *changes("cuGraphExecUpdate _v2", handle=RDI, other_handle=RSI),
    *changes("cuGraphDestroy cuGraphExecDestroy cuGraphDestroyNode", handle=RDI),
    *changes(" ".join(f"cuGraphAdd{n}" for n in _NODES.split()), other_handle=out(RDI), handle=RSI),
    *changes(" ".join(f"cuGraphExec{n}" for n in _NODES_SET.split()), handle=RDI, other_handle=RSI),
    *changes("cuGraphNodeSetEnabled", handle=RDI, other_handle=RSI, flags=RDX),
    *calls("cuGraphLaunch _ptsz cuGraphUpload _ptsz", handle=RDI, stream=RSI),
)
"""As in the runtime: ``handle`` is acted on, ``other_handle`` was made from it, or is the source of an update."""

CONTEXTS: tuple[Probe, ...] = (
    *changes("cuInit", flags=RDI),
    *changes("cuCtxCreate _v2", handle=out(RDI), flags=RSI, device=RDX),
    *changes("cuCtxCreate_v3", handle=out(RDI), flags=RCX, device=R8),
    *changes("cuCtxCreate_v4", handle=out(RDI), flags=RDX, device=RCX),
    *changes("cuCtxAttach", handle=out(RDI), flags=RSI),
    *changes("cuCtxDestroy _v2 cuCtxDetach cuGreenCtxDestroy", handle=RDI),
    *changes("cuDevicePrimaryCtxRetain", handle=out(RDI), device=RSI),
    *changes("cuDevicePrimaryCtxRelease _v2 cuDevicePrimaryCtxReset _v2", device=RDI),
    *changes("cuDevicePrimaryCtxSetFlags _v2", device=RDI, flags=RSI),
    *changes("cuCtxSetLimit cuCtxSetFlags", flags=RDI),
    *changes("cuCtxEnablePeerAccess", handle=RDI, flags=RSI),
    *changes("cuCtxDisablePeerAccess", handle=RDI),
    *changes("cuGreenCtxCreate", handle=out(RDI), device=RDX, flags=RCX),
    *changes("cuCtxFromGreenCtx", other_handle=out(RDI), handle=RSI),
    *changes("cuGreenCtxStreamCreate", stream=out(RDI), handle=RSI, flags=RDX),
    *calls("cuCtxSetCurrent cuCtxPushCurrent _v2", handle=RDI),
    *calls("cuCtxPopCurrent _v2", handle=out(RDI)),
    *calls("cuCtxRecordEvent cuCtxWaitEvent cuGreenCtxRecordEvent cuGreenCtxWaitEvent", handle=RDI, other_handle=RSI),
    *changes("cuProfilerStart cuProfilerStop"),
)
"""``handle`` is the context; ``flags`` of cuCtxSetLimit is the limit that is set."""

MODULES: tuple[Probe, ...] = (
    *changes("cuModuleLoad cuModuleLoadData cuModuleLoadDataEx cuModuleLoadFatBinary", handle=out(RDI)),
    *changes("cuLibraryLoadData cuLibraryLoadFromFile", handle=out(RDI)),
    *changes("cuModuleUnload cuLibraryUnload", handle=RDI),
    *changes("cuModuleGetFunction cuLibraryGetKernel cuKernelGetFunction", function=out(RDI), handle=RSI),
    *changes("cuModuleGetGlobal_v2", device_pointer=out(RDI), size_bytes=out(RSI), handle=RDX),
    *changes("cuLibraryGetModule", other_handle=out(RDI), handle=RSI),
    *changes("cuFuncLoad", function=RDI),
    *changes("cuLinkCreate _v2", handle=out(RCX)),
    *changes("cuLinkAddData _v2 cuLinkAddFile _v2 cuLinkDestroy", handle=RDI),
    *changes("cuLinkComplete", handle=RDI, size_bytes=out(RDX)),
)
"""Code on the device. ``handle`` is the module, library, kernel or linker; ``function`` what was found in it."""

DRIVER = Library(
    "driver", "cuda", r"libcuda\.so(\.[0-9]+)*", r"cu[A-Z]\w*",
    (*MEMORY, *VIRTUAL_MEMORY, *COPIES, *_sets(), *LAUNCHES, *STREAMS, *GRAPHS, *CONTEXTS, *MODULES),
)  # fmt: skip
