"""Names of the system calls in which threads usually wait, by the number that the kernel recorded.

Sources: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64), Linux 6.18. A number
that is not here is told as a number.
"""

from __future__ import annotations

X86_64: dict[int, str] = {
    0: "read", 1: "write", 7: "poll", 9: "mmap", 11: "munmap", 16: "ioctl", 17: "pread64", 18: "pwrite64", 19: "readv",
    20: "writev", 23: "select", 24: "sched_yield", 26: "msync", 28: "madvise", 34: "pause", 35: "nanosleep",
    42: "connect", 43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 61: "wait4",
    65: "semop", 70: "msgrcv", 73: "flock", 74: "fsync", 75: "fdatasync", 128: "rt_sigtimedwait", 162: "sync",
    202: "futex", 208: "io_getevents", 219: "restart_syscall", 220: "semtimedop", 230: "clock_nanosleep",
    232: "epoll_wait", 247: "waitid", 257: "openat", 270: "pselect6", 271: "ppoll", 277: "sync_file_range",
    281: "epoll_pwait", 288: "accept4", 299: "recvmmsg", 307: "sendmmsg", 426: "io_uring_enter", 441: "epoll_pwait2",
    449: "futex_waitv", 455: "futex_wait",
}  # fmt: skip

AARCH64: dict[int, str] = {
    22: "epoll_pwait", 29: "ioctl", 32: "flock", 56: "openat", 63: "read", 64: "write", 65: "readv", 66: "writev",
    67: "pread64", 68: "pwrite64", 72: "pselect6", 73: "ppoll", 81: "sync", 82: "fsync", 83: "fdatasync",
    95: "waitid", 98: "futex", 101: "nanosleep", 115: "clock_nanosleep", 124: "sched_yield", 128: "restart_syscall",
    137: "rt_sigtimedwait", 202: "accept", 203: "connect", 206: "sendto", 207: "recvfrom", 211: "sendmsg",
    212: "recvmsg", 222: "mmap", 227: "msync", 233: "madvise", 242: "accept4", 243: "recvmmsg", 260: "wait4",
    269: "sendmmsg", 426: "io_uring_enter", 441: "epoll_pwait2", 449: "futex_waitv", 455: "futex_wait",
}  # fmt: skip


def name(number: int | None, machine: str = "x86_64") -> str:
    """The name; the number where it has none here, and what it was not where there was none."""
    if number is None:
        return "none (page fault, or a thread of the kernel)"
    names = {"x86_64": X86_64, "aarch64": AARCH64}.get(machine, {})
    return names.get(number, f"system call {number}")
