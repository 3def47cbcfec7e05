"""Chain: TCP packets of the ranks were sent again inside a slow collective, or while a late rank waited for a socket.

Effect: slow calls that are a collective, or in which the host waits for one (``barriers.py``). Join: a packet that was
sent again within such a call, on a socket of the same process or of another observed rank of the same communicator,
whose other end is not a followed process outside the communicator. Cause: the time before that moment, since when the
data may have been on their way: at most 200 ms (the least time after which Linux resends without acknowledgements),
twice as much for each further resend of the connection in a row, never before the call, before the packet sent again
before it, before the last observed rank had entered the collective, or before the socket was last seen to move. Only
when packets were sent again is recorded, not when they were lost.

Effect too: the lateness of a rank, or the wait for a thread. Join: the same thread slept, interruptibly, in a call that
connects, sends or receives, and within that sleep a packet of a connection of its own process, from either end, was
sent again; in a call that may wait for something else than a socket too (read, poll), shortly before the sleep ended.
Cause: of the same time the part in that sleep; one before it ended without the packet. Units: ns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuaudit.analyze import intervals, system_calls
from gpuaudit.analyze.causal import collective_calls, model, states
from gpuaudit.analyze.causal.model import Cause, Causes, Detector, Effect
from gpuaudit.analyze.causal.recorded import unrecorded
from gpuaudit.analyze.causal.states import Chosen, States
from gpuaudit.analyze.effects import late_arrivals, slow_steps
from gpuaudit.analyze.finding import Declaration, Quantity, Threshold
from gpuaudit.analyze.intervals import Intervals
from gpuaudit.analyze.sockets import End, Sockets, read_sockets, shown
from gpuaudit.analyze.store import quoted

if TYPE_CHECKING:
    from gpuaudit.analyze.context import Context, NotEvaluated

LEAST_RESEND = Threshold(
    "least_resend_ns", 200_000_000, "ns",
    "TCP_RTO_MIN of Linux (include/net/tcp.h), HZ / 5: the timer resends no earlier; it doubles each time (RFC 6298, "
    "5.5)",
)  # fmt: skip
LONGEST_RESEND = Threshold(
    "longest_resend_ns", 120_000_000_000, "ns", "TCP_RTO_MAX of Linux (include/net/tcp.h), 120 s"
)
BACKOFF = Threshold(
    "backoff_times", 3, "ratio",
    "chosen: resends of one connection are in a row if the next comes within three times the doubled wait of the one "
    "before; past that it is another loss",
)  # fmt: skip

ANSWER = Threshold(
    "answer_ns", 50_000_000, "ns",
    "chosen: a few round trips between continents; who sleeps in poll longer than that after a packet was sent again "
    "may wait for anything",
)  # fmt: skip

DECLARATION = Declaration(
    id="tcp_retransmits",
    kind="chain",
    title="TCP packets sent again",
    question="Were packets of the ranks' connections sent again while a collective was slow, or while a rank that came "
    "late waited for a socket?",
    inputs=(
        ("tcp_retransmits", ("start_ns", "pid", "inode", "segments", "local_address", "local_port", "remote_address",
                             "remote_port")),
        ("socket_io", ("start_ns", "duration_ns", "pid", "inode", "local_address", "local_port", "remote_address",
                       "remote_port")),
        ("nccl_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "comm_handle", "comm_id", "stream")),
        ("cuda_calls", ("start_ns", "duration_ns", "pid", "tid", "op", "stream", "handle")),
    ),  # off_cpu is for late ranks, whose chains have a grade of their own
    thresholds=(LEAST_RESEND, LONGEST_RESEND, BACKOFF, ANSWER, *model.THRESHOLDS),
    texts={
        "tcp_retransmits": "For {explained} of {effect_time} ({share}) of {effect} data to {culprit} were on their "
        "way that TCP then sent again: {packets} packets.",
    },
    never_claims="That the packets carried the collective: a process may have other connections to the same host; nor "
    "for which descriptor a thread slept; nor which device on the way lost them.",
    assumptions=(
        "Data that are sent again after a timeout were sent first at least the least timeout before.",
        "Where acknowledgements showed the loss (fast retransmit), less time was lost than is claimed.",
    ),
)  # fmt: skip

UNPROVEN = "when the lost packets had first been sent is not recorded: the time claimed is the most that Linux's timer "
UNPROVEN += "can have waited"
DESCRIPTOR = "for which descriptor the thread slept is not recorded: it may have waited for something else"
OTHER_END = "who is at the other end was not observed: the connection may have carried something else"


ASLEEP = frozenset({late_arrivals.KIND, model.WAITED_FOR})
"""Kinds of effect that are explained by the sleep of their own thread, not by collectives."""


@dataclass(frozen=True)
class Resent:
    """One packet that was sent again: when, on which connection, whose, and the rows."""

    at: int
    end: End
    owners: frozenset[int]
    leaf: int
    row: int
    before: int
    """When the connection's last packet before it was sent again; −1 without one."""
    reach_ns: int


