"""Following processes: who is of interest, what they map, who else watches, and how they end.

The programs in the kernel follow fork, exec and exit by themselves (capture/bpf/targets.h). Here they are told of the
processes that run already, and what they and /proc say becomes rows. A process is known by its number and its start:
a number that is given again is another process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture import processes
from gpuaudit.capture.discovery import LIBRARY_FILES, Found, Scanner
from gpuaudit.capture.found_libraries import FoundLibraries, Sink, gap_row
from gpuaudit.capture.map_events import MapEvents
from gpuaudit.capture.observers import Observers
from gpuaudit.capture.rules import RULE_NUMBERS, judge
from gpuaudit.capture.selection import (
    EXCLUDED,
    KNOWN,
    RELATED,
    SELECTED,
    TRACED,
    TREE,
    Ended,
    EndedProcesses,
    Selection,
    Target,
    Targets,
    write_rules,
)
from gpuaudit.capture.source import boottime_ns

DRIVER_PATIENCE_NS = 2_000_000_000
"""A process that has mapped the driver's library for so long and no CUDA runtime will not be observed. ours"""

Key = tuple[int, int]
"""A process: its number, and its start to the clock tick as /proc has it."""


class Follower:
    """``map_fd``: descriptor of a map of the object ``calls``, which is loaded and not attached yet."""

    def __init__(
        self, sink: Sink, selection: Selection, libraries: FoundLibraries, map_fd: Callable[[str], int]
    ) -> None:
        self._sink = sink
        self._selection = selection
        self.libraries = libraries
        self._targets = Targets(map_fd("targets"))
        self._ended_ring = EndedProcesses(map_fd("raw_ended"))
        self._scanner = Scanner({os.getpid(), *selection.exclude}, lambda pid: self._target(pid).began_ns)
        self._observers = Observers()
        self._rows: dict[Key, dict[str, object]] = {}
        """The ``processes`` row of each process found and alive."""
        self._judged: set[Key] = set()
        self._ended: list[Ended] = []
        """Ends that were taken from the ring and are not told of yet."""
        self._maps: MapEvents | None = None
        self.why_no_events = ""
        """Why the kernel tells of no mappings, and discovery is left with passes over /proc."""
        try:
            write_rules(selection.rules, map_fd("rules"), map_fd("cgroups"), RULE_NUMBERS)
        except OSError as e:
            why = f"the selection cannot be told to the kernel: {e.strerror or e}"
            raise HostUnfit(why, hint="select by --pid, or leave --cgroup away") from None
        for pid in self._scanner.exclude:
            self._targets.add(pid, EXCLUDED)

    def begin(self) -> None:
        """Once the programs are attached: select what runs already, and have the kernel tell of mappings."""
        self._with_children(set(self._selection.exclude_with_children), EXCLUDED | TREE)
        self._with_children(set(self._selection.pids or ()), SELECTED)
        for pid in self._selection.pids or ():
            self._tell_process(pid, self._selection.role)
        self._judge(processes.living(), with_children=True)
        maps = MapEvents(LIBRARY_FILES)
        try:
            maps.open()
            self._maps = maps
        except HostUnfit as e:
            self.why_no_events = e.message

    def exclude(self, pid: int) -> None:
        """Never take this process as evidence: the recorder, or another of our own."""
        self._scanner.exclude.add(pid)
        self._targets.add(pid, EXCLUDED)

    def include(self, pid: int) -> None:
        """Follow this process and the children it will have."""
        self._with_children({pid}, SELECTED)

    @property
    def wake_descriptors(self) -> list[int]:
        """Readable when the kernel has something to tell: :meth:`look_at_once`."""
        return self._maps.descriptors if self._maps else []

    @property
    def lost_events(self) -> int | None:
        """Mappings that the kernel could not tell of; None where it tells of none."""
        return self._maps.lost if self._maps else None

    def look_at_once(self) -> int:
        """Probe what the kernel says was just mapped. Returns libraries found."""
        if self._maps is None:
            return 0
        lost = self._maps.lost
        chosen = [e for e in self._maps.take() if self._is_chosen(e.pid)]
        found = self._tell_found(self._scanner.look_at(chosen))
        return found if self._maps.lost == lost else found + self.scan()

    def scan(self) -> int:
        """One pass over everything; tells of processes that came and went. Returns libraries found."""
        events = self._maps.take() if self._maps else []
        alive = processes.living()
        if self._selection.rules:
            self._judge(alive)
        found = self._tell_found(self._scanner.look_at(e for e in events if self._is_chosen(e.pid)))
        found += self._tell_found(self._scanner.scan(self.chosen()))
        for key in self._scanner.mapping_processes():
            if key in alive:
                self._trace(key[0])
        self._observe(alive)
        self.libraries.forget(alive)
        self._tell_ended()
        self.tell_unobservable(boottime_ns() - DRIVER_PATIENCE_NS)
        return found

    def forget_file(self, device: int, inode: int) -> None:
        """See :meth:`Scanner.forget_file`."""
        self._scanner.forget_file(device, inode)

    def traced_runs(self) -> set[Key]:
        """(process, beginning of its program) of those that are traced now."""
        return {(pid, t.began_ns) for pid, t in self._targets.all().items() if t.flags & TRACED}

    def _is_chosen(self, pid: int) -> bool:
        flags = (self._targets.get(pid) or self._end_of((pid, 0)) or Target()).flags
        return not flags & EXCLUDED and (bool(flags & SELECTED) or not self._selection.selected_only)

    def chosen(self) -> set[int]:
        """Processes to look at: what is selected where something is, otherwise all that are not left out."""
        if self._selection.selected_only:
            return {pid for pid, t in self._targets.all().items() if t.flags & SELECTED and not t.flags & EXCLUDED}
        alive = set(processes.pids())
        if not (self._selection.rules or self._selection.exclude_with_children):
            return alive
        return alive - {pid for pid, t in self._targets.all().items() if t.flags & EXCLUDED}

    def _with_children(self, pids: set[int], flags: int) -> None:
        """Set ``flags`` of processes and of all their descendants, those included that are forked meanwhile."""
        done: set[int] = set()
        while more := processes.children(pids) - done if pids else None:
            for pid in more - self._scanner.exclude:
                self._targets.add(pid, flags)
            done |= more

    def _trace(self, pid: int) -> None:
        if not (self._target(pid).flags & EXCLUDED):
            self._targets.add(pid, TRACED | KNOWN | RELATED)

    def _target(self, pid: int) -> Target:
        return self._targets.get(pid) or Target()

    def _judge(self, alive: set[Key], *, with_children: bool = False) -> None:
        """Apply the rules to processes that were not seen before: those that ran when the capture began."""
        chosen: dict[str, set[int]] = {"excluded": set(), "selected": set()}
        for key in alive - self._judged:
            found = processes.properties(key[0])
            if found is not None and (verdict := judge(self._selection.rules, found)):
                chosen[verdict].add(key[0])
        self._judged = alive
        for kind, pids in chosen.items():
            flags = EXCLUDED | TREE if kind == "excluded" else SELECTED
            if with_children:
                self._with_children(pids, flags)
            else:
                for pid in pids - self._scanner.exclude:
                    self._targets.add(pid, flags)

    def _tell_found(self, found: Iterable[Found]) -> int:
        count = 0
        for f in found:
            count += 1
            key = f.pid, f.start_ns
            known = self._targets.get(f.pid) or self._end_of(key) or Target()
            self._tell_process(f.pid, self._role(known.flags), began_ns=known.began_ns)
            if self.libraries.found(f, known.began_ns, partial(self._exit_ns, key)):
                self._trace(f.pid)
        return count

    def _end_of(self, key: Key) -> Ended | None:
        """How a process ended, if it has and was of interest; with a start of 0, the last one of its number."""
        self._ended += self._ended_ring.take()
        return next((e for e in reversed(self._ended) if key in (_key(e), (e.pid, 0))), None)

    def _exit_ns(self, key: Key) -> int | None:
        end = self._end_of(key)
        return end.exit_ns if end else None

    def _tell_process(self, pid: int, role: str, reason: str | None = None, began_ns: int = 0) -> None:
        """Of a process that was not told of yet, or runs another program since, or is no mere observer after all."""
        info = processes.read_process(pid)
        known = info and self._rows.get((pid, info.start_ns))
        if info is None:
            return
        if known:
            is_news = began_ns > int(str(known["seen_ns"])) or (known["role"] == "observer" and role != "observer")
            if not is_news:
                return
            reason = reason or (str(known["reason"]) if known["reason"] else None)
        row = self._rows[pid, info.start_ns] = {**info.row("found", role, boottime_ns()), "reason": reason}
        self._sink("processes", row)

    def _role(self, flags: int) -> str:
        return self._selection.role if flags & SELECTED else "traced"

    def _observe(self, alive: set[Key]) -> None:
        """Who else watches: told once, and with its end like every process that is told of."""
        for pid, reason in self._observers.look(alive, boottime_ns()):
            if pid not in self._scanner.exclude and not self._target(pid).flags & (TRACED | EXCLUDED):
                self._tell_process(pid, "observer", reason)
                self._targets.add(pid, KNOWN)

    def _tell_ended(self) -> None:
        """Write down processes that have ended, also those that ended before any pass saw them."""
        self._ended += self._ended_ring.take()
        ended, self._ended = self._ended, []
        for e in sorted(ended, key=lambda e: (e.exit_ns, e.pid)):
            row = self._rows.pop(_key(e), None)
            if row is None and e.flags & TRACED:
                row = {
                    "start_ns": _key(e)[1], "pid": e.pid, "role": self._role(e.flags), "parent_pid": e.parent_pid,
                    "uid": e.uid, "comm": e.comm, "cgroup_id": e.cgroup_id, "seen_ns": e.exit_ns,
                }  # fmt: skip
                self._sink("processes", {**row, "op": "found", "duration_ns": None})
            if row is not None:
                # From the start that is told, which is a whole tick: so the end is the moment at which it ended.
                life = {"op": "exited", "duration_ns": e.exit_ns - _key(e)[1], "exit_status": e.exit_status}
                self._sink("processes", {**row, **life, "seen_ns": boottime_ns()})
        self._tell_vanished()

    def _tell_vanished(self) -> None:
        """Processes that are gone and whose end was not told of, because there was no room to note it."""
        vanished = {key for key in self._rows if processes.start_ns(key[0]) != key[1]}
        self._ended += self._ended_ring.take()  # they may have ended just now
        for key in sorted(vanished - {_key(e) for e in self._ended}):
            row = self._rows.pop(key)
            why = "its end was not seen: too many processes ended at once"
            self._sink("processes", {**row, "op": "exited", "seen_ns": boottime_ns(), "reason": why})

    def tell_unobservable(self, before_ns: int) -> None:
        """Processes that map the driver's library since ``before_ns`` or longer, and no CUDA runtime."""
        for pid, start_ns, mapping, found_ns in self._scanner.unobservable():
            if found_ns <= before_ns and self.libraries.unobservable(pid, start_ns, mapping, found_ns):
                self._tell_process(pid, "traced")

    def finish(self, began_ns: int, now_ns: int) -> None:
        """After the last pass, and once nothing is attached any more: the last ends, and what could not be followed."""
        self._tell_ended()
        self.tell_unobservable(now_ns)
        for pid in sorted(set(self._targets.full)):
            reason = "the process was not followed: too many exist at once"
            self._sink("gaps", gap_row("off_cpu", reason, began_ns, now_ns, pid=pid))
        self.close()

    def close(self) -> None:
        """Let go of the kernel's events. Twice does no harm."""
        if self._maps:
            self._maps.close()


def _key(e: Ended) -> Key:
    return e.pid, e.start_ns // processes.NS_PER_TICK * processes.NS_PER_TICK
