"""What the analysis makes of MIG devices, of fields that a GPU does not have, and of newer columns."""

from __future__ import annotations

import pytest

from gpuaudit.analyze import intervals
from gpuaudit.analyze.gpu_time import read_gpus
from gpuaudit.analyze.missing import missing
from gpuaudit.analyze.window import read_window
from tests.scenes import MS, T0, S, Scene


def test_time_of_a_mig_device_is_not_gpu_time() -> None:
    scene = Scene().clock().samples(T0, T0 + 10 * S, pids=[7])
    for i in range(2):
        mig = {"gpu_index": 0, "gpu_uuid": f"MIG-{i}", "parent_uuid": "GPU-0", "gpu_instance": i, "compute_instance": 0}
        for at in range(T0, T0 + 10 * S, 250 * MS):
            scene.add("nvml_samples", start_ns=at, duration_ns=250 * MS, unavailable="power_mw=3", **mig)
    gpus = read_gpus(scene.store())
    assert [g.uuid for g in gpus] == ["GPU-0"]
    assert intervals.measure(gpus[0].covered) == 10 * S
    document = scene.document()
    assert document.waste["observed"]["value"] == str(10 * S)
    assert [c["gpu_uuid"] for c in document.charts["nvml"]] == ["GPU-0"]


@pytest.mark.parametrize(
    ("unavailable", "told"),
    [
        ("energy_mj=3,temperature_memory_c=3", None),
        ("performance_state=-1", "performance_state=-1"),
        ("energy_mj=3,power_mw=4", "NVML refused fields in 40 samples: power_mw=4"),
        ("power_mw=15", "power_mw=15"),
        ("compute_processes=3", "compute_processes=3"),
    ],
)
def test_what_a_gpu_does_not_have_lowers_no_grade_and_what_was_refused_does(unavailable: str, told: str | None) -> None:
    store = Scene().clock().samples(T0, T0 + 10 * S, unavailable=unavailable).store()
    reasons = [r.text for r in missing(store, read_window(store), []) if "NVML" in r.text]
    if told is None:
        assert reasons == []
    else:
        assert len(reasons) == 1
        assert told in reasons[0]


def test_memory_temperature_and_the_clock_cap_have_strips() -> None:
    scene = Scene().clock().samples(T0, T0 + 10 * S, temperature_memory_c=91, clock_sm_mhz=1500, clock_sm_cap_mhz=1600)
    (chart,) = scene.document().charts["nvml"]
    means = {s["name"]: {m for m in s["mean"] if m is not None} for s in chart["series"]}
    assert (means["temperature_memory_c"], means["clock_sm_cap_mhz"]) == ({"91"}, {"1600"})
    assert means["power_mw"] == set()


def test_power_follows_from_energy_where_it_is_not_told() -> None:
    scene = Scene().clock()
    readings = [5_000, 5_100, None, 5_300, 200, 350]  # the driver was loaded again before the fifth
    for i, energy_mj in enumerate(readings):
        scene.sample(T0 + i * 250 * MS, 250 * MS, energy_mj=energy_mj)
    (chart,) = scene.document().charts["nvml"]
    (series,) = [s for s in chart["series"] if s["name"] == "power_from_energy_mw"]
    told = [m for m in series["mean"] if m is not None]
    assert (series["unit"], told) == ("mW", ["400", "400", "600"])
    (with_power,) = Scene().clock().samples(T0, T0 + 2 * S, energy_mj=7, power_mw=9).document().charts["nvml"]
    assert "power_from_energy_mw" not in {s["name"] for s in with_power["series"]}
