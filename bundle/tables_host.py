"""Tables of the host: threads off the CPU, system calls, memory, disks, network, and the lives of processes."""

from __future__ import annotations

from gpuaudit.bundle.table import CPU, DURATION, PID, SEQ, START, TID, Table, col

OFF_CPU = Table("off_cpu", "Intervals in which a thread of a traced process was not on a CPU. One whose end the kernel "
    "did not tell (a row of gaps says so) ends with the wake-up, and has no runqueue_ns; without a wake-up it is "
    "missing.", (
    START, DURATION, PID, TID,
    col("op", "text", "", "preempted (runnable when it left) or blocked (asleep), from prev_state; off where an import "
        "does not tell the state", in_ring=False),
    col("comm", "text", "", "name of the thread; null in imports that do not tell it", ring="comm", nullable=True,
        always_in_ring=True),
    col("prev_state", "u32", "", "task state at the switch: 0 is TASK_RUNNING (preempted); null in imports that do not "
        "tell it", nullable=True, always_in_ring=True),
    col("next_pid", "u32", "", "process that ran on this CPU instead (0: idle); null if not seen", nullable=True),
    col("next_tid", "u32", "", "thread that ran on this CPU instead (0: idle); null if not seen", nullable=True),
    col("next_comm", "text", "", "name of the thread that ran instead; null if not seen", ring="comm", nullable=True),
    col("wake_ns", "u64", "ns", "when the thread was made runnable again, CLOCK_BOOTTIME; null if not seen",
       nullable=True),
    col("waker_pid", "u32", "", "process that woke it; null if not seen", nullable=True),
    col("waker_tid", "u32", "", "thread that woke it; null if not seen", nullable=True),
    col("waker_comm", "text", "", "name of the thread that woke it", ring="comm", nullable=True),
    col("cpu_out", "u16", "", "CPU it left; null in imports that do not tell it", nullable=True, always_in_ring=True),
    col("runqueue_ns", "u64", "ns", "of the interval, the part in which it was runnable and waited for a CPU: all of "
        "it when preempted, from wake_ns on when blocked; null if the wake or the switch back was not seen",
        nullable=True),
    col("began_before", "u8", "", "1: the thread was asleep already when its process was first followed, and start_ns "
        "is then; null otherwise", nullable=True),
    col("priority", "i32", "", "kernel priority of the thread: below 100 real-time, 120 is nice 0", nullable=True),
    col("next_priority", "i32", "", "kernel priority of the thread that ran instead", nullable=True),
    col("cgroup_id", "u64", "", "id of the thread's cgroup in the version 2 hierarchy (inode of its directory); 1, the "
        "root, for every thread where only version 1 is in use", nullable=True),
    col("next_cgroup_id", "u64", "", "id of the cgroup of the thread that ran instead", nullable=True),
    col("syscall", "i32", "", "number (x86-64) of the system call it was in when it left; null outside one (page "
        "fault, interrupt) and for 32-bit ones", nullable=True),
    col("syscall_arg", "u64", "", "first argument of that system call (futex address, descriptor)", nullable=True),
    CPU, SEQ,
), ring=True)  # fmt: skip

MIGRATIONS = Table("migrations", "Threads of traced processes that the scheduler moved to another CPU.", (
    col("start_ns", "u64", "ns", "when, CLOCK_BOOTTIME"), PID, TID, col("from_cpu", "u16", "", "CPU it was on"),
    col("to_cpu", "u16", "", "CPU it goes to"), CPU, SEQ,
), ring=True)  # fmt: skip

OCCUPANTS_FROM_NS = 100_000
"""Who had the CPU is recorded for waits from this long on: chosen; a shorter one is over before many took turns, and
most waits are."""

MAX_OCCUPANTS = 64
"""Turns that are remembered per CPU: chosen; of the shortest slices that the kernel gives, some tenths of a second."""

