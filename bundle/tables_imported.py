"""Tables that only recordings of other tools fill: what a GPU itself did, ranges a program marked, and totals.

Times are those of the recording (docs/decisions/0013): ns since 1970 UTC where it tells wall-clock time, and of its own
axis where it does not; either way one axis per bundle.
"""

from __future__ import annotations

from gpuaudit.bundle.table import DURATION, PID, START, TID, Table, col

GPU_ACTIVITIES = Table("gpu_activities", "Kernels, copies, memory sets and waits as the GPU executed them, recorded by "
    "CUPTI or ROCm through another tool.", (
    START, DURATION, col("pid", "u32", "", "process that gave the work; null where the recording does not say",
        nullable=True),
    col("op", "text", "", "kernel, memcpy, memset or sync, as CUPTI's kinds of activity; graph: a whole CUDA graph, "
        "whose kernels and copies have no rows of their own"),
    col("name", "text", "", "name of the kernel, or of the copy as recorded"),
    col("device", "i32", "", "device ordinal of the recording", nullable=True),
    col("context", "i64", "", "context number", nullable=True),
    col("stream", "i64", "", "stream number; −1 is all streams of a context", nullable=True),
    col("correlation", "u64", "", "number that ties it to the call that gave it (the cuda_calls row of that process "
        "and number); null where the recording gives none", nullable=True),
    col("external_id", "u64", "", "number of the operator or range that gave it (correlation of its user_ranges row), "
        "where the recording has such a number", nullable=True),
    col("size_bytes", "u64", "bytes", "bytes copied or set", nullable=True),
    col("direction", "i32", "", "cudaMemcpyKind: 0 H2H, 1 H2D, 2 D2H, 3 D2D, 4 default, 10 peer", nullable=True),
    col("pageable", "u8", "", "1: the host side of the copy was pageable memory, 0: pinned", nullable=True),
    col("grid_x", "u32", "", "grid dimension", nullable=True), col("grid_y", "u32", "", "grid dimension",
    nullable=True), col("grid_z", "u32", "", "grid dimension", nullable=True),
    col("block_x", "u32", "", "block dimension", nullable=True), col("block_y", "u32", "", "block dimension",
    nullable=True), col("block_z", "u32", "", "block dimension", nullable=True),
    col("shared_bytes", "u64", "bytes", "shared memory of a block", nullable=True),
    col("graph", "u64", "", "graph it was launched from", nullable=True),
    col("collective", "text", "", "name of the collective that the kernel carries out, as recorded", nullable=True),
    col("group_name", "text", "", "process group of the collective", nullable=True),
    col("group_size", "u32", "", "ranks in that group", nullable=True),
    col("group_ranks", "text", "", "ranks in that group, as recorded", nullable=True),
    col("in_elements", "u64", "", "elements that go in", nullable=True),
    col("out_elements", "u64", "", "elements that come out", nullable=True),
    col("datatype", "text", "", "type of the elements", nullable=True),
))  # fmt: skip

USER_RANGES = Table("user_ranges", "Ranges that a program or its framework marked: NVTX, annotations, operators.", (
    START, DURATION, PID, col("tid", "u32", "", "thread; null for a range of a stream or of the whole recording",
    nullable=True), col("op", "text", "", "nvtx, annotation, operator, python or gpu_annotation"),
    col("name", "text", "", "name of the range"),
    col("correlation", "u64", "", "number that ties it to other rows of the recording", nullable=True),
    col("detail", "text", "", "what else the recording says of it, as JSON of at most 4,096 bytes", nullable=True),
))  # fmt: skip

OS_CALLS = Table("os_calls", "Calls into the operating system's libraries or kernel, one by one.", (
    START, DURATION, PID, TID, col("op", "text", "", "name of the call (poll, pthread_cond_wait, recvfrom)"),
    col("descriptor", "i64", "", "file descriptor", nullable=True),
    col("size_bytes", "u64", "bytes", "bytes sent or received", nullable=True),
    col("return_code", "i64", "", "what it returned", nullable=True),
))  # fmt: skip

PERIOD_TOTALS = Table("period_totals", "Events that another tool counted over fixed periods, whether it kept rows of "
    "them or not.", (
    col("start_ns", "u64", "ns", "start of the period"), col("duration_ns", "u64", "ns", "length of the period"),
    PID, col("tid", "u32", "", "thread, where the tool counted by thread", nullable=True),
    col("comm", "text", "", "name of that thread or process", nullable=True),
    col("op", "text", "", "what was counted, by our name for it (cudaMalloc, off_cpu, page_allocation)"),
    col("count", "u64", "", "events"), col("kept", "u64", "", "of them, those said to have rows", nullable=True),
    col("sum_ns", "u64", "ns", "sum of their durations", nullable=True),
    col("min_ns", "u64", "ns", "shortest", nullable=True), col("max_ns", "u64", "ns", "longest", nullable=True),
    col("size_bytes", "u64", "bytes", "sum of their sizes", nullable=True),
))  # fmt: skip

HOST_SAMPLES = Table("host_samples", "State of the whole host, sampled by another tool.", (
    col("start_ns", "u64", "ns", "when"), col("cpu_percent", "f64", "%", "CPU in use", nullable=True),
    col("memory_percent", "f64", "%", "memory in use", nullable=True),
    col("memory_available_bytes", "u64", "bytes", "memory available", nullable=True),
    col("swap_used_bytes", "u64", "bytes", "swap in use", nullable=True),
    col("load_average_1min", "f64", "", "load average over a minute", nullable=True),
))  # fmt: skip

STORED_CONCLUSIONS = Table("stored_conclusions", "Conclusions that another tool stored with its recording: quoted, and "
    "never evidence.", (
    col("start_ns", "u64", "ns", "when it was concluded"), col("tool", "text", "", "tool that concluded it"),
    col("key", "text", "", "the tool's own id of it"), col("severity", "text", "", "as stored"),
    col("op", "text", "", "operation it is about, by our name for it", nullable=True),
    col("summary", "text", "", "as stored"), col("cause", "text", "", "root cause as stored", nullable=True),
    col("alleged", "text", "", "what it names as contributing, by our names, sorted and comma separated: off_cpu, "
        "block_io, host_cpu, host_memory, network, other", nullable=True),
    col("usual_ns", "u64", "ns", "median duration of the operation that it states", nullable=True),
    col("tail_ns", "u64", "ns", "p99 of the operation that it states", nullable=True),
    col("ratio", "f64", "", "quotient of the two, as stored", nullable=True),
    col("alleged_off_cpu_ns", "u64", "ns", "time off a CPU that it states", nullable=True),
    col("detail", "text", "", "the rest as stored, JSON of at most 65,536 bytes", nullable=True),
))  # fmt: skip

IMPORTED_TABLES = (GPU_ACTIVITIES, USER_RANGES, OS_CALLS, PERIOD_TOTALS, HOST_SAMPLES, STORED_CONCLUSIONS)
