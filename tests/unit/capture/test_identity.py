"""Containers, pods, jobs and ranks: paths and variables in the shapes that runtimes and launchers write."""

from __future__ import annotations

import pytest

from gpuaudit.capture.identity import MAX_RANK, Placement, Ranks, pid_in_namespace, placement, ranks

ID = "3f4c8f1e" * 8
INNER = "a0b1c2d3" * 8
UID = "1bd5c4ff-0e8e-37cd-25c9-d1cc4c2f5a7e"
UNDERSCORES = UID.replace("-", "_")
STATIC = UID.replace("-", "")
USER = "/user.slice/user-1000.slice/user@1000.service"

CONTAINERS = [
    # path, container, runtime, pod
    (f"/docker/{ID}", ID, "docker", None),
    (f"/system.slice/docker-{ID}.scope", ID, "docker", None),
    (f"/system.slice/docker-{ID}.scope/init.scope", ID, "docker", None),
    (f"{USER}/user.slice/docker-{ID}.scope", ID, "docker", None),
    (f"/docker/{ID}/docker/{INNER}", INNER, "docker", None),
    (f"/my-parent/{ID}", ID, None, None),
    (f"/kubepods/burstable/pod{UID}/{ID}", ID, None, UID),
    (f"/kubepods/pod{UID}/{ID}", ID, None, UID),
    (f"/kubepods/besteffort/pod{STATIC}/{ID}", ID, None, STATIC),
    (f"/kubepods/burstable/pod{UID}/crio-{ID}", ID, "cri-o", UID),
    (f"/kubepods.slice/kubepods-pod{UNDERSCORES}.slice/cri-containerd-{ID}.scope", ID, "containerd", UID),
    (f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORES}.slice/crio-{ID}.scope/container",
     ID, "cri-o", UID),
    (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORES}.slice/docker-{ID}.scope",
     ID, "docker", UID),
    (f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDERSCORES}.slice/cri-containerd-{ID}.scope",
     ID, "containerd", UID),
    (f"/docker/{INNER}/kubelet/kubepods/besteffort/pod{UID}/{ID}", ID, None, UID),
    (f"/system.slice/containerd.service/kubepods-burstable-pod{UNDERSCORES}.slice:cri-containerd:{ID}",
     ID, "containerd", UID),
    (f"/system.slice/nerdctl-{ID}.scope", ID, "containerd", None),
    (f"/default/{ID}", ID, "containerd", None),
    (f"/k8s.io/{ID}", ID, "containerd", None),
    (f"/machine.slice/libpod-{ID}.scope/container", ID, "podman", None),
    (f"/machine.slice/machine-libpod_pod_{INNER}.slice/libpod-{ID}.scope", ID, "podman", None),
    (f"/libpod_parent/libpod-{ID}", ID, "podman", None),
    (f"/system.slice/train.service/libpod-payload-{ID}", ID, "podman", None),
    (f"{USER}/user.slice/libpod-{ID}.scope/container", ID, "podman", None),
    ("/lxc/build-7/system.slice/cron.service", "build-7", "lxc", None),
    ("/lxc.payload.build-7/init.scope", "build-7", "lxc", None),
    (f"/ecs/{STATIC}/{ID}", ID, "ecs", None),
    (f"/ecs/gpu-cluster/{STATIC}/{ID}", ID, "ecs", None),
    (f"/ecs/{STATIC}/{STATIC}-2531612879", f"{STATIC}-2531612879", "ecs", None),
    (f"/ecstasks.slice/ecstasks-{STATIC}.slice/docker-{ID}.scope", ID, "ecs", None),
    # no containers: monitors of them, other scopes, names that only look like it
    (f"/machine.slice/libpod-conmon-{ID}.scope", None, None, None),
    (f"/kubepods.slice/kubepods-pod{UNDERSCORES}.slice/crio-conmon-{ID}.scope", None, None, UID),
    (f"{USER}/session-4.scope", None, None, None),
    ("/lxc.monitor.build-7", None, None, None),
    (f"/docker/{ID[:63]}", None, None, None),
    (f"/docker/{ID}0", None, None, None),
    (f"/system.slice/docker-{ID[:-1]}g.scope", None, None, None),
    ("/podiatry/pod-of-whales", None, None, None),
    ("/", None, None, None),
]  # fmt: skip

JOBS = [
    ("/slurm/uid_1000/job_4711/step_0/task_3", "4711.0"),
    ("/slurm_node17/uid_1000/job_4711/step_batch", "4711.batch"),
    ("/system.slice/slurmstepd.scope/job_4711/step_0/user/task_3", "4711.0"),
    ("/system.slice/node17_slurmstepd.scope/job_4711/step_extern/user/task_special", "4711.extern"),
    ("/system.slice/slurmstepd.scope/job_4711", "4711"),
    ("/system.slice/slurmd.service", None),
    ("/custom/job_4711/step_0", None),
    ("/slurm/uid_1000/job_x/step_0", None),
]


@pytest.mark.parametrize(("path", "container", "runtime", "pod"), CONTAINERS)
@pytest.mark.parametrize("hierarchy", ["0::", "1:name=systemd:", "4:memory:", "7:cpu,cpuacct:"])
def test_container_of_a_path(
    path: str, container: str | None, runtime: str | None, pod: str | None, hierarchy: str
) -> None:
    found = placement(f"{hierarchy}{path}\n".encode())
    assert (found.container_id, found.container_runtime, found.pod_uid) == (container, runtime, pod)
    assert found.cgroup == path
    assert found.version_2 == (path if hierarchy == "0::" else None)