CPU_OCCUPANTS = Table("cpu_occupants", "Turns on a CPU that threads had while one of a traced process was ready to run "
    f"there and waited, for {OCCUPANTS_FROM_NS // 1000} µs and longer. A turn is told once, whole and whoever waited "
    f"for it; of a wait at most the last {MAX_OCCUPANTS}. The CPU that wrote the record is the one it is about.", (
    col("start_ns", "u64", "ns", "start of the turn, CLOCK_BOOTTIME"), col("duration_ns", "u64", "ns", "its length"),
    col("pid", "u32", "", "process that had the CPU (0: idle)"),
    col("tid", "u32", "", "thread that had it (0: idle)"),
    col("comm", "text", "", "name of the thread when its turn began", ring="comm"),
    col("priority", "i32", "", "kernel priority of the thread when its turn began"),
    col("cgroup_id", "u64", "", "id of its cgroup in the version 2 hierarchy, as in off_cpu"),
    CPU, SEQ,
), ring=True)  # fmt: skip

IOCTLS = Table("ioctls", "ioctl(2) calls on the watched devices: the boundary of the NVIDIA kernel driver.", (
    START, DURATION, PID, TID, col("return_code", "i32", "", "what it returned; null while open", nullable=True),
    col("request", "u32", "", "request argument as passed"), col("number", "u32", "", "its number (bits 0–7)"),
    col("type", "u32", "", "its type (bits 8–15), 0x46 for the NVIDIA driver"),
    col("size_bytes", "u32", "bytes", "its size (bits 16–29)"), col("major", "u32", "", "major number of the device"),
    col("minor", "u32", "", "minor number of the device"), CPU, SEQ,
), ring=True)  # fmt: skip

SOCKET_IO = Table("socket_io", "Sends and receives of traced processes, added up in the kernel per socket and "
    "direction over a window of time.", (
    col("start_ns", "u64", "ns", "earliest start of a call that returned in the window, CLOCK_BOOTTIME"),
    col("duration_ns", "u64", "ns", "from there to the last return"), PID,
    col("op", "text", "", "send or receive", in_ring=False), col("receive", "u8", "", "1: receive, 0: send"),
    col("inode", "u64", "", "inode of the socket"), col("family", "u16", "", "address family: 1 Unix, 2 IPv4, 10 IPv6"),
    col("local_address", "text", "", "address of this end; null for other families", ring="address", nullable=True),
    col("local_port", "u16", "", "port of this end", nullable=True),
    col("remote_address", "text", "", "address of the other end", ring="address", nullable=True),
    col("remote_port", "u16", "", "port of the other end", nullable=True),
    col("count", "u64", "", "calls that returned"), col("errors", "u64", "", "of them, calls that failed"),
    col("not_ready", "u64", "", "of the errors, EAGAIN: nothing to receive, or no room to send", nullable=True),
    col("size_bytes", "u64", "bytes", "bytes that they sent or received, by their return values"),
    col("sum_ns", "u64", "ns", "time spent in them"),
    col("max_ns", "u64", "ns", "longest of them"), CPU, SEQ,
), ring=True)  # fmt: skip

PAGE_ALLOCATIONS = Table("page_allocations", "Pages the kernel allocated for traced processes, added up in the kernel "
    "per process and order over a window of time.", (
    col("start_ns", "u64", "ns", "first allocation of the window, CLOCK_BOOTTIME"),
    col("duration_ns", "u64", "ns", "from there to the last one"), PID,
    col("order", "u32", "", "2^order pages each"), col("count", "u64", "", "allocations"), CPU, SEQ,
), ring=True)  # fmt: skip

RECLAIMS = Table("reclaims", "Direct reclaim: a thread had to free memory itself before it got some.", (
    START, DURATION, PID, TID,
    col("op", "text", "", "host (its memory was short) or cgroup (its memory cgroup was at a limit)", in_ring=False),
    col("cgroup_limit", "u8", "", "1: cgroup, 0: host"), col("comm", "text", "", "name of the thread", ring="comm"),
    col("order", "i32", "", "2^order pages were wanted"),
    col("reclaimed_pages", "u64", "", "pages that were freed; null while open", nullable=True), CPU, SEQ,
), ring=True)  # fmt: skip

OOM_KILLS = Table("oom_kills", "Processes of the whole host that the kernel chose to kill for want of memory, or found "
    "ending already when it chose.", (
    col("start_ns", "u64", "ns", "when, CLOCK_BOOTTIME"), PID,
    col("comm", "text", "", "name of the victim; null in imports that do not tell it", ring="comm", nullable=True,
        always_in_ring=True),
    col("uid", "u32", "", "user of the victim", nullable=True),
    col("resident_bytes", "u64", "bytes", "anonymous, file and shared memory of the victim; the kernel's sum, without "
        "the up to 2 × CPUs (at least 32) pages that each CPU has not added to it yet", nullable=True),
    col("killer_pid", "u32", "", "process whose allocation it was", nullable=True),
    col("killer_comm", "text", "", "name of the thread whose allocation it was", ring="comm", nullable=True),
    col("cgroup_id", "u64", "", "id of the victim's cgroup (version 2 hierarchy)", nullable=True), CPU, SEQ,
), ring=True)  # fmt: skip

