"""Tables of calls: what was called in the CUDA runtime and driver, in HIP, NCCL and RCCL, and from where.

A call that another one made on the same thread (the driver call inside a runtime call) names it in ``parent_ns`` and
``parent_op``: rows without a parent are the outermost calls, and only their durations may be added up.
"""

from __future__ import annotations

from gpuaudit.bundle.table import CPU, DURATION, PID, RETURN_CODE, SEQ, START, TID, Column, Table, col, op

PARENT: tuple[Column, ...] = (
    col("parent_ns", "u64", "ns", "start_ns of the call of the same thread that this one was made inside; null for an "
        "outermost call", nullable=True),
    col("parent_op", "text", "", "API name of that call", ring="op", nullable=True),
    col("probe", "u32", "", "number of the probe (column probe of probes), which tells the library file",
        nullable=True),
    col("native_stack", "u64", "", "identity of the native stack at return (stack_frames), where it was taken",
        nullable=True),
    col("python_stack", "u64", "", "identity of the CPython stack at return (stack_frames), where it was taken",
        nullable=True),
)  # fmt: skip
"""Columns of every table of calls."""

CUDA_CALLS = Table("cuda_calls", "Calls into the CUDA runtime, the CUDA driver and HIP, seen by entry and return "
    "probes.", (
    START, DURATION, PID, TID, op("API name, as exported (cudaMalloc)"), RETURN_CODE,
    col("size_bytes", "u64", "bytes", "bytes allocated, copied or set; width × height (× depth) where the call says so",
        nullable=True),
    col("direction", "i32", "", "cudaMemcpyKind: 0 H2H, 1 H2D, 2 D2H, 3 D2D, 4 default", nullable=True),
    col("stream", "u64", "", "stream handle, 0 is the default stream", nullable=True),
    col("device_pointer", "u64", "", "address: allocated (read at return), freed, set, or copy destination",
        nullable=True),
    col("source_pointer", "u64", "", "address a copy reads from", nullable=True),
    col("function", "u64", "", "host-side function pointer, or CUfunction, of a launch", nullable=True),
    col("grid_x", "u32", "", "grid dimension of a launch", nullable=True),
    col("grid_y", "u32", "", "grid dimension of a launch", nullable=True),
    col("grid_z", "u32", "", "grid dimension of a launch", nullable=True),
    col("block_x", "u32", "", "block dimension of a launch", nullable=True),
    col("block_y", "u32", "", "block dimension of a launch", nullable=True),
    col("block_z", "u32", "", "block dimension of a launch", nullable=True),
    col("shared_bytes", "u64", "bytes", "dynamic shared memory of a launch", nullable=True),
    col("handle", "u64", "", "the object the call is about: event, graph, executable graph, pool, context, module or "
        "memory handle, as the API says", nullable=True),
    col("other_handle", "u64", "", "the second object: the one that was made (read at return), or the end event of an "
        "elapsed time", nullable=True),
    col("device", "i32", "", "device ordinal argument; of a peer copy the destination", nullable=True),
    col("peer_device", "i32", "", "device ordinal a peer copy reads from", nullable=True),
    col("flags", "u32", "", "flags or mode argument (capture mode, event flags, memset value), as the API says",
        nullable=True),
    col("elapsed_ms", "f64", "ms", "what cudaEventElapsedTime gave", ring="f32", nullable=True),
    col("correlation", "u64", "", "number that ties it to the GPU's own work (gpu_activities), where imported",
        nullable=True, in_ring=False),
    *PARENT, CPU, SEQ,
), ring=True)  # fmt: skip