@dataclass
class _Found:
    pieces: list[tuple[int, int]] = field(default_factory=list)
    resent: list[Resent] = field(default_factory=list)


@dataclass(frozen=True)
class _Packets:
    """Every packet that was sent again, in order of time, when, and who owns sockets."""

    sockets: Sockets
    resent: Sequence[Resent]
    at: npt.NDArray[np.int64]


def find(context: Context, effects: Sequence[Effect]) -> Causes | NotEvaluated:
    """Packets sent again within the effects that are collectives, by where they went."""
    why = unrecorded(context, "tcp_retransmits", "TCP packet that was sent again", "tcp")
    if why is not None:
        return why
    if not context.store.row_count("tcp_retransmits"):
        return {}
    inside = [e for e in effects if e.kind not in ASLEEP]
    asleep = states.of_effects(context, [e for e in effects if e.kind in ASLEEP])
    slept = {key: x for key, s in asleep.items() if (x := _slept(context, s)).chosen.any()}
    if not inside and not slept:
        return {}
    sockets = read_sockets(context.store)
    resent = _resent(context, sockets)
    packets = _Packets(sockets, resent, np.array([r.at for r in resent], dtype=np.int64))
    out = {e.key: list(_causes(context, packets, e)) for e in inside}
    out |= {key: list(_waits(context, packets, x)) for key, x in slept.items()}
    return {key: causes for key, causes in out.items() if causes}


def _resent(context: Context, sockets: Sockets) -> list[Resent]:
    """Every packet, with how far back it reaches, in order of time."""
    rows = context.store.sql(
        "SELECT start_ns, pid, inode, local_address, local_port, remote_address, remote_port, leaf, row "
        "FROM tcp_retransmits WHERE coalesce(error, 0) = 0 ORDER BY start_ns, leaf, row"
    )
    least, longest = (int(context.policy.value(t, DECLARATION.id)) for t in (LEAST_RESEND, LONGEST_RESEND))
    times = Fraction(context.policy.value(BACKOFF, DECLARATION.id))
    last: dict[End, tuple[int, int]] = {}
    out = []
    for at, pid, inode, local, local_port, remote, remote_port, leaf, row in rows:
        end = (str(local), int(local_port), str(remote), int(remote_port))
        before, reach = last.get(end, (-1, least))
        gap, following = int(at) - before, min(2 * reach, longest)
        in_a_row = before >= 0 and reach <= gap <= times * following
        reach = following if in_a_row else least
        last[end] = (int(at), reach)
        owners = sockets.owners(None if pid is None else int(pid), None if inode is None else int(inode), end)
        out.append(Resent(int(at), end, owners, int(leaf), int(row), before, reach))
    return out


def _causes(context: Context, packets: _Packets, effect: Effect) -> Iterator[Cause]:
    found: dict[str, _Found] = defaultdict(_Found)
    sockets = packets.sockets
    for call in collective_calls.of_effect(context, effect):
        for r in packets.resent[slice(*np.searchsorted(packets.at, (call.start, call.end)).tolist())]:
            if sockets.between(r.owners, r.end, call.ranks, call.peers):
                mine = found[r.end[2]]
                low = max(call.start, call.entered, r.at - r.reach_ns, r.before, sockets.moved(r.end, r.at))
                mine.pieces.append((low, r.at))
                mine.resent.append(r)
    for remote in sorted(found):
        yield _cause(context, sockets, remote, found[remote])


@dataclass(frozen=True)
class _Slept:
    """Rows of a thread that slept as if for a socket, and when a packet that it waited for can have been sent again."""

    states: States
    chosen: Chosen
    ended_by: Intervals


def _slept(context: Context, s: States) -> _Slept:
    machine = system_calls.machine(context.store.open_body)
    slept = (s.a["op"] == "blocked") & ~s.uninterruptible
    one, any_ = (
        slept & s.in_calls(system_calls.numbers(names, machine))
        for names in (system_calls.ON_A_SOCKET, system_calls.ON_ANYTHING)
    )
    ends = s.runnable_from[any_]
    answer_ns = int(context.policy.value(ANSWER, DECLARATION.id))
    just_before = intervals.from_bounds(np.maximum(s.a["start_ns"][any_], ends - answer_ns), ends)
    return _Slept(s, one | any_, intervals.union(s.asleep(one), just_before))


