"""Which container, pod, job and rank a process belongs to, from its cgroup paths and some variables of its environment.

The shapes of the paths are what the runtimes write with either cgroup driver (systemd: ``docker-ID.scope`` in a slice;
cgroupfs: a folder per level), in hierarchies of version 1 and 2. They are facts about names, not proofs: whoever may
make cgroups may give them any name. Of the environment only the variables listed here are kept; it is as it was when
the process began its program, and the process can have changed it in its own memory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from gpuaudit.capture.environment import may_read

MAX_CGROUP_BYTES = 1 << 16
MAX_ENVIRONMENT_BYTES = 4 << 20
"""Read of /proc/PID/cgroup and /proc/PID/environ at most. execve(2) admits 6 MiB of arguments and environment. ours"""
MAX_RANK = 1 << 24
"""A rank or number of ranks from there on is none. ours"""

_HIERARCHIES = ("", "name=systemd", "cpu", "cpu,cpuacct", "memory", "cpuset", "pids", "devices", "freezer")
"""Whose path is preferred, best first: version 2 (no controllers), then those that runtimes and Slurm fill in."""

_ID = r"[0-9a-f]{64}"
_UID = r"[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32}"
_POD = re.compile(rf"(?:.*-)?pod({_UID})(?:\.slice)?(?::.*)?")
"""``pod<uid>`` (cgroupfs) or ``kubepods-burstable-pod<uid>.slice``; a static pod's uid is 32 digits without hyphens."""
_SCOPE = re.compile(rf"(?:.*:)?(docker|cri-containerd|nerdctl|crio|libpod|podman)(?:-payload)?[-:]({_ID})(?:\.scope)?")
_BARE = re.compile(_ID)
_FARGATE = re.compile(r"[0-9a-f]{32}-[0-9]{6,10}")
_ECS_TASK = re.compile(r"ecstasks-[0-9a-f]{32}\.slice")
_LXC = re.compile(r"lxc\.payload\.(.+)")
_JOB = re.compile(r"job_([0-9]{1,12})")
_STEP = re.compile(r"step_([0-9]{1,10}|batch|extern|interactive)")
_SLURM = re.compile(r"(?:.*_)?slurmstepd\.scope|slurm(?:_.*)?|slurmd(?:\.service)?|system\.slice:slurmstepd:.*")

_RUNTIMES = {
    "docker": "docker", "cri-containerd": "containerd", "nerdctl": "containerd", "crio": "cri-o", "libpod": "podman",
    "podman": "podman",
}  # fmt: skip

_LAUNCHERS = (
    ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    ("PMI_RANK", "PALS_LOCAL_RANKID", "PMI_SIZE"),
    ("PMIX_RANK", "", ""),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NPROCS"),
)
_JOB_ID = ("SLURM_JOB_ID", "SLURM_JOBID")
_STEP_ID = ("SLURM_STEP_ID", "SLURM_STEPID")
"""Variables of rank, local rank and number of ranks, best launcher first: torchrun (and what imitates it), Open MPI,
MVAPICH2, MPICH's and Intel's Hydra, Cray PALS, PMIx, Slurm. The three are taken of one launcher, never mixed: torchrun
under srun has RANK of its worker, and SLURM_PROCID of itself.

https://docs.pytorch.org/docs/stable/elastic/run.html, https://slurm.schedmd.com/srun.html,
https://docs.open-mpi.org/en/main/tuning-apps/environment-var.html; those of PMI are what each launcher sets.
"""

VARIABLES = frozenset(name for names in (*_LAUNCHERS, _JOB_ID, _STEP_ID) for name in names if name)
"""All that is read out of an environment."""


@dataclass(frozen=True)
class Placement:
    """What the cgroup paths say. ``cgroup``: the most telling path; None where there is none."""

    cgroup: str | None = None
    version_2: str | None = None
    container_id: str | None = None
    container_runtime: str | None = None
    pod_uid: str | None = None
    job_id: str | None = None


@dataclass(frozen=True)
class Ranks:
    """What the environment says. ``rank_source``: names of the variables, comma separated."""

    rank: int | None = None
    local_rank: int | None = None
    world_size: int | None = None
    rank_source: str | None = None
    job_id: str | None = None


