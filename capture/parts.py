"""The BPF objects of the capture: which programs each holds, which rings it fills, and which source it feeds.

An object is one file ``capture/bpf/<name>.bpf.c``. ``calls`` is always loaded and makes the maps that all share; the
others are loaded when their source is asked for. A kernel that refuses one of them costs the evidence that source and
nothing else. A new kind of kernel evidence is one such file and one row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

from gpuaudit.capture.stack_records import RAW_RING_BYTES

SHARED_MAPS = ("counters", "targets", "settings", "full")
"""Maps of capture/bpf/shared.h, made by the object ``calls``."""


@dataclass(frozen=True)
class Part:
    """One object. ``variants``: combinations of tracepoint programs, best first; the first that the kernel loads is
    used. ``tracepoints``: program → tracepoint, with ``raw_tp/`` before its name where it is not a BTF one.
    ``flush``: raw_tp program that is run until it returns 0, to send what is still open; empty for none.
    ``tick``: raw_tp programs that are run every second in this order, with a pause before each but the first in which
    every program that was running ends. So one can turn to the other of two maps, and the next one empty the first.
    """

    name: str
    source: str
    ring_bytes: Mapping[str, int]
    variants: tuple[tuple[str, ...], ...]
    tracepoints: Mapping[str, str]
    flush: str = ""
    tick: tuple[str, ...] = ()
    threads: str = ""
    """Program on the iterator over all threads, which is read whenever a process has become a traced one."""
    more_sources: tuple[str, ...] = ()
    """Other sources that the object serves: it is loaded when one of them is asked for."""
    maps: Mapping[str, int] = field(default_factory=dict)
    """Sizes of other maps that user space sets, in entries."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source that the object serves."""
        return (self.source, *self.more_sources) if self.source else ()

    @property
    def file_name(self) -> str:
        """The object's file in capture/bpf."""
        return f"{self.name}.bpf.o"


def _named(*programs: str) -> dict[str, str]:
    """Programs that are called on_<tracepoint>."""
    return {name: name.removeprefix("on_") for name in programs}


CALLS = Part(
    "calls", "",
    {"cuda_calls": 32 << 20, "nccl_calls": 4 << 20, "nccl_comms": 1 << 18, "call_totals": 4 << 20},
    (("on_fork", "on_exec", "on_exit", "on_thread_exec", "on_thread_exit"),),
    {
        "on_fork": "sched_process_fork", "on_exec": "sched_process_exec", "on_exit": "sched_process_exit",
        "on_thread_exec": "sched_process_exec", "on_thread_exit": "sched_process_exit",
    },
    "flush_calls", ("turn_totals", "empty_totals"), maps={"raw_stacks": RAW_RING_BYTES},
)  # fmt: skip
"""Processes and calls. At 200 bytes a call, 32 MiB hold 168,000 calls: 0.17 s of a million calls/s until one is lost,
which is a slow disk's commit; while it compresses, the recorder empties a ring that fills."""

ATTACHED_LAST = ("on_exit",)
"""Programs of ``calls`` that are attached after those of every other part: it forgets a process that ends, and the
others ask for it at the same tracepoint. Programs of one tracepoint run in the order in which they were attached."""

_INTERRUPT_WATCH = (
    "on_softirq_entry", "on_softirq_exit", "on_irq_handler_entry", "on_irq_handler_exit", "on_hrtimer_expire_entry",
    "on_hrtimer_expire_exit",
)  # fmt: skip
_WAKING: tuple[tuple[str, ...], ...] = (
    ("on_waking",),
    ("on_waking_hot",),
    ("on_waking_watched", *_INTERRUPT_WATCH),
    (),
)
"""Ways to tell a waking thread from an interrupt, best first; the last one leaves wakers out of the evidence."""

OFF_CPU = Part(
    "off_cpu", "off_cpu", {"off_cpu": 16 << 20, "migrations": 4 << 20, "cpu_occupants": 4 << 20},
    tuple(
        (switch, *waking, "on_wakeup", "on_migrate")
        for switch in ("on_switch_state", "on_switch")
        for waking in _WAKING
    ),
    {
        "on_switch_state": "sched_switch", "on_switch": "sched_switch", "on_waking": "sched_waking",
        "on_waking_hot": "sched_waking", "on_waking_watched": "sched_waking", "on_wakeup": "sched_wakeup",
        "on_migrate": "sched_migrate_task", **_named(*_INTERRUPT_WATCH),
    },
    "flush_off_cpu_open", threads="on_asleep",
)  # fmt: skip
"""Threads that leave a CPU and come back, and those that are moved to another one."""

