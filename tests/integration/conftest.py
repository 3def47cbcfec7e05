"""Fixtures for tests with real BPF: they run as root where the kernel has what is needed, and skip elsewhere.

scripts/test runs these tests side by side: each looks at its own processes alone, whatever else this host does. A test
that cannot (it counts what the whole host did, takes a core for itself, has ranks that must come in time, or fills the
rings of every capture that is there) is marked ``alone`` and runs after them, by itself.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuaudit.bundle.errors import HostUnfit
from gpuaudit.capture.attach import Programs
from tests.doubles.build import build, compiler

LONGEST = (
    "test_kill_9_at_random_moments", "test_no_command_opens_a_socket_to_anywhere", "test_two_renders_are_byte_equal",
    "test_kill_9_with_bpf",
)  # fmt: skip
"""The longest that share no fixture, and one of a long module: begun first, or one worker would be left with one of
them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module go to one worker, so that it is set up once."""
    items.sort(key=lambda item: item.name not in LONGEST)
    for item in items:
        module = item.nodeid.partition("::")[0]
        if "/integration/" not in f"/{module}":
            continue
        fixtures = getattr(item, "_fixtureinfo", None)
        known = fixtures.name2fixturedefs.values() if fixtures else ()
        if any(definition.scope == "module" for definitions in known for definition in definitions):
            item.add_marker(pytest.mark.xdist_group(module))


@pytest.fixture(scope="session")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every double and workload program, built once for each worker.

    Never shared between workers: probes are on files, and count what every process calls in them.
    """
    if compiler() is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("doubles")
    for name in ("cudart", "nccl", "ranks", "calls", "sleeper", "spin"):
        build(name, folder)
    return folder


@pytest.fixture(scope="session")
def bpf() -> None:
    """Skip unless BPF programs load on this host, and say why not."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    programs = Programs()
    try:
        programs.load()
    except HostUnfit as e:
        pytest.skip(f"BPF is not usable here: {e}")
    programs.close()
