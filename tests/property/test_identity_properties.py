"""Whatever a host or a workload writes into its names, they are read without an error and within bounds."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from gpuaudit.capture.identity import MAX_RANK, VARIABLES, pid_in_namespace, placement, ranks

PIECES = (
    "docker", "kubepods", "kubepods.slice", "ecs", "lxc", "lxc.payload.x", "slurm", "system.slice", "job_1", "..",
    "step_0", "slurmstepd.scope", "pod" + "0" * 32, "docker-" + "a" * 64 + ".scope", "c" * 64, "\u00e9", " ", ":",
    "cri-containerd:" + "b" * 64, "crio-conmon-" + "d" * 64 + ".scope", "0" * 32 + "-123456789",
)  # fmt: skip
PATHS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=8).map(lambda parts: "/" + "/".join(parts))
LINES = st.tuples(st.sampled_from(["0:", "1:name=systemd", "4:memory", "x", ""]), PATHS).map(":".join)


@given(st.lists(LINES, max_size=5).map("\n".join) | st.text(max_size=200))
def test_cgroup_files_of_any_shape(text: str) -> None:
    found = placement(text.encode("utf-8", "surrogatepass"))
    if found.container_id is not None and found.container_runtime != "lxc":
        assert re.fullmatch("[0-9a-f]{64}|[0-9a-f]{32}-[0-9]{6,10}", found.container_id)
    if found.pod_uid is not None:
        assert re.fullmatch("[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found.pod_uid)
    if found.job_id is not None:
        assert re.fullmatch(r"[0-9]{1,12}(\.([0-9]{1,10}|batch|extern|interactive))?", found.job_id)


@given(st.binary(max_size=200))
def test_cgroup_files_of_any_bytes(raw: bytes) -> None:
    placement(raw)
    pid_in_namespace(b"NSpid:" + raw)


NAMES = st.sampled_from(sorted(VARIABLES)) | st.text(max_size=8)
VALUES = st.integers(-5, 1 << 70).map(str) | st.text(max_size=8)


@given(st.lists(st.tuples(NAMES, VALUES).map("=".join), max_size=10))
def test_environments_of_any_content(items: list[str]) -> None:
    found = ranks(b"\0".join(i.encode("utf-8", "surrogatepass") for i in items))
    for number in (found.rank, found.local_rank, found.world_size):
        assert number is None or 0 <= number < MAX_RANK
    assert set((found.rank_source or "").split(",")) <= VARIABLES | {""}
    assert found.job_id is None or re.fullmatch(r"[0-9]+(\.[0-9]+)?", found.job_id)
