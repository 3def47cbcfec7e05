"""Who watches, by what is held: every kind of descriptor that counts, and those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuaudit.capture import observers
from gpuaudit.capture.observers import FIRST_LOOK_NS, LAST_LOOK_NS, MAX_DESCRIPTORS, Observers, what_it_holds

PROGRAM, LINK, PERF = "anon_inode:bpf-prog", "anon_inode:bpf_link", "anon_inode:[perf_event]"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(observers, "PROC", str(tmp_path))
    return tmp_path


def process(proc: Path, pid: int, *held: tuple[str, str], tracer: int = 0) -> None:
    """What /proc shows of a process that holds these descriptors: target, and the lines of its fdinfo."""
    folder = proc / str(pid)
    for name in ("fd", "fdinfo"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").write_text(f"Name:\tx\nTracerPid:\t{tracer}\nUid:\t0\n")
    for i, (target, details) in enumerate(held):
        (folder / "fd" / str(i)).unlink(missing_ok=True)
        (folder / "fd" / str(i)).symlink_to(target)
        (folder / "fdinfo" / str(i)).write_text(f"pos:\t0\nflags:\t02000002\n{details}\n")


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ((), ""),
        (((PERF, ""), (PERF, "")), "holds 2 × perf event"),
        (((PROGRAM, "prog_type:\t2"),), "holds 1 × BPF program (kprobe)"),
        (((PROGRAM, "prog_type:\t26"), (PROGRAM, "prog_type:\t17")),
         "holds 1 × BPF program (raw tracepoint), 1 × BPF program (tracing)"),
        (((LINK, "link_type:\tuprobe_multi"),), "holds 1 × BPF link (uprobe_multi)"),
        (((LINK, "link_type:\tcgroup"),), ""),  # systemd's
        (((LINK, "link_type:\t<7>"),), ""),
        (((PROGRAM, "prog_type:\t8"),), ""),  # BPF_PROG_TYPE_CGROUP_SKB
        (((PROGRAM, "prog_type:\tmany"),), ""),
        (((PROGRAM, ""),), ""),
        ((("anon_inode:bpf-map", ""), ("anon_inode:[eventpoll]", ""), ("/dev/null", "")), ""),
        (((f"/tmp/{PERF}", ""), ("socket:[4711]", "")), ""),
    ],
)  # fmt: skip
def test_what_is_held(proc: Path, held: tuple[tuple[str, str], ...], reason: str) -> None:
    process(proc, 7, *held)
    assert what_it_holds(7) == reason
    assert what_it_holds(8) == ""


def test_of_very_many_descriptors_the_first_are_looked_at(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "MAX_DESCRIPTORS", 3)
    assert MAX_DESCRIPTORS > 1024
    process(proc, 7, *[(PERF, "")] * 5)
    assert what_it_holds(7) == "holds 3 × perf event"


def test_looked_at_after_longer_and_longer_and_told_once(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(proc, 7)
    looks: list[int] = []

    def noted(pid: int) -> str:
        looks.append(pid)
        return what_it_holds(pid)

    monkeypatch.setattr(observers, "what_it_holds", noted)
    seen, times = Observers(), range(0, 4 * LAST_LOOK_NS, FIRST_LOOK_NS)
    assert [found for now in times for found in seen.look({(7, 100)}, now)] == []
    assert 5 < len(looks) < 12, "at 0, then after 0.25, 0.5, 1, 2, 4, 8, 10, 10, … s"
    process(proc, 7, (PERF, ""))
    later = range(times[-1], times[-1] + 4 * LAST_LOOK_NS, FIRST_LOOK_NS)
    assert [found for now in later for found in seen.look({(7, 100)}, now)] == [(7, "holds 1 × perf event")]


def test_a_number_given_again_is_told_of_again(proc: Path) -> None:
    process(proc, 7, (PERF, ""))
    seen = Observers()
    assert len(list(seen.look({(7, 100)}, 0))) == 1
    assert len(list(seen.look({(7, 100)}, 1))) == 0
    assert len(list(seen.look({(7, 900)}, 2))) == 1
    assert list(seen.look(set(), 3)) == []
    assert len(list(seen.look({(7, 900)}, 4))) == 1, "it was gone meanwhile"


def test_a_ptrace_tracer(proc: Path) -> None:
    process(proc, 7)
    process(proc, 8, tracer=7)
    process(proc, 9, tracer=4711)  # one that is in no list: a thread, or gone
    assert list(Observers().look({(7, 1), (8, 1), (9, 1)}, 0)) == [(7, "is the ptrace tracer of process 8")]