def placement(cgroup_file: bytes) -> Placement:
    """From the content of /proc/PID/cgroup. Each answer comes from the first hierarchy that has one."""
    paths: dict[str, str] = {}
    for line in cgroup_file.split(b"\n"):
        parts = line.split(b":", 2)
        if len(parts) == 3 and parts[0].isdigit():
            paths.setdefault(os.fsdecode(parts[1]), os.fsdecode(parts[2]))
    order = sorted(paths, key=lambda name: _HIERARCHIES.index(name) if name in _HIERARCHIES else len(_HIERARCHIES))
    said = [_of_path(paths[name]) for name in order]
    best = next((p for p in said if p.container_id), Placement())
    telling = [paths[name] for name in order if paths[name] != "/"]
    return Placement(
        cgroup=telling[0] if telling else paths[order[0]] if order else None,
        version_2=paths.get(""),
        container_id=best.container_id,
        container_runtime=best.container_runtime,
        pod_uid=next((p.pod_uid for p in said if p.pod_uid), None),
        job_id=next((p.job_id for p in said if p.job_id), None),
    )


def _of_path(path: str) -> Placement:
    """One path; the innermost container counts where containers run in one another."""
    container: str | None = None
    runtime: str | None = None
    pod: str | None = None
    parts = path.split("/")
    for i, part in enumerate(parts):
        if found := _POD.fullmatch(part):
            pod = _hyphens(found[1])
        if found := _SCOPE.fullmatch(part):
            container, runtime = found[2], _RUNTIMES[found[1]]
            if any(_ECS_TASK.fullmatch(p) for p in parts[:i]):
                runtime = "ecs"
        elif _BARE.fullmatch(part):
            container, runtime = part, _runtime_of_parents(parts[:i])
        elif _FARGATE.fullmatch(part) and "ecs" in parts[:i]:
            container, runtime = part, "ecs"
        elif found := _LXC.fullmatch(part):
            container, runtime = found[1], "lxc"
        elif i and parts[i - 1] == "lxc" and part:
            container, runtime = part, "lxc"
    return Placement(container_id=container, container_runtime=runtime, pod_uid=pod, job_id=_job(parts))


def _runtime_of_parents(parents: list[str]) -> str | None:
    """Of a folder that is named by the id alone: ``docker/ID``, ``ecs/TASK/ID``, ``k8s.io/ID``; None if not said."""
    if "ecs" in parents:
        return "ecs"
    nearest = parents[-1] if parents else ""
    return {"docker": "docker", "k8s.io": "containerd", "default": "containerd", "libpod_parent": "podman"}.get(nearest)


def _hyphens(uid: str) -> str:
    return uid.replace("_", "-")


def _job(parts: list[str]) -> str | None:
    """``123`` or ``123.0`` (job and step) below one of Slurm's folders."""
    below = next((i for i, part in enumerate(parts) if _SLURM.fullmatch(part)), None)
    if below is None:
        return None
    job = next((found[1] for part in parts[below:] if (found := _JOB.fullmatch(part))), None)
    step = next((found[1] for part in parts[below:] if (found := _STEP.fullmatch(part))), None)
    return job and (f"{job}.{step}" if step else job)


def ranks(environment: bytes) -> Ranks:
    """From the content of /proc/PID/environ; nothing but :data:`VARIABLES` leaves this function."""
    values: dict[str, int] = {}
    for item in environment.split(b"\0"):
        raw, _, value = item.partition(b"=")
        name = raw.decode("ascii", "replace")
        if name in VARIABLES and may_read(name) and re.fullmatch(rb"[0-9]{1,12}", value):
            values.setdefault(name, int(value))
    job = next((values[n] for n in _JOB_ID if n in values), None)
    step = next((values[n] for n in _STEP_ID if values.get(n, MAX_RANK) < MAX_RANK), None)
    job_id = None if job is None else str(job) if step is None else f"{job}.{step}"
    known = [[n for n in names if values.get(n, MAX_RANK) < MAX_RANK] for names in _LAUNCHERS]
    with_rank = [(names, there) for names, there in zip(_LAUNCHERS, known, strict=True) if names[0] in there]
    if not with_rank:
        return Ranks(job_id=job_id)
    same = [pair for pair in with_rank if pair[0][0] == with_rank[0][0][0]]
    names, there = max(same, key=lambda pair: len(pair[1]))
    rank, local_rank, world_size = (values[n] if n in there else None for n in names)
    return Ranks(rank, local_rank, world_size, ",".join(there), job_id)


def pid_in_namespace(status_file: bytes) -> int | None:
    """The innermost of the NSpid line of /proc/PID/status; None where the process is in our own PID namespace."""
    found = re.search(rb"^NSpid:((?:\s+[0-9]{1,10})+)$", status_file, re.MULTILINE)
    numbers = found[1].split() if found else []
    return int(numbers[-1]) if len(numbers) > 1 else None