def _waits(context: Context, packets: _Packets, x: _Slept) -> Iterator[Cause]:
    """Packets of the process's own connections that were sent again while its thread slept for a socket."""
    s, chosen = x.states, x.chosen
    asleep, pid, begins = s.asleep(chosen), int(s.a["pid"][0]), s.a["start_ns"][chosen]
    found: dict[str, _Found] = defaultdict(_Found)
    sockets = packets.sockets
    for n in np.flatnonzero(_within(x.ended_by, packets.at)).tolist():
        r = packets.resent[n]
        sends = pid in r.owners
        if sends or pid in sockets.others(r.end):
            mine = found[r.end[2] if sends else r.end[0]]
            begun = int(begins[np.searchsorted(begins, r.at, side="right") - 1])  # a sleep before ended without it
            mine.pieces.append((max(begun, r.at - r.reach_ns, r.before, sockets.moved(r.end, r.at)), r.at))
            mine.resent.append(r)
    for other in sorted(found):
        pieces = np.array(found[other].pieces, dtype=np.int64)
        time = intervals.intersect(asleep, intervals.from_bounds(pieces[:, 0], pieces[:, 1]))
        if len(time):
            yield _wait(context, x, other, found[other], time)


def _wait(context: Context, x: _Slept, other: str, found: _Found, time: Intervals) -> Cause:
    s, chosen = x.states, x.chosen
    touched = chosen & states.overlapping(s.a["start_ns"], s.a["end_ns"], time)
    machine = system_calls.machine(context.store.open_body)
    calls = sorted({system_calls.name(n, machine) for n in s.a["syscall"][touched].tolist()})
    off, packets = s.evidence(context, chosen), _evidence(context, found.resent)
    # No chain begins with a late rank's own loss or with a wait: this is told as a link, by what it says.
    return Cause(
        culprit=shown(other), time=time, evidence=lambda allotted: (*off(allotted), *packets(allotted)),
        what=f"its thread slept in {' and '.join(calls)} while packets of a connection with {shown(other)} were on "
        f"their way that were then sent again by {_names(context, found.resent)}",
        subject={"address": shown(other)}, against=(UNPROVEN, DESCRIPTOR),
    )  # fmt: skip


def _cause(context: Context, sockets: Sockets, remote: str, found: _Found) -> Cause:
    pieces = np.array(found.pieces, dtype=np.int64)
    known = all(sockets.others(r.end) for r in found.resent)
    rows = tuple(dict.fromkeys((r.leaf, r.row) for r in found.resent))
    book = context.book.listed("tcp_retransmits", np.array(rows, dtype=np.int64), f"remote_address = {quoted(remote)}")
    packets = Quantity(len(rows), "count", "measured", (book,), "rows of packets sent again within the calls")
    return Cause(
        culprit=shown(remote), time=intervals.from_bounds(pieces[:, 0], pieces[:, 1]),
        evidence=_evidence(context, found.resent), text="tcp_retransmits",
        what=f"packets to {shown(remote)} were sent again by {_names(context, found.resent)}",
        values={"packets": packets}, subject={"address": shown(remote)},
        against=(UNPROVEN,) if known else (UNPROVEN, OTHER_END),
    )  # fmt: skip


def _names(context: Context, resent: Iterable[Resent]) -> str:
    pids = sorted({p for r in resent for p in r.owners})
    return ", ".join(f"{context.process_name(p)} ({p})" for p in pids)


def _evidence(context: Context, resent: Sequence[Resent]) -> Callable[[Intervals], tuple[str, ...]]:
    """The packets at or within the allotted time."""
    wide = f"remote_address IN ({', '.join(sorted({quoted(r.end[2]) for r in resent}))})"

    def rows(time: Intervals) -> tuple[str, ...]:
        keys = np.array([(r.leaf, r.row) for r in resent], dtype=np.int64)
        inside = _within(time, np.array([r.at for r in resent], dtype=np.int64))
        chosen = keys[inside] if inside.any() else keys
        return (context.book.listed("tcp_retransmits", chosen, wide),)

    return rows


def _within(time: Intervals, at: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which moments lie in the set, or at an end of it: the time that a packet explains ends when it is sent again."""
    if not len(time):
        return np.zeros(len(at), dtype=bool)
    before = np.searchsorted(time[:, 0], at, side="right") - 1
    inside: npt.NDArray[np.bool_] = (before >= 0) & (at <= time[np.maximum(before, 0), 1])
    return inside


DETECTOR = Detector(
    precedence=60,
    kinds=frozenset({"slow_call", slow_steps.KIND, *ASLEEP}),
    scope="sockets of the same process, or of another observed rank of the communicator, within the very call that is "
    "the collective or carries the wait for it; of a rank that is late its own sockets, while its thread slept for one",
    find=find,
    refuted_by="The same collectives as slow, or the rank as late, in a capture without packets sent again.",
    experiment="Run the collective over another interface (NCCL_SOCKET_IFNAME) or path, or between ranks of one host, "
    "and capture again.",
    next_step="See drops and errors on the way to that address (ethtool -S, ip -s link, the switch's counters).",
)
