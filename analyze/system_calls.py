"""Names of the system calls in which threads usually wait, by the number that the kernel recorded.

Sources: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64), Linux 6.18. A number
that is not here is told as a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

X86_64: dict[int, str] = {
    0: "read", 1: "write", 7: "poll", 9: "mmap", 10: "mprotect", 11: "munmap", 12: "brk", 16: "ioctl", 17: "pread64",
    18: "pwrite64", 19: "readv", 20: "writev", 23: "select", 24: "sched_yield", 25: "mremap", 26: "msync",
    28: "madvise", 34: "pause", 35: "nanosleep", 42: "connect", 43: "accept", 44: "sendto", 45: "recvfrom",
    46: "sendmsg", 47: "recvmsg", 61: "wait4", 65: "semop", 70: "msgrcv", 72: "fcntl", 73: "flock", 74: "fsync",
    75: "fdatasync", 128: "rt_sigtimedwait", 162: "sync", 202: "futex", 208: "io_getevents", 219: "restart_syscall",
    220: "semtimedop", 230: "clock_nanosleep", 232: "epoll_wait", 247: "waitid", 257: "openat", 270: "pselect6",
    271: "ppoll", 277: "sync_file_range", 281: "epoll_pwait", 288: "accept4", 295: "preadv", 296: "pwritev",
    299: "recvmmsg", 306: "syncfs", 307: "sendmmsg", 327: "preadv2", 328: "pwritev2", 426: "io_uring_enter",
    441: "epoll_pwait2", 449: "futex_waitv", 455: "futex_wait",
}  # fmt: skip

AARCH64: dict[int, str] = {
    22: "epoll_pwait", 25: "fcntl", 29: "ioctl", 32: "flock", 56: "openat", 63: "read", 64: "write", 65: "readv",
    66: "writev", 67: "pread64", 68: "pwrite64", 69: "preadv", 70: "pwritev", 72: "pselect6", 73: "ppoll", 81: "sync",
    82: "fsync", 83: "fdatasync", 84: "sync_file_range", 95: "waitid", 98: "futex", 101: "nanosleep",
    115: "clock_nanosleep", 124: "sched_yield", 128: "restart_syscall", 137: "rt_sigtimedwait", 188: "msgrcv",
    192: "semtimedop", 193: "semop", 202: "accept", 203: "connect", 206: "sendto", 207: "recvfrom", 211: "sendmsg",
    212: "recvmsg", 214: "brk", 215: "munmap", 216: "mremap", 222: "mmap", 226: "mprotect", 227: "msync",
    233: "madvise", 242: "accept4", 243: "recvmmsg", 260: "wait4", 267: "syncfs", 269: "sendmmsg", 286: "preadv2",
    287: "pwritev2", 426: "io_uring_enter", 441: "epoll_pwait2", 449: "futex_waitv", 455: "futex_wait",
}  # fmt: skip


LOCKS = frozenset({"futex", "futex_wait", "futex_waitv", "flock", "fcntl", "semop", "semtimedop"})
"""Calls in which a thread sleeps until another one lets it go on: mutexes, conditions, semaphores, locks of files."""

ADDRESS_SPACE = frozenset({"mmap", "mprotect", "munmap", "brk", "mremap", "madvise"})
"""Calls that take the lock of the process's address space, as page faults do."""

NO_DISK = LOCKS | {
    "poll", "select", "sched_yield", "pause", "nanosleep", "connect", "accept", "sendto", "recvfrom", "sendmsg",
    "recvmsg", "wait4", "msgrcv", "rt_sigtimedwait", "restart_syscall", "clock_nanosleep", "epoll_wait", "waitid",
    "pselect6", "ppoll", "epoll_pwait", "accept4", "recvmmsg", "sendmmsg", "epoll_pwait2",
}  # fmt: skip
"""Calls in which no thread waits for a disk: for time, for others, for descriptors, for packets."""

ON_A_SOCKET = frozenset({"connect", "sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg"})
"""Calls in which a thread waits for one socket: to be connected, to send, to receive."""

ON_ANYTHING = frozenset({
    "read", "readv", "write", "writev", "poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait",
    "epoll_pwait2",
})  # fmt: skip
"""Calls in which it may wait for a socket, or for a pipe, a timer, a terminal."""

ASYNCHRONOUS_IO = frozenset({"io_getevents", "io_uring_enter"})
"""Calls that wait for requests given before, in interruptible sleep."""

WRITING = frozenset({
    "write", "pwrite64", "writev", "pwritev", "pwritev2", "msync", "fsync", "fdatasync", "sync", "syncfs",
    "sync_file_range",
})  # fmt: skip
"""Calls that wait for pages to be written, by whatever thread of the kernel writes them."""

FILES = WRITING | ASYNCHRONOUS_IO | {
    "read", "pread64", "readv", "preadv", "preadv2", "mmap", "munmap", "madvise", "openat",
}  # fmt: skip
"""Calls on files and mapped memory, in which a thread may wait for what another thread of its process asked for."""


def machine(open_body: Mapping[str, Any]) -> str:
    """Architecture of the host, as its numbers of system calls go; x86_64 where the capture does not say."""
    host = open_body.get("host")
    told = str(host.get("machine", "x86_64")) if isinstance(host, dict) else "x86_64"
    return told if told in {"x86_64", "aarch64"} else "x86_64"


def numbers(names: frozenset[str], machine: str = "x86_64") -> frozenset[int]:
    """The numbers of system calls by name."""
    return frozenset(n for n, name in {"x86_64": X86_64, "aarch64": AARCH64}[machine].items() if name in names)


def name(number: int | None, machine: str = "x86_64") -> str:
    """The name; the number where it has none here, and what it was not where there was none."""
    if number is None:
        return "none (page fault, or a thread of the kernel)"
    names = {"x86_64": X86_64, "aarch64": AARCH64}.get(machine, {})
    return names.get(number, f"system call {number}")