_VICTIM = (("on_victim_task",), ("on_victim_signal", "on_victim_tid"))
_DIRECT_RECLAIM = ("on_mm_vmscan_direct_reclaim_begin", "on_mm_vmscan_direct_reclaim_end")
_CGROUP_RECLAIM = ("on_mm_vmscan_memcg_reclaim_begin", "on_mm_vmscan_memcg_reclaim_end")

MEMORY = Part(
    "memory", "memory", {"page_allocations": 1 << 20, "reclaims": 1 << 20, "oom_kills": 1 << 17},
    tuple(
        ("on_mm_page_alloc", *_DIRECT_RECLAIM, *limit, *victim)
        for limit, victim in product((_CGROUP_RECLAIM, ()), _VICTIM)
    ),
    {
        "on_victim_task": "mark_victim", "on_victim_tid": "mark_victim", "on_victim_signal": "signal_generate",
        **_named("on_mm_page_alloc", *_DIRECT_RECLAIM, *_CGROUP_RECLAIM),
    },
    "flush_memory", ("turn_pages", "send_pages"),
)  # fmt: skip
"""Memory. Kernels without memory cgroups have no limit of theirs to reclaim for."""

_REQUESTS = ("on_block_rq_insert", "on_block_rq_merge", "on_block_rq_issue", "on_block_rq_complete")
_DIRTIED = (("on_writeback_dirty_folio",), ("on_writeback_dirty_page",), ())

BLOCK_IO = Part(
    "block_io", "block_io", {"block_io": 8 << 20},
    tuple((*start, *_REQUESTS, *dirtied) for start, dirtied in product((("on_block_io_start",), ()), _DIRTIED)),
    _named("on_block_io_start", *_REQUESTS, *(p for way in _DIRTIED for p in way)),
    "flush_block_io",
)  # fmt: skip
"""Requests to block devices. At 136 bytes each, 8 MiB hold 61,000: 60 ms of a million a second."""

_LENGTHS = ("on_sock_send_length", "on_sock_recv_length")
_OWNERS = (_LENGTHS, ("on_tcp_rcv_space_adjust",))

TCP = Part(
    "tcp", "tcp", {"tcp_retransmits": 2 << 20},
    tuple(
        (again, "on_tcp_retransmit_synack", "on_inet_sock_set_state", *owners)
        for again, owners in product(("on_retransmit_error", "on_retransmit"), _OWNERS)
    ),
    {
        "on_retransmit_error": "tcp_retransmit_skb", "on_retransmit": "tcp_retransmit_skb",
        **_named("on_tcp_retransmit_synack", "on_inet_sock_set_state", *(p for way in _OWNERS for p in way)),
    },
)  # fmt: skip
"""Retransmissions, and what tells whose a socket is."""

SYSCALLS = Part(
    "syscalls", "ioctl", {"ioctls": 8 << 20, "socket_io": 2 << 20},
    (("on_sys_enter", "on_sys_exit"),),
    _named("on_sys_enter", "on_sys_exit"),
    "flush_syscalls", ("turn_sums", "send_sums"), more_sources=("sockets",),
)  # fmt: skip
"""System calls. At 80 bytes each, 8 MiB hold 104,000 ioctls: 1 s of 100,000 a second."""

_LIFE = ("on_life_fork", "on_life_exec", "on_life_exit")

LIFECYCLE = Part(
    "lifecycle", "lifecycle", {"lifecycle": 2 << 20},
    ((*_LIFE, "on_signal_generate"), _LIFE),
    {
        "on_life_fork": "sched_process_fork", "on_life_exec": "sched_process_exec",
        "on_life_exit": "sched_process_exit", "on_signal_generate": "signal_generate",
    },
)  # fmt: skip
"""Lives of processes: 2 MiB hold 20,000 rows. Without the last program, a signal is known by the end that it makes."""

PARTS: tuple[Part, ...] = (CALLS, OFF_CPU, MEMORY, BLOCK_IO, TCP, SYSCALLS, LIFECYCLE)

RING_SIZES_BYTES: dict[str, int] = {table: size for part in PARTS for table, size in part.ring_bytes.items()}
"""Powers of two."""