BLOCK_IO = Table("block_io", "Requests to the block devices of the whole host, from issue to completion. Devices that "
    "pass bios on (device mapper, RAID) have none; the devices below them have.", (
    START, DURATION, PID, TID, col("op", "text", "", "read, write, flush, discard or other", in_ring=False),
    col("operation", "u32", "", "REQ_OP number of the request"), col("comm", "text", "", "thread that issued it; null "
    "in imports that do not tell it", ring="comm", nullable=True, always_in_ring=True),
    col("major", "u32", "", "major number of the device; null in imports that do not tell it", nullable=True,
        always_in_ring=True),
    col("minor", "u32", "", "minor number; null likewise", nullable=True, always_in_ring=True),
    col("sector", "u64", "", "first sector (512 bytes)"), col("size_bytes", "u32", "bytes", "length of the request"),
    col("error", "i32", "", "0, or the negative error number; null while open", nullable=True),
    col("queue_ns", "u64", "ns", "time between insertion into the queue and issue", nullable=True),
    col("cgroup_id", "u64", "", "id of the cgroup that the request is charged to; in the hierarchy of the controller "
        "io (version 2) or blkio (version 1, where writeback is charged to the root)", nullable=True),
    col("for_pid", "u32", "", "write: process on whose behalf it is made, the last one seen to dirty a page of the "
        "file; null where no page of a file is written or nobody was seen", nullable=True),
    col("for_comm", "text", "", "name of the thread that did", ring="comm", nullable=True),
    CPU, SEQ,
), ring=True)  # fmt: skip

MOUNTS = Table("mounts", "File systems on block devices, and where the host has them mounted, from /proc/1/mountinfo: "
    "at the start, and what changed since.", (
    col("start_ns", "u64", "ns", "when it was read, CLOCK_BOOTTIME"),
    col("op", "text", "", "mounted (it is there) or unmounted (it is gone)"),
    col("mount_id", "u32", "", "id of the mount; another one may have it later"),
    col("major", "u32", "", "major number of the device that the file system is on"), col("minor", "u32", "", "minor "
    "number"), col("type", "text", "", "type of the file system"),
    col("root", "text", "", "what of the file system is mounted: / for all of it"),
    col("path", "text", "", "where it is mounted"),
    col("disk_major", "u32", "", "major number of the disk that the device is or is a part of, as in block_io; null "
        "where it is made of other devices (device mapper, RAID)", nullable=True),
    col("disk_minor", "u32", "", "minor number of that disk", nullable=True),
    col("first_sector", "u64", "", "where it begins on that disk (sectors of 512 bytes)", nullable=True),
    col("sectors", "u64", "", "how long it is", nullable=True),
))  # fmt: skip

TCP_RETRANSMITS = Table("tcp_retransmits", "TCP packets that this host sent again, in all its network namespaces.", (
    col("start_ns", "u64", "ns", "when, CLOCK_BOOTTIME"),
    col("pid", "u32", "", "process that owns the socket (not the interrupted one); null if not known", nullable=True),
    col("comm", "text", "", "its name", ring="comm", nullable=True), col("inode", "u64", "", "inode of the socket",
    nullable=True), col("uid", "u32", "", "user of the socket", nullable=True),
    col("cgroup_id", "u64", "", "cgroup of the socket", nullable=True),
    col("family", "u16", "", "address family: 2 IPv4, 10 IPv6"),
    col("state", "u32", "", "TCP state (include/net/tcp_states.h): 1 established, 2 SYN sent, 12 SYN received; null in "
        "imports that do not tell it", nullable=True, always_in_ring=True),
    col("segments", "u32", "", "segments in the packet; RetransSegs of /proc/net/snmp counts them, unless error says "
        "that the packet was not made (no memory, no route); null in imports that do not tell them", nullable=True,
        always_in_ring=True),
    col("error", "i32", "", "0, or the negative error number with which sending it failed; null on kernels that tell "
        "only of those sent (before 6.15)", nullable=True),
    col("local_address", "text", "", "address of this end", ring="address"),
    col("local_port", "u16", "", "port of this end"),
    col("remote_address", "text", "", "address of the other end", ring="address"),
    col("remote_port", "u16", "", "port of the other end"), CPU, SEQ,
), ring=True)  # fmt: skip