NCCL_CALLS = Table("nccl_calls", "NCCL and RCCL collectives and point-to-point calls, seen by entry and return probes "
    "on the host.", (
    START, DURATION, PID, TID, op("API name (ncclAllReduce)"), RETURN_CODE,
    col("comm_handle", "u64", "", "ncclComm_t value, meaningful within its process only"),
    col("comm_id", "u64", "", "identity of the communicator (splitmix64 fold of ncclUniqueId); null when it was made "
       "before the probes were attached", nullable=True),
    col("rank", "i32", "", "rank of the caller in the communicator", nullable=True),
    col("nranks", "i32", "", "size of the communicator", nullable=True),
    col("datatype", "i32", "", "ncclDataType_t", nullable=True),
    col("reduce_op", "i32", "", "ncclRedOp_t", nullable=True),
    col("root", "i32", "", "root rank of a broadcast, reduce, gather or scatter", nullable=True),
    col("peer", "i32", "", "peer rank of a send or receive", nullable=True),
    col("count", "u64", "", "element count argument", nullable=True),
    col("size_bytes", "u64", "bytes", "count × size of the datatype; null for an unknown datatype", nullable=True),
    col("stream", "u64", "", "stream handle, 0 is the default stream", nullable=True),
    *PARENT, CPU, SEQ,
), ring=True)  # fmt: skip

NCCL_COMMS = Table("nccl_comms", "Communicators made, asked about and destroyed, and groups begun and ended.", (
    START, DURATION, PID, TID, op("API name (ncclCommInitRank)"), RETURN_CODE,
    col("comm_handle", "u64", "", "ncclComm_t value (read at return for an init)", nullable=True),
    col("comm_id", "u64", "", "splitmix64 fold of the 128-byte ncclUniqueId; of a split, a fold of the parent's "
        "identity, the number of the split and the colour", nullable=True),
    col("rank", "i32", "", "rank argument, or rank told by NCCL", nullable=True),
    col("nranks", "i32", "", "nranks argument, or size told by NCCL", nullable=True),
    col("parent_handle", "u64", "", "communicator that this one was split, shrunk or grown from", nullable=True),
    col("parent_comm_id", "u64", "", "its identity", nullable=True),
    col("color", "i32", "", "colour argument of a split", nullable=True),
    col("key", "i32", "", "key argument of a split", nullable=True),
    *PARENT, CPU, SEQ,
), ring=True)  # fmt: skip

CALL_TOTALS = Table("call_totals", "Calls that were too many and too fast for rows of their own: counted exactly in "
    "the kernel per thread, operation and duration bucket, over a window of time.", (
    col("start_ns", "u64", "ns", "start of the first call in the bucket, CLOCK_BOOTTIME"),
    col("duration_ns", "u64", "ns", "from there to the end of the last call in the bucket"), PID, TID,
    op("API name, as exported"),
    col("low_ns", "u64", "ns", "shortest duration of the bucket; four buckets in each doubling"),
    col("high_ns", "u64", "ns", "durations of the bucket are below this"),
    col("count", "u64", "", "calls"), col("sum_ns", "u64", "ns", "sum of their durations"),
    col("min_ns", "u64", "ns", "shortest of them"), col("max_ns", "u64", "ns", "longest of them"),
    col("size_bytes", "u64", "bytes", "sum of their sizes"),
    col("errors", "u64", "", "calls of them that returned something else than success"),
    col("nested", "u8", "", "1: made inside another recorded call of the same thread"),
    CPU, SEQ,
), ring=True)  # fmt: skip

STACK_FRAMES = Table("stack_frames", "Frames of the stacks that calls refer to, each distinct stack once.", (
    col("start_ns", "u64", "ns", "when the stack was first seen, CLOCK_BOOTTIME"), PID, TID,
    col("stack", "u64", "", "identity of the stack (native_stack or python_stack of a call)"),
    col("kind", "text", "", "native or python"), col("depth", "u32", "", "0 is the innermost frame"),
    col("path", "text", "", "mapped file (native) or source file (python)", nullable=True),
    col("build_id", "text", "", "GNU build id of the file, hex", nullable=True),
    col("offset", "u64", "bytes", "offset in the file, of the return address", nullable=True),
    col("symbol", "text", "", "function: symbol of the file, or qualified name in Python", nullable=True),
    col("symbol_offset", "u64", "bytes", "distance from the start of the symbol", nullable=True),
    col("line", "u32", "", "executing line (python)", nullable=True),
    col("first_line", "u32", "", "first line of the function (python), where an import tells no executing line",
        nullable=True),
    col("reason", "text", "", "why the frame or the rest of the stack could not be named", nullable=True),
))  # fmt: skip
