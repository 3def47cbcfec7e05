"""What the kernel told of the host, as tables of sums: threads off the CPU, disks, network, memory, limits, lives.

Definitions stand with each table's formula. Nothing here says that one caused another. Units: ns, bytes, counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpuaudit.analyze import system_calls
from gpuaudit.analyze.aggregates import Grouped, Key, Value, process
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.store import NOT_OWN

UNINTERRUPTIBLE = "(prev_state & 2) <> 0 AND (prev_state & 1024) = 0"
"""TASK_UNINTERRUPTIBLE without TASK_NOLOAD (include/linux/sched.h): as a rule it waits for a disk or a page."""

ASLEEP_NS = "greatest(duration_ns::HUGEINT - coalesce(runqueue_ns, 0), 0)"
"""SQL: time from leaving the CPU to the wake; all of it where the wake was not seen."""

WOKEN = "(runqueue_ns IS NOT NULL OR wake_ns IS NOT NULL)"
"""SQL: the wake was seen. One whose switch back was not told has no runqueue_ns, and ends with the wake."""

PAGE_BYTES = 4096
"""Base page of x86-64; aarch64 kernels of this field use the same."""

FAMILIES = {1: "Unix", 2: "IPv4", 10: "IPv6"}
"""Address families of include/linux/socket.h."""

SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL",
    11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM", 24: "SIGXCPU", 31: "SIGSYS",
}  # fmt: skip
"""include/uapi/asm-generic/signal.h."""

_COUNT = Value("count", "times", "count(*)", "count", "rows")
_LONGEST = Value("longest", "longest", "max(duration_ns)", "ns", "longest duration_ns", "none ended in the capture")


def off_cpu(context: Context) -> list[Grouped]:
    """Threads that did not run: waiting for a CPU apart from sleeping, and in which system call they slept."""
    pid = Key("process", "process", "pid", process(context))
    return [
        Grouped(
            "off_cpu", "Time of threads off the CPU, by process", "off_cpu", (pid,),
            (
                _COUNT,
                Value("preempted", "preempted",
                      "coalesce(sum(duration_ns) FILTER (op = 'preempted'), 0)::HUGEINT", "ns",
                      "sum of duration_ns of intervals that began runnable: it waited for a CPU all the time"),
                Value("run_queue", "woken and waiting for a CPU",
                      "sum(runqueue_ns) FILTER (op = 'blocked')::HUGEINT", "ns",
                      "sum of runqueue_ns of intervals that began asleep", "no wake was seen"),
                Value("asleep", "asleep",
                      f"sum({ASLEEP_NS}) FILTER (op = 'blocked' AND {WOKEN} "
                      f"AND NOT ({UNINTERRUPTIBLE}))::HUGEINT", "ns",
                      "sum of duration_ns − runqueue_ns, interruptible sleep", "no such interval with its wake"),
                Value("uninterruptible", "asleep, uninterruptible",
                      f"sum({ASLEEP_NS}) FILTER "
                      f"(op = 'blocked' AND {UNINTERRUPTIBLE})::HUGEINT", "ns",
                      "the same in TASK_UNINTERRUPTIBLE, as a rule a disk or a page", "no such interval"),
                Value("unknown", "asleep, wake not seen", "sum(duration_ns) FILTER (op = 'blocked' AND NOT "
                      f"{WOKEN} AND NOT ({UNINTERRUPTIBLE}))::HUGEINT", "ns",
                      "sum of duration_ns of sleeps whose wake was not seen: the wait for a CPU is in it", "none"),
            ),
            "preempted + coalesce(run_queue, 0)", NOT_OWN,
        ),
        Grouped(
            "ran_instead", "Who ran when threads were preempted", "off_cpu",
            (pid, Key("who", "ran instead", "next_comm")),
            (_COUNT, Value("time", "off the CPU", "sum(duration_ns)::HUGEINT", "ns", "sum of duration_ns",
                           "none ended"), _LONGEST),
            '"time"', f"op = 'preempted' AND {NOT_OWN}",
            ("The name is that of the thread that got the CPU; others may have run before the thread came back.",),
        ),
        Grouped(
            "system_calls", "System calls in which threads were blocked", "off_cpu",
            (pid, Key("call", "system call", "syscall", _call_name(context))),
            (_COUNT, Value("time", "blocked", f"sum({ASLEEP_NS})::HUGEINT", "ns",
                           "sum of duration_ns − runqueue_ns", "none ended"), _LONGEST),
            '"time"', f"op = 'blocked' AND syscall IS NOT NULL AND {NOT_OWN}",
        ),
        Grouped(
            "migrations", "Threads moved to another CPU", "migrations", (pid,),
            (_COUNT, Value("threads", "threads", "count(DISTINCT tid)", "count", "distinct threads"),
             Value("cpus", "CPUs they went to", "count(DISTINCT to_cpu)", "count", "distinct to_cpu")),
            '"count"', NOT_OWN,
        ),
    ]  # fmt: skip


def storage_and_network(context: Context) -> list[Grouped]:
    """Requests to disks, transfers over sockets, segments sent again."""
    pid = Key("process", "process", "pid", process(context))
    time = Value("time", "in flight", "sum(duration_ns)::HUGEINT", "ns", "sum of duration_ns, issue to completion",
                 "none ended")  # fmt: skip
    size = Value("size", "bytes", "sum(size_bytes)::HUGEINT", "bytes", "sum of size_bytes")
    queue = Value("queued", "queued before", "sum(queue_ns)::HUGEINT", "ns", "sum of queue_ns, insertion to issue")
    errors = Value("errors", "errors", "count(*) FILTER (error <> 0)", "count", "rows with an error")
    device = Key("device", "device", "major::VARCHAR || ':' || minor::VARCHAR")
    local, remote = _endpoint("local"), _endpoint("remote")
    return [
        Grouped("block_io", "Block I/O, by device and process that issued it", "block_io",
                (device, Key("op", "operation", "op"), Key("who", "issued by", "comm || ' (' || pid::VARCHAR || ')'"),
                 Key("behalf", "on behalf of", f"coalesce({_named('for_comm', 'for_pid')}, 'the issuer, or unknown')")),
                (_COUNT, size, time, _LONGEST, queue, errors), '"time"'),
        Grouped("sockets", "Sends and receives, by process and other end", "socket_io",
                (pid, Key("op", "direction", "op"), Key("family", "family", "family", _family),
                 Key("remote", "other end", f"coalesce({remote}, 'not an internet address')")),
                (Value("calls", "calls", "sum(count)::HUGEINT", "count", "sum of count"),
                 size, Value("time", "in the calls", "sum(sum_ns)::HUGEINT", "ns", "sum of sum_ns"),
                 Value("longest", "longest", "max(max_ns)", "ns", "largest max_ns"),
                 Value("errors", "errors", "sum(errors)::HUGEINT", "count", "sum of errors"),
                 Value("not_ready", "would have waited", "sum(not_ready)::HUGEINT", "count", "sum of not_ready")),
                '"time"', NOT_OWN),
        Grouped("retransmits", "TCP segments sent again", "tcp_retransmits",
                (Key("owner", "owner of the socket", "coalesce(comm || ' (' || pid::VARCHAR || ')', 'not known')"),
                 Key("local", "this end", local), Key("remote", "other end", remote)),
                (_COUNT, Value("segments", "segments", "sum(segments)::HUGEINT", "count", "sum of segments"), errors),
                '"count"'),
    ]  # fmt: skip


def memory(context: Context) -> list[Grouped]:
    """Pages, direct reclaim, kills for want of memory, faults that read a disk."""
    pid = Key("process", "process", "pid", process(context))
    return [
        Grouped("reclaims", "Direct reclaim: threads that had to free memory first", "reclaims",
                (pid, Key("short", "what was short of memory", "op")),
                (_COUNT, Value("time", "time in it", "sum(duration_ns)::HUGEINT", "ns", "sum of duration_ns",
                               "none ended"), _LONGEST,
                 Value("pages", "pages freed", "sum(reclaimed_pages)::HUGEINT", "count", "sum of reclaimed_pages")),
                '"time"', NOT_OWN),
        Grouped("oom_kills", "Processes killed for want of memory", "oom_kills",
                (Key("victim", "killed", "comm || ' (' || pid::VARCHAR || ')'"),
                 Key("killer", "allocation of", f"coalesce({_named('killer_comm', 'killer_pid')}, 'not known')")),
                (_COUNT, Value("resident", "it held", "max(resident_bytes)", "bytes", "resident_bytes")), '"resident"'),
        Grouped("pages", "Pages allocated, by order", "page_allocations",
                (pid, Key("order", "order", '"order"')),
                (Value("calls", "allocations", "sum(count)::HUGEINT", "count", "sum of count"),
                 Value("size", "bytes", f'sum(count * {PAGE_BYTES}::HUGEINT * (1 << least("order", 20)))::HUGEINT',
                       "bytes", f"sum of count × 2^order × {PAGE_BYTES}")),
                '"size"', NOT_OWN),
        Grouped("processes", "Counters of processes", "process_samples", (pid,),
                (_grown("user", "CPU in user mode", "user_ns", "ns"), _grown("system", "CPU in the kernel", "system_ns",
                 "ns"), _grown("major", "faults that read a disk", "major_faults", "count"),
                 _grown("minor", "other faults", "minor_faults", "count"),
                 Value("resident", "largest resident set", "max(resident_bytes)", "bytes", "largest resident_bytes")),
                '"user"', NOT_OWN),
    ]  # fmt: skip


def limits(context: Context) -> list[Grouped]:
    """Pressure, and CPU time that cgroups were refused."""
    del context
    return [
        Grouped("pressure", "Pressure stall information", "pressure",
                (Key("resource", "resource", "resource"), Key("cgroup", "of", "coalesce(cgroup, 'the whole host')")),
                (_grown("some", "some task waited", "some_ns", "ns"),
                 _grown("full", "all tasks waited", "full_ns", "ns"),
                 Value("observed", "observed", "(max(start_ns) - min(start_ns))::BIGINT", "ns",
                       "first to last reading")),
                '"some"'),
        Grouped("throttling", "CPU throttling of cgroups", "cgroup_cpu", (Key("cgroup", "cgroup", "cgroup"),),
                (_grown("used", "CPU used", "usage_ns", "ns"),
                 _grown("throttled", "throttled for", "throttled_ns", "ns"),
                 _grown("periods", "periods", "periods", "count"),
                 _grown("throttled_periods", "throttled periods", "throttled_periods", "count"),
                 Value("quota", "quota per period", "max(quota_ns)", "ns", "largest quota_ns", "no limit was set"),
                 Value("period", "period", "max(period_ns)", "ns", "largest period_ns")),
                '"throttled"'),
    ]  # fmt: skip


def lives(context: Context) -> list[Grouped]:
    """Forks, programs begun, ends, and signals that killed."""
    del context
    return [
        Grouped("lifecycle", "Lives of processes", "lifecycle", (Key("op", "event", "op"),),
                (_COUNT, Value("processes", "processes", "count(DISTINCT pid)", "count", "distinct processes")),
                '"count"'),
        Grouped("ends", "Processes that ended otherwise than with code 0", "lifecycle",
                (Key("who", "process", "comm || ' (' || pid::VARCHAR || ')'"),
                 Key("code", "exit code", "coalesce(exit_code::VARCHAR, 'none')"),
                 Key("signal", "signal", "signal", _signal)),
                (_COUNT,), '"count"', "op = 'exit' AND (coalesce(exit_code, 0) <> 0 OR coalesce(signal, 0) <> 0)"),
        Grouped("signals", "Signals that killed", "lifecycle",
                (Key("who", "process", "comm || ' (' || pid::VARCHAR || ')'"),
                 Key("signal", "signal", "signal", _signal),
                 Key("sender", "sent by", f"coalesce({_named('other_comm', 'other_pid')}, 'the kernel')")),
                (_COUNT,), '"count"', "op = 'signal'"),
    ]  # fmt: skip


def _grown(name: str, heading: str, column: str, unit: str) -> Value:
    """Growth of a cumulative counter between its first and its last reading."""
    last, first = f"arg_max({column}, start_ns)", f"arg_min({column}, start_ns)"
    sql = f"CASE WHEN count({column}) > 1 AND {last} >= {first} THEN ({last} - {first})::HUGEINT END"
    return Value(name, heading, sql, unit, f"last {column} − first {column}", "read fewer than two times")


def _named(comm: str, pid: str) -> str:
    """SQL: name and id of a process, the id alone where it has no name, null where there is neither."""
    return f"coalesce({comm} || ' (' || {pid}::VARCHAR || ')', {pid}::VARCHAR)"


def _endpoint(side: str) -> str:
    """SQL: address and port of one end, null where there is none."""
    address, port = f"{side}_address", f"{side}_port"
    return (
        f"CASE WHEN contains({address}, ':') THEN '[' || {address} || ']' ELSE {address} END || ':' || {port}::VARCHAR"
    )


def _family(number: Any) -> str:
    return FAMILIES.get(int(number), f"family {int(number)}")


def _signal(number: Any) -> str:
    return SIGNALS.get(int(number), f"signal {int(number)}")


def _call_name(context: Context) -> Callable[[Any], str]:
    machine = system_calls.machine(context.store.open_body)
    return lambda number: system_calls.name(int(number), machine)