LIFECYCLE = Table("lifecycle", "Processes that were forked, began a program, or ended, and the signals that killed.", (
    col("start_ns", "u64", "ns", "when, CLOCK_BOOTTIME"), PID, TID,
    col("op", "text", "", "fork, exec, exit or signal", in_ring=False),
    col("event", "u32", "", "0 fork, 1 exec, 2 exit, 3 signal"), col("comm", "text", "", "name of the process; null in "
    "imports that do not tell it", ring="comm", nullable=True, always_in_ring=True),
    col("other_pid", "u32", "", "fork: the child; signal: the sender, null where the kernel sent it", nullable=True),
    col("other_comm", "text", "", "signal: name of the sender", ring="comm", nullable=True),
    col("exit_code", "i32", "", "exit: status argument of exit(2)", nullable=True),
    col("signal", "u32", "", "exit: the signal that ended it; signal: the fatal signal sent", nullable=True),
    col("signal_code", "i32", "", "signal: si_code, where it has one: above 0 by the kernel, else by a process",
        nullable=True),
    col("cgroup_id", "u64", "", "id of its cgroup (version 2 hierarchy)", nullable=True), CPU, SEQ,
), ring=True)  # fmt: skip

PRESSURE = Table("pressure", "Pressure stall information: time in which tasks waited for a resource, from "
    "/proc/pressure and the cgroups' files.", (
    col("start_ns", "u64", "ns", "when it was read, CLOCK_BOOTTIME"),
    col("resource", "text", "", "cpu, memory, io or irq"),
    col("cgroup", "text", "", "cgroup path; null for the whole host", nullable=True),
    col("some_ns", "u64", "ns", "cumulative: at least one task waited", nullable=True),
    col("full_ns", "u64", "ns", "cumulative: all tasks that were not idle waited", nullable=True),
))  # fmt: skip

PROCESS_SAMPLES = Table("process_samples", "Counters of a traced process, cumulative, read from /proc.", (
    col("start_ns", "u64", "ns", "when they were read, CLOCK_BOOTTIME"), PID,
    col("user_ns", "u64", "ns", "CPU time in user mode, to the clock tick", nullable=True),
    col("system_ns", "u64", "ns", "CPU time in the kernel, to the clock tick", nullable=True),
    col("major_faults", "u64", "", "page faults that had to read from a disk", nullable=True),
    col("minor_faults", "u64", "", "page faults that had not", nullable=True),
    col("resident_bytes", "u64", "bytes", "resident set", nullable=True),
    col("threads", "u32", "", "threads", nullable=True),
    col("voluntary_switches", "u64", "", "of the main thread: it went to sleep", nullable=True),
    col("involuntary_switches", "u64", "", "of the main thread: it was preempted", nullable=True),
    col("cpu_cgroup", "text", "", "path of the cgroup whose limits of CPU time hold for it: as cgroup in cgroup_cpu",
        nullable=True),
    col("cpu_cgroup_version", "u8", "", "hierarchy that cgroup is in: 1 where the controller cpu is in version 1, else "
        "2", nullable=True),
))  # fmt: skip

CGROUP_CPU = Table("cgroup_cpu", "CPU accounting and throttling of the cgroups of traced processes, cumulative.", (
    col("start_ns", "u64", "ns", "when it was read, CLOCK_BOOTTIME"), col("cgroup", "text", "", "cgroup path"),
    col("version", "u8", "", "1 or 2"), col("usage_ns", "u64", "ns", "CPU time used", nullable=True),
    col("periods", "u64", "", "enforcement periods that ended", nullable=True),
    col("throttled_periods", "u64", "", "of them, throttled ones", nullable=True),
    col("throttled_ns", "u64", "ns", "time throttled", nullable=True),
    col("quota_ns", "u64", "ns", "CPU time allowed per period; null without a limit", nullable=True),
    col("period_ns", "u64", "ns", "length of a period", nullable=True),
))  # fmt: skip