@pytest.mark.parametrize(("path", "job"), JOBS)
def test_job_of_a_path(path: str, job: str | None) -> None:
    assert placement(f"0::{path}\n".encode()).job_id == job
    assert placement(f"9:cpuset:{path}\n3:memory:/\n0::/\n".encode()).job_id == job


def test_the_hierarchy_that_says_most() -> None:
    """A host with both versions: version 2 knows only the service, version 1 the pod; Slurm fills in memory alone."""
    text = (
        f"12:memory:/slurm/uid_7/job_5/step_1/task_0\n1:name=systemd:/kubepods/pod{UID}/{ID}\n"
        "0::/system.slice/containerd.service\n"
    )
    found = placement(text.encode())
    assert found == Placement(
        "/system.slice/containerd.service", "/system.slice/containerd.service", ID, None, UID, "5.1"
    )
    assert placement(b"4:memory:/jobs/a\n1:name=systemd:/\n0::/\n") == Placement("/jobs/a", "/")


@pytest.mark.parametrize("text", [b"", b"\n", b"0:\n", b"x::/docker\n", b"\xff\xfe\0", b"0::"])
def test_what_is_no_cgroup_file(text: bytes) -> None:
    found = placement(text)
    assert (found.container_id, found.pod_uid, found.job_id) == (None, None, None)


def environment(**variables: object) -> bytes:
    return b"\0".join(f"{name}={value}".encode() for name, value in variables.items()) + b"\0"


TORCHRUN = {"RANK": 11, "LOCAL_RANK": 3, "WORLD_SIZE": 16}
SRUN = {"SLURM_PROCID": 1, "SLURM_LOCALID": 0, "SLURM_NTASKS": 2, "SLURM_JOB_ID": 4711, "SLURM_STEP_ID": 0}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (TORCHRUN, Ranks(11, 3, 16, "RANK,LOCAL_RANK,WORLD_SIZE")),
        (SRUN, Ranks(1, 0, 2, "SLURM_PROCID,SLURM_LOCALID,SLURM_NTASKS", "4711.0")),
        ({**SRUN, **TORCHRUN}, Ranks(11, 3, 16, "RANK,LOCAL_RANK,WORLD_SIZE", "4711.0")),
        ({**SRUN, "RANK": 5}, Ranks(5, None, None, "RANK", "4711.0")),  # never 5 of Slurm's 2
        (
            {"OMPI_COMM_WORLD_RANK": 2, "OMPI_COMM_WORLD_LOCAL_RANK": 0, "OMPI_COMM_WORLD_SIZE": 4, "PMIX_RANK": 2},
            Ranks(2, 0, 4, "OMPI_COMM_WORLD_RANK,OMPI_COMM_WORLD_LOCAL_RANK,OMPI_COMM_WORLD_SIZE"),
        ),
        (
            {"PMI_RANK": 6, "MPI_LOCALRANKID": 2, "PMI_SIZE": 8},
            Ranks(6, 2, 8, "PMI_RANK,MPI_LOCALRANKID,PMI_SIZE"),
        ),
        (
            {"PMI_RANK": 6, "PALS_LOCAL_RANKID": 2, "PMI_SIZE": 8},
            Ranks(6, 2, 8, "PMI_RANK,PALS_LOCAL_RANKID,PMI_SIZE"),
        ),
        (
            {"MV2_COMM_WORLD_RANK": 1, "MV2_COMM_WORLD_LOCAL_RANK": 1, "MV2_COMM_WORLD_SIZE": 2},
            Ranks(1, 1, 2, "MV2_COMM_WORLD_RANK,MV2_COMM_WORLD_LOCAL_RANK,MV2_COMM_WORLD_SIZE"),
        ),
        ({"PMIX_RANK": 3}, Ranks(3, None, None, "PMIX_RANK")),
        ({"SLURM_JOBID": 7, "SLURM_NTASKS": 4}, Ranks(job_id="7")),  # a batch script has no rank
        ({"SLURM_JOB_ID": 7, "SLURM_STEP_ID": 4294967294}, Ranks(job_id="7")),
        ({"RANK": "-1"}, Ranks()),
        ({"RANK": "1e3"}, Ranks()),
        ({"RANK": MAX_RANK}, Ranks()),
        ({"RANK": ""}, Ranks()),
        ({"RANK": "9" * 4000}, Ranks()),
        ({"NODE_RANK": 1, "GROUP_RANK": 1}, Ranks()),
    ],
)
def test_ranks(variables: dict[str, object], expected: Ranks) -> None:
    assert ranks(environment(HOME="/home/x", **variables)) == expected


def test_nothing_else_leaves_the_environment() -> None:
    secret = "hf_0123456789abcdef"  # noqa: S105 - invented
    found = ranks(environment(HF_TOKEN=secret, RANK=1, AWS_SECRET_ACCESS_KEY=secret, WORLD_SIZE=secret))
    assert found == Ranks(1, None, None, "RANK")
    assert secret not in repr(found)


@pytest.mark.parametrize("raw", [b"", b"\0\0", b"RANK", b"=1\0RANK=2", b"\xff=\xff\0RANK=2", b"RANK=2\0RANK=3"])
def test_environments_of_any_shape(raw: bytes) -> None:
    assert ranks(raw).rank in (None, 2)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (b"Name:\tx\nNSpid:\t812\nThreads:\t1\n", None),
        (b"Name:\tx\nNSpid:\t812\t7\nThreads:\t1\n", 7),
        (b"NSpid:\t812\t40\t1\n", 1),
        (b"Name:\tNSpid:\nThreads:\t1\n", None),
        (b"", None),
    ],
)
def test_pid_in_its_namespace(status: bytes, expected: int | None) -> None:
    assert pid_in_namespace(status) == expected
