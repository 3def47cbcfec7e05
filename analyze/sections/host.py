"""Section: what the host did meanwhile, as the kernel told it. Tables of sums; definitions: ``host_tables.py``."""

from __future__ import annotations

from gpuaudit.analyze import aggregates, host_tables
from gpuaudit.analyze.context import Context
from gpuaudit.analyze.finding import Quantity, Section, SectionTable, Statement
from gpuaudit.analyze.store import NOT_OWN

ORDER = 75

ID = "host"
TITLE = "The host"
QUESTION = "What did the scheduler, disks, network and memory of the host tell while the GPUs were recorded?"

SOURCES = ("off_cpu", "sockets", "tcp", "memory", "block_io", "lifecycle")

NO_CAUSE = (
    "These are sums of what was recorded. None of them says that it slowed the work: that needs time in common with a "
    "slow call, which findings and chains tell."
)

DEFINITIONS = (
    ("preempted", "Runnable when it left the CPU: somebody else ran. Never a sleep."),
    ("woken and waiting for a CPU", "From the wake of a sleeping thread until it ran: run-queue latency."),
    ("asleep", "From leaving the CPU to the wake; by choice in most cases, and no sign of a problem."),
    ("asleep, uninterruptible", "The same in TASK_UNINTERRUPTIBLE, as a rule for a disk or a page."),
)

PLACES = (
    ("process", "process"), ("role", "role"), ("rank", "rank"), ("local_rank", "rank on the node"), ("world", "of"),
    ("told_by", "told by"), ("container", "container"), ("pod", "pod"), ("job", "job"),
    ("namespace", "id in its namespace"),
)  # fmt: skip


def evaluate(context: Context) -> Section:
    """Every table that has rows."""
    makers = (host_tables.off_cpu, host_tables.storage_and_network, host_tables.memory, host_tables.limits,
              host_tables.lives)  # fmt: skip
    made = [aggregates.table(context, g) for make in makers for g in make(context)]
    tables = [t for t in (*made, _places(context), _observers(context)) if t is not None]
    if not tables:
        reasons = [f"{s}: {why}" for s in SOURCES if (why := context.quality.source_reason(s))]
        return Section(
            ID, TITLE, QUESTION, "not evaluated", "; ".join(reasons) or "nothing of the host was recorded",
            definitions=DEFINITIONS,
        )  # fmt: skip
    told = f"{len(tables)} tables; tables without a row are left out"
    return Section(
        ID, TITLE, QUESTION, "evaluated", told, tuple(_kills(context)), tuple(tables), (), DEFINITIONS, (NO_CAUSE,)
    )


def _places(context: Context) -> SectionTable | None:
    """Ranks, containers and jobs of processes."""
    told = "coalesce(rank, local_rank, world_size, pid_in_namespace) IS NOT NULL OR container_id IS NOT NULL OR "
    told += "pod_uid IS NOT NULL OR job_id IS NOT NULL"
    columns = (
        "role", "rank", "local_rank", "world_size", "rank_source",
        "CASE WHEN container_id IS NOT NULL THEN coalesce(container_runtime || ' ', '') || left(container_id, 12) END",
        "pod_uid", "job_id", "pid_in_namespace",
    )  # fmt: skip
    chosen = ", ".join(f"arg_max({c}, seen_ns)" for c in columns)
    rows = context.store.sql(f"SELECT pid, {chosen} FROM processes WHERE {told} GROUP BY pid ORDER BY pid")
    if not rows:
        return None
    named = aggregates.process(context)
    shown = tuple(
        (named(r[0]), *(None if v is None else aggregates.text(v) for v in r[1:])) for r in rows[: aggregates.MAX_ROWS]
    )
    return SectionTable("places", "Ranks, containers and jobs", PLACES, shown, (), max(0, len(rows) - len(shown)))


def _observers(context: Context) -> SectionTable | None:
    """The recorder itself, and other tools that watched."""
    rows = context.store.sql(
        "SELECT pid, arg_max(comm, seen_ns), arg_max(role, seen_ns), arg_max(reason, seen_ns) FROM processes "
        "WHERE role IN ('recorder', 'attacher', 'observer') GROUP BY pid ORDER BY 3, 1"
    )
    if not rows:
        return None
    columns = (("process", "process"), ("role", "role"), ("reason", "what shows it"))
    shown = tuple(
        (aggregates.text(f"{pid} ({comm})"), str(role), None if why is None else aggregates.text(why))
        for pid, comm, role, why in rows
    )
    note = "The recorder's and the attacher's own calls and threads are in no number about the workload."
    return SectionTable("observers", "Who observed", columns, shown[: aggregates.MAX_ROWS], (note,),
                        max(0, len(shown) - aggregates.MAX_ROWS))  # fmt: skip


def _kills(context: Context) -> list[Statement]:
    """Kills for want of memory are said in words: nobody should have to look for them."""
    rows = context.store.sql(f"SELECT pid, comm FROM oom_kills WHERE {NOT_OWN} ORDER BY start_ns, leaf, row LIMIT 8")
    out = []
    for pid, comm in rows:
        evidence = (context.book.where("oom_kills", f"pid = {int(pid)}"),)
        held = context.store.sql(f"SELECT max(resident_bytes) FROM oom_kills WHERE pid = {int(pid)}")[0][0]
        told = Quantity(None if held is None else int(held), "bytes", "measured", evidence, "resident_bytes",
                        "" if held is not None else "not recorded")  # fmt: skip
        text = "The kernel killed process {process} for want of memory; it held {held}."
        out.append(Statement(text, {"process": aggregates.text(f"{pid} ({comm})"), "held": told}))
    return out
