"""Every scenario: its name, whether it has one cause, several or none, and who does what when.

A negative twin has the disturbance of its single where it can explain nothing: on another thread, process, GPU or
cgroup, between calls, at another time, or where the rows cannot tell it from something else.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.corpus import waits
from tests.corpus.devices import HW_SLOWDOWN, HW_THERMAL, POWER_BRAKE, SW_THERMAL, Device, OutOfMemory, Placed, Stretch
from tests.corpus.distractors import USUAL, Daemon, Pressure, Recorder
from tests.corpus.model import Deed, Kind, Scenario
from tests.corpus.pacing import LONG, Pacing
from tests.corpus.phases import BlockingCopies, Burst, ColdStart, Hungry, Recapture, TinyLaunches
from tests.corpus.ranks import Late, Ranks, Stretched, question
from tests.corpus.training import Slow, Trainer, timer
from tests.scenes import MS, S

SYNC, COPY, MALLOC = "cudaStreamSynchronize", "cudaMemcpyAsync", "cudaMalloc"
FEW = (2, 4)
"""Times, for operations that a step has one of: they have fewer calls."""

NEIGHBOUR = 77
"""Cgroup of somebody else."""


def _of(name: str, kind: Kind, *deeds: Deed, beside: Sequence[Deed] = USUAL) -> Scenario:
    return Scenario(name, kind, lambda: (*deeds, *beside))


def _slow(name: str, *slow: Slow, kind: Kind = "single", together: Sequence[Slow] = ()) -> Scenario:
    return _of(name, kind, Trainer(slow, together=together))


def _twin(name: str, *slow: Slow) -> Scenario:
    return _slow(name, *slow, kind="twin")


PREEMPTED = Slow(waits.preempted(), "preempted")
NOISY = Slow(waits.crowd(("ffmpeg", "x264", "nginx", "gunicorn"), NEIGHBOUR), "noisy_neighbour")
DISK = Slow(waits.disk(), "blocking_io")
LOCK = Slow(waits.futex(), "lock_wait")
RECLAIM = Slow(waits.reclaim(), "memory_reclaim")
HANGING = Stretched(None, (1, 2), (12 * S, 20 * S), where="nowhere", link="counts")
QUOTA = Slow(waits.quota(), "cpu_quota", lost=(20 * MS, 90 * MS))

SINGLE = (
    _slow("a CPU hog preempts launches", PREEMPTED),
    _slow("a hog preempts copies", Slow(waits.preempted("gcc", 905), "preempted", COPY, FEW)),
    _slow("a hog preempts the wait for the GPU", Slow(waits.preempted("make", 906), "preempted", SYNC, FEW)),
    _slow("a container next door has the CPU", NOISY),
    _slow("one process next door has the CPU", Slow(waits.preempted("ffmpeg", 911, NEIGHBOUR), "preempted")),
    _slow("launches wait for a cold file", DISK),
    _slow("allocations wait for a log to reach the disk", Slow(waits.disk(write=True), "blocking_io", MALLOC, FEW)),
    _slow("a sibling thread holds a lock", LOCK),
    _slow("a lock is held during synchronisation", Slow(waits.futex(), "lock_wait", SYNC, FEW)),
    _slow("allocations reclaim memory of the host", Slow(waits.reclaim(), "memory_reclaim", MALLOC, FEW)),
    _slow("launches reclaim at the limit of a cgroup", Slow(waits.reclaim(cgroup=True), "memory_reclaim")),
    _slow("the CPU quota is used up", QUOTA),
    _of("a process starts", "single", ColdStart()),
    _of("a cache gives everything back once", "single", Trainer(), Burst()),
    _of("an allocator thrashes", "single", Trainer(), Burst("allocator_thrash", times=(6, 12), frees=(12, 25))),
    _of("a graph is captured again and again", "single", Recapture()),
    _of("graphs are made and never launched", "single", Recapture(launches=(0, 0), cause="graph_unused")),
    _slow(
        "software interrupts have the CPU", Slow(waits.preempted("ksoftirqd/2", 21), "irq_load", also=("preempted",))
    ),
    _of("work is given from the far socket", "single", Placed()),
    _of("data workers cannot keep up", "single", Hungry()),
    _of("kernels too small for the host", "single", TinyLaunches()),
    _of("small kernels that the GPU kept no record of", "single", TinyLaunches(timed=False)),
    _of("steps of quick kernels, whose results are copied", "single", Pacing("launch_paced", waits="copies")),
    _of("small results are copied one by one", "single", BlockingCopies()),
    _of("a rank is late, nobody knows why", "single", Ranks(Late())),
    _of("a rank is late in collectives that block", "single", Ranks(Late(), blocking=True)),
    _of("packets are lost in collectives", "single", Ranks(stretched=Stretched())),
    _of("packets are lost in collectives that block", "single", Ranks(stretched=Stretched(), blocking=True)),
    _of("a link reports that it failed", "single", Ranks(stretched=Stretched(None, where="nowhere", link="reports"))),
    _of("a link fails while a collective hangs", "single", Ranks(stretched=HANGING)),
    _of("a link fails again and again", "single", Ranks(stretched=Stretched(None, where="nowhere"), links_fail=True)),
    _of("the other host is slow at times", "single", Ranks(stretched=Stretched(None, where="nowhere"), nranks=8)),
    _of("a notebook uses the same GPU", "single", Stretch("gpu_shared")),
    _of("a GPU is too hot", "single", Stretch("throttled", SW_THERMAL)),
    _of("a GPU is far too hot", "single", Stretch("throttled", HW_SLOWDOWN | HW_THERMAL)),
    _of("a power supply brakes", "single", Stretch("throttled", HW_SLOWDOWN | POWER_BRAKE)),
    _of("the kernel kills a process of a GPU", "single", OutOfMemory()),
    _of("clocks are capped by a setting", "single", Device("clock_caps")),
    _of("a link has fewer lanes than it could", "single", Device("pcie_link")),
    _of("a GPU reports an XID", "single", Device("xid")),
    _of("memory of a GPU fails", "single", Device("memory_errors")),
    _of("a power limit is set low", "single", Device("power_cap")),
)
COMPOUND = (
    _slow("a hog, and a disk on other calls", PREEMPTED, DISK, kind="compound"),
    _slow(
        "a disk, and a lock on other operations", DISK, Slow(waits.futex(), "lock_wait", MALLOC, FEW), kind="compound",
    ),
    _slow(
        "a lock, then a hog, in the same calls", Slow(waits.futex(), "lock_wait", covered=(40, 50)), kind="compound",
        together=(Slow(waits.preempted(), "preempted", after=(52, 55), covered=(35, 44)),),
    ),
    _slow(
        "a disk, then a hog, in the same calls", Slow(waits.disk(), "blocking_io", covered=(30, 60)), kind="compound",
        together=(Slow(waits.preempted(), "preempted", after=(62, 65), covered=(20, 34)),),
    ),
    _slow(
        "a disk, a lock and a hog, in the same calls", Slow(waits.disk(), "blocking_io", covered=(25, 30)),
        kind="compound", together=(
            Slow(waits.futex(), "lock_wait", after=(33, 35), covered=(25, 30)),
            Slow(waits.preempted(), "preempted", after=(66, 70), covered=(20, 28)),
        ),
    ),
    _slow(
        "a hog, a disk and memory, each on calls of its own", PREEMPTED, Slow(waits.disk(), "blocking_io", SYNC, FEW),
        Slow(waits.reclaim(), "memory_reclaim", MALLOC, FEW), kind="compound",
    ),
    _slow("a hog here, and slow calls that nothing explains", PREEMPTED, Slow(waits.nothing, None, SYNC, FEW),
          kind="compound"),
    _slow("a quota, and a disk on other operations", QUOTA, Slow(waits.disk(), "blocking_io", SYNC, FEW),
          kind="compound"),
    _of("two trainers, two causes", "compound", Trainer((PREEMPTED,)), Trainer((DISK,), pid=4_200, gpu=1)),
    _of("a start beside a hog", "compound", ColdStart(), Trainer((PREEMPTED,))),
    _of("a rank is late for a hog", "compound", Ranks(Late("preempted", waits.preempted()))),
    _of("a rank is late for a disk", "compound", Ranks(Late("blocking_io", waits.disk()))),
    _of("a rank is late for a lock", "compound", Ranks(Late("lock_wait", waits.futex()), blocking=True)),
    _of("a rank is late for its quota", "compound", Ranks(Late("cpu_quota", waits.quota("/train")))),
    _of("a rank is late for want of memory", "compound", Ranks(Late("memory_reclaim", waits.reclaim()))),
    _of("a rank is late for a question that was lost", "compound",
        Ranks(Late("tcp_retransmits", question, times=(8, 14), by=(215 * MS, 320 * MS), covered=(70, 90)))),
    _of("a late rank, and lost packets", "compound", Ranks(Late(), Stretched())),
    _of("a hot GPU, and a hog elsewhere", "compound", Stretch("throttled", SW_THERMAL), Trainer((PREEMPTED,))),
    _of("launches pace one process, a disk holds up another", "compound", Pacing("launch_paced"), Trainer((DISK,))),
    _of("a killed process, and a disk elsewhere", "compound", OutOfMemory(), Trainer((DISK,))),
)  # fmt: skip
TWINS = (
    _twin("a hog preempts another thread", Slow(waits.preempted(), None, where="another thread")),
    _twin("a hog preempts another process", Slow(waits.preempted(), None, where="another process")),
    _twin("a hog preempts between calls", Slow(waits.preempted(), None, where="between calls")),
    _twin("a hog preempts at another time", Slow(waits.preempted(), None, where="earlier")),
    _twin("another process reads a cold file", Slow(waits.disk(), None, where="another process")),
    _twin("another thread reads a cold file", Slow(waits.disk(), None, where="another thread")),
    _twin("a cold file is read between calls", Slow(waits.disk(), None, where="between calls")),
    _twin("a sleeper while the recorder writes",
          Slow(waits.disk(own=False, reader=2_900, comm="audit"), None, lost=(45 * MS, 55 * MS))),
    _twin("a sleeper while another tool writes", Slow(waits.disk(own=False, reader=2_950, comm="tracer"), None)),
    _twin("a sleeper in its calls", Slow(timer, None)),
    _twin("another thread waits for a lock", Slow(waits.futex(), None, where="another thread")),
    _twin("locks are waited for between calls", Slow(waits.futex(), None, where="earlier")),
    _twin("another process reclaims memory", Slow(waits.reclaim(), None, where="another process")),
    _twin("memory is reclaimed between calls", Slow(waits.reclaim(), None, where="earlier")),
    _twin("a quota used up at another time", Slow(waits.quota(), None, where="earlier", lost=(20 * MS, 90 * MS))),
    _twin("the quota of another cgroup", Slow(waits.quota("/batch"), None, where="another process")),
    _twin("slow calls and nothing else", Slow(waits.nothing, None, times=(6, 14))),
    _of("pressure on memory, slow calls on the GPU", "twin", Trainer((Slow(waits.nothing, None, SYNC, FEW),)),
        Pressure("memory", (20 * MS, 120 * MS))),
    _of("a quiet host", "twin", Trainer()),
    _of("a busy disk beside it", "twin", Trainer((Slow(waits.nothing, None),)), Daemon(1_250, "mysqld", (80, 120))),
    _of("the recorder is busy", "twin", Trainer((Slow(waits.nothing, None),)), Recorder(2_910)),
    _of("packets are lost between collectives", "twin", Ranks(stretched=Stretched(None, where="between"))),
    _of("packets of another process are lost", "twin", Ranks(stretched=Stretched(None, where="other process"))),
    _of("slow collectives and nothing else", "twin", Ranks(stretched=Stretched(None, where="nowhere"))),
    _of("a hog on another rank", "twin", Ranks(Late("preempted", waits.preempted(), wrong_rank=True))),
    _of("a question of another rank is lost", "twin", Ranks(Late("tcp_retransmits", question, wrong_rank=True))),
    _of("another GPU is too hot", "twin", Stretch("throttled", SW_THERMAL, elsewhere=True)),
    _of("a notebook uses another GPU", "twin", Stretch("gpu_shared", elsewhere=True)),
    _of("a slow stretch that nothing explains", "twin", Stretch(None)),
    _of("the other host is slow all the time", "twin", Ranks(nranks=8, waits_for_absent=(10 * MS, 60 * MS))),
    _of("pauses of its own will", "twin", Hungry(waits=False)),
    _of("workers that waited for orders", "twin", Hungry(busy=False)),
    _of("a graph is captured once", "twin", Recapture(captured_once=True)),
    _of("kernels that fill the GPU", "twin", TinyLaunches(tiny=False)),
    _of("kernels that fill the GPU, which kept no record", "twin", TinyLaunches(tiny=False, timed=False)),
    _of("a GPU that is behind when it is waited for", "twin", Pacing(kernel=LONG)),
    _of("a copy of a result waits for the GPU", "twin", Pacing(kernel=LONG, waits="copies")),
    _of("the GPU is asked until it is done", "twin", Pacing(kernel=LONG, waits="asks")),
    _of("a host that thinks between launches", "twin", Pacing(pause=(MS, 2 * MS))),
    _of("another thread uses the GPU in every step", "twin", Pacing(helper=True)),
    _of("a few steps of quick kernels", "twin", Pacing(steps=(30, 60))),
    _of("copies that do not block", "twin", BlockingCopies(blocking=False)),
    _of("the kernel kills a bystander", "twin", Trainer(), OutOfMemory(uses_gpu=False)),
    _of("a healthy GPU", "twin", Device("healthy")),
    _of("work is given from the near socket", "twin", Placed(far=False)),
)  # fmt: skip

SCENARIOS: tuple[Scenario, ...] = (*SINGLE, *COMPOUND, *TWINS)
