"""Which synchronisation waits for which collective, where streams wait for each other through events.

PyTorch gives its collectives to a stream of their own: it records an event there, makes the compute stream wait for
that event, and synchronises the compute stream, often in another thread. Streams are first-in-first-out, so that what
is done before the end of a stream is told by one number per stream where collectives began: how many of its collectives
come before. Recording an event copies the numbers of its stream; a wait takes the larger of both; a synchronisation of
a stream, an event or the device is the one that waits for all collectives up to its numbers, the first one counts (CUDA
Runtime API, stream and event management: cudaEventRecord, cudaStreamWaitEvent).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

COLLECTIVE, RECORD, WAIT, STREAM_SYNC, EVENT_SYNC, DEVICE_SYNC = range(6)

Step = tuple[int, int, str, str]
"""What happens (one of the above), number of the call, stream, event: in order of time, for one process."""

NONE = -1


def synchronisations(steps: Iterable[Step], collectives: int) -> list[int]:
    """For each collective, by its number, the number of the first call that waits for it; :data:`NONE` without one."""
    waited = [NONE] * collectives
    issued: dict[str, list[int]] = defaultdict(list)
    through: dict[str, int] = defaultdict(int)
    """Per stream where collectives began: its collectives in order, and how many of them were waited for."""
    after: dict[str, dict[str, int]] = defaultdict(dict)
    recorded: dict[str, dict[str, int]] = {}
    for kind, number, stream, event in steps:
        if kind == COLLECTIVE:
            issued[stream].append(number)
            after[stream][stream] = len(issued[stream])
        elif kind == RECORD:
            recorded[event] = dict(after[stream])
        elif kind == WAIT:
            _merge(after[stream], recorded.get(event, {}))
        else:
            done = {s: len(c) for s, c in issued.items()}
            if kind != DEVICE_SYNC:
                done = recorded.get(event, {}) if kind == EVENT_SYNC else after[stream]
            for origin, upto in done.items():
                for collective in issued[origin][through[origin] : upto]:
                    waited[collective] = number
                through[origin] = max(through[origin], upto)
    return waited


def _merge(mine: dict[str, int], theirs: dict[str, int]) -> None:
    for origin, upto in theirs.items():
        mine[origin] = max(mine.get(origin, 0), upto)
