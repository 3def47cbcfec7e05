"""NVML through the double, scripted from files: every field, what is refused, lost or late, and that nothing waits."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.bundle.canonical import dumps
from gpuaudit.bundle.table import Table
from gpuaudit.bundle.tables import TABLES
from gpuaudit.bundle.tables_nvml import NVML_HEALTH, NVML_LINKS, NVML_PROCESSES, NVML_SAMPLES
from tests.doubles.build import compiler
from tests.nvml_double import named, watch

TIMES = {"start_ns", "duration_ns"}
GPU_0, GPU_1 = (f"GPU-d0ab1e00-0000-4000-8000-00000000000{i}" for i in (0, 1))


def of(rows: list[dict[str, Any]], index: int = 1, **wanted: Any) -> list[dict[str, Any]]:
    """Rows of one GPU, in which each column has the wanted value."""
    return [r for r in rows if r["gpu_index"] == index and all(r.get(k) == v for k, v in wanted.items())]


def values(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its times and identity."""
    return {k: v for k, v in row.items() if k not in TIMES | {"gpu_index", "gpu_uuid"}}


def columns(table: Table, *without: str) -> set[str]:
    return {c.name for c in table.columns} - set(without)


@pytest.fixture(scope="module")
def every(nvml_library: Path) -> Any:
    """Everything of two GPUs, for a second and more."""
    return watch(nvml_library, named("every_field"), until={"nvml_samples": 16, "gpm_samples": 6})


def test_every_field_of_a_sample_is_recorded(every: Any) -> None:
    assert every["capability"] == {"source": "nvml", "available": True, "reason": "", "hint": ""}
    assert [g["index"] for g in every["gpus"]] == [0, 1]
    row = of(every["rows"]["nvml_samples"])[-1]
    assert values(row) == {
        "gpu_utilization_percent": 93, "memory_utilization_percent": 41, "memory_total_bytes": 80 << 30,
        "memory_used_bytes": 123456789, "memory_reserved_bytes": 777, "power_mw": 699000, "power_limit_mw": 650000,
        "energy_mj": 5_000_000_000, "temperature_c": 71, "temperature_memory_c": 88, "clock_sm_mhz": 1410,
        "clock_memory_mhz": 2000, "clock_sm_max_mhz": 1900, "clock_sm_cap_mhz": 1500, "clock_memory_cap_mhz": 2100,
        "performance_state": 2, "event_reasons": 4, "pcie_tx_kib_per_s": 11, "pcie_rx_kib_per_s": 22,
        "pcie_generation": 4, "pcie_width": 8, "pcie_replays": 5, "encoder_utilization_percent": 6,
        "decoder_utilization_percent": 7, "ecc_corrected": 3, "ecc_uncorrected": 1, "unavailable": "",
    }  # fmt: skip
    assert set(row) == columns(NVML_SAMPLES, "parent_uuid", "gpu_instance", "compute_instance")
    assert every["gaps"] == []


def test_processes_with_memory_and_use(every: Any) -> None:
    rows = of(every["rows"]["nvml_processes"])
    assert {(r["pid"], r["op"], r["memory_used_bytes"]) for r in rows} == {
        (4242, "compute", 1000000), (4243, "compute", None), (4244, "graphics", 2000000),
    }  # fmt: skip
    used = {(r.get("sm_utilization_percent"), r.get("memory_utilization_percent")) for r in of(rows, pid=4242)}
    assert (55, 10) in used
    assert used <= {(55, 10), (None, None)}  # null where NVML had no new sample since the last poll
    assert not any("sm_utilization_percent" in r for r in of(rows, pid=4243))
    assert set(of(rows, pid=4242)[0]) <= columns(NVML_PROCESSES)


def test_samples_of_a_gpu_follow_each_other_without_a_hole(every: Any) -> None:
    for table, index in itertools.product(("nvml_samples", "gpm_samples", "nvml_health"), (0, 1)):
        rows = of(every["rows"][table], index)
        assert len(rows) >= 2
        for before, after in itertools.pairwise(rows):
            assert before["start_ns"] + before["duration_ns"] == after["start_ns"], table


def test_health_is_recorded_at_both_ends(every: Any) -> None:
    rows = of(every["rows"]["nvml_health"])
    samples = of(every["rows"]["nvml_samples"])
    assert len(rows) >= 2
    assert rows[-1]["start_ns"] > samples[-2]["start_ns"]
    assert values(rows[0]) == {
        "ecc_enabled": 1, "ecc_corrected_volatile": 3, "ecc_uncorrected_volatile": 1, "ecc_corrected_aggregate": 30,
        "ecc_uncorrected_aggregate": 10, "retired_pages_single_bit": 2, "retired_pages_double_bit": 4,
        "retired_pages_pending": 1, "remapped_rows_corrected": 8, "remapped_rows_uncorrected": 9,
        "remapped_rows_pending": 1, "remapped_rows_failed": 1, "pcie_generation_max": 6, "pcie_width_max": 32,
        "power_limit_default_mw": 710000, "power_limit_set_mw": 660000, "power_limit_max_mw": 720000,
        "temperature_slowdown_c": 90, "persistence_mode": 0, "compute_mode": 3, "mig_mode": 0, "accounting_mode": 1,
        "bar1_total_bytes": 128 << 30, "bar1_used_bytes": 4 << 20, "unavailable": "",
    }  # fmt: skip
    assert set(rows[0]) == columns(NVML_HEALTH)


def test_each_link_that_there_is_has_its_row(every: Any) -> None:
    rows = every["rows"]["nvml_links"]
    up, down = of(rows, link=0)[0], of(rows, link=1)[0]
    assert values(up) == {
        "link": 0, "active": 1, "version": 4, "remote_type": 2, "remote_pci": "00000000:40:00.0", "tx_kib": 1000,
        "rx_kib": 2000, "crc_flit_errors": 0, "crc_data_errors": 0, "replay_errors": 0, "recovery_errors": 0,
        "unavailable": "receive_errors=3,link_recoveries=3,effective_errors=3,symbol_errors=3",
    }  # fmt: skip
    errors = ("crc_flit_errors", "crc_data_errors", "replay_errors", "recovery_errors")
    assert (down["active"], [down[c] for c in errors]) == (0, [11, 12, 13, 14])
    assert {r["link"] for r in of(rows)} == {0, 1}
    newer = of(rows, 0)[0]
    counters = ("receive_errors", "link_recoveries", "effective_errors", "symbol_errors")
    assert [newer[c] for c in counters] == [21, 22, 23, 24]
    older = {"crc_flit_errors=3", "crc_data_errors=3", "replay_errors=3", "recovery_errors=3"}
    assert set(newer["unavailable"].split(",")) == older
    assert set(up) | set(newer) == columns(NVML_LINKS)


def test_accounting_tells_of_processes_of_this_capture_only(every: Any) -> None:
    rows = of(every["rows"]["nvml_accounting"])
    assert {r["pid"] for r in rows} == {4242}
    first, last = values(rows[0]), values(rows[-1])
    assert first == {
        "pid": 4242, "running": 1, "gpu_utilization_percent": 50, "memory_utilization_percent": 12,
        "memory_max_bytes": 3000000, "run_time_ms": None, "process_start_us": 1700000000004242,
        "unavailable": "run_time_ms=-1",
    }  # fmt: skip
    assert (last["running"], last["run_time_ms"], last["memory_max_bytes"]) == (0, 1234, 3100000)


def test_gpm_between_pairs_of_samples(every: Any) -> None:
    assert values(of(every["rows"]["gpm_samples"])[0]) == {
        "graphics_percent": 99.0, "sm_activity_percent": 81.5, "sm_occupancy_percent": 42.25, "integer_percent": 3.0,
        "tensor_percent": 61.0, "tensor_double_percent": 1.0, "tensor_half_percent": 60.0,
        "tensor_integer_percent": 2.0, "dram_bandwidth_percent": 71.0, "fp64_percent": 4.0, "fp32_percent": 5.0,
        "fp16_percent": 6.0, "pcie_tx_mib_per_s": 100.125, "pcie_rx_mib_per_s": 200.25, "nvlink_tx_mib_per_s": 300.5,
        "nvlink_rx_mib_per_s": 400.75, "unavailable": "",
    }  # fmt: skip


def test_gpm_that_is_refused_for_a_while_says_so_and_goes_on(nvml_library: Path) -> None:
    script = "gpus 1\n0 0 gpm_sm 50000\n500 0 refuse gpm 4\n2000 0 refuse gpm 0\n"
    rows = watch(nvml_library, script, until={"gpm_samples": 11})["rows"]["gpm_samples"]
    refused = [r for r in rows if "sm_activity_percent" not in r]
    assert refused
    assert all(r["duration_ns"] == 0 for r in refused)
    assert {f.partition("=")[2] for r in refused for f in r["unavailable"].split(",")} == {"4"}
    told = [r for r in rows if "sm_activity_percent" in r]
    assert {r["sm_activity_percent"] for r in told} == {50.0}
    assert not any(a["start_ns"] < r["start_ns"] < a["start_ns"] + a["duration_ns"] for a in told for r in refused)
    assert told[-1]["start_ns"] > refused[-1]["start_ns"]


def test_facts_that_do_not_change(every: Any) -> None:
    body = every["artefacts"]["gpus"]
    assert body["system"] == {
        "driver_version": {"value": "615.71.05"}, "nvml_version": {"value": "13.615.71.05"},
        "cuda_driver_version": {"value": "13.5"},
    }  # fmt: skip
    zero, one = body["gpus"]
    assert (one["index"], one["uuid"], one["answered"], one["mig"]) == (1, GPU_1, True, [])
    assert one["facts"] | {
        "name": {"value": "NVIDIA H100 80GB HBM3"}, "serial": {"value": "1650123000001"},
        "vbios_version": {"value": "96.00.74.00.00"}, "pci_bus_id": {"value": "00000000:19:00.0"},
        "architecture": {"value": "Hopper"}, "compute_capability": {"value": "9.0"}, "persistence_mode": {"value": 0},
        "compute_mode": {"value": 3}, "cpu_affinity": {"value": "0-3,12-15"}, "numa_affinity": {"value": "1"},
        "numa_node": {"value": 0}, "power_limit_min_mw": {"value": 210000}, "power_limit_max_mw": {"value": 720000},
        "clock_sm_boost_max_mhz": {"value": 1950}, "memory_total_bytes": {"value": 80 << 30}, "gpm": {"value": 1},
        "event_types": {"value": 0xFF9F}, "nvlinks": {"value": 2},
    } == one["facts"]  # fmt: skip
    assert one["others"] == {
        GPU_0: {
            "common_ancestor": {"value": "system"}, "p2p_read": {"value": 3}, "p2p_write": {"value": 3},
            "p2p_nvlink": {"value": 3},
        }
    }  # fmt: skip
    assert zero["others"][GPU_1]["common_ancestor"] == {"value": "multiple"}


def test_mig_devices_have_rows_of_their_own(nvml_library: Path) -> None:
    out = watch(nvml_library, named("mig"), until={"nvml_samples": 15, "gpm_samples": 6})
    rows = out["rows"]["nvml_samples"]
    mig = {(r["gpu_instance"], r["compute_instance"]): r for r in rows if "parent_uuid" in r}
    assert set(mig) == {(1, 0), (2, 0), (2, 1)}
    assert len({r["gpu_uuid"] for r in mig.values()}) == 3
    assert {(r["parent_uuid"], r["gpu_index"]) for r in mig.values()} == {(GPU_0, 0)}
    assert [mig[at]["memory_total_bytes"] >> 30 for at in sorted(mig)] == [40, 10, 10]
    assert "power_mw=3" in mig[1, 0]["unavailable"].split(",")
    assert {r["gpu_uuid"] for r in rows if "parent_uuid" not in r} == {GPU_0, GPU_1}
    held = {(r["gpu_uuid"], r["pid"], r["gpu_instance"], r["compute_instance"]) for r in out["rows"]["nvml_processes"]}
    assert held == {(GPU_0, 4242, 1, 0), (GPU_0, 4243, 2, 1), (GPU_1, 4244, None, None)}
    gpm = {r.get("gpu_instance"): r for r in out["rows"]["gpm_samples"]}
    assert set(gpm) == {1, 2, None}
    assert (gpm[2]["gpu_uuid"], gpm[2]["parent_uuid"]) == (mig[2, 0]["gpu_uuid"], GPU_0)
    assert gpm[1]["sm_activity_percent"] == 25.0
    told = out["artefacts"]["gpus"]["gpus"][0]["mig"]
    assert [m["facts"]["memory_mib"] for m in told] == [{"value": v << 10} for v in (40, 10, 10)]
    assert out["gaps"] == []


def test_without_privileges_the_processes_of_mig_devices_are_still_listed(nvml_library: Path) -> None:
    script = named("mig").read_text() + "0 0 refuse processes 4\n"
    out = watch(nvml_library, script, until={"nvml_samples": 8})
    held = {(r["gpu_uuid"], r["pid"], r["gpu_instance"]) for r in out["rows"]["nvml_processes"]}
    assert held == {(GPU_0, 4242, 1), (GPU_0, 4243, 2), (GPU_1, 4244, None)}
    assert not any("compute_processes" in r["unavailable"] for r in out["rows"]["nvml_samples"])


def test_a_gpu_that_falls_off_the_bus_is_a_gap_and_the_other_goes_on(nvml_library: Path) -> None:
    out = watch(nvml_library, named("off_the_bus"), until={"nvml_samples": 24, "nvml_events": 2})
    rows = out["rows"]["nvml_samples"]
    lost = [r for r in of(rows) if "gpu_utilization_percent" not in r]
    assert len(lost) >= 2
    assert all(set(r) == TIMES | {"gpu_index", "gpu_uuid", "unavailable"} for r in lost[1:])
    fields = columns(NVML_SAMPLES, "parent_uuid", "gpu_instance", "compute_instance", "unavailable", *TIMES)
    told = dict(f.split("=") for f in lost[-1]["unavailable"].split(","))
    assert fields - {"gpu_index", "gpu_uuid"} <= set(told)
    assert set(told.values()) == {"15"}
    assert {r["gpu_utilization_percent"] for r in of(rows, 0)} == {70}
    reasons = [g["reason"] for g in out["gaps"]]
    assert reasons.count("GPU 1 is lost (NVML code 15): it fell off the bus") == 1
    assert "events of GPU 1 are not heard: NVML code 15" in reasons
    assert all(g["source"] == "nvml" and "GPU 0" not in g["reason"] for g in out["gaps"])
    xids = {(r["gpu_index"], r["event_data"]) for r in out["rows"]["nvml_events"]}
    assert xids == {(1, 79), (0, 31)}, "the other GPU is heard after the event set was made anew"


def test_events_are_handed_over_at_once(nvml_library: Path) -> None:
    out = watch(nvml_library, named("xids"), until={"nvml_events": 5})
    events = [values(r) | {"gpu": r["gpu_index"]} for _, r in out["critical"]]
    expected = [
        {"gpu": 0, "op": "xid", "event_type": 8, "event_data": 63, "gpu_instance": None, "compute_instance": None},
        {"gpu": 1, "op": "xid", "event_type": 8, "event_data": 13, "gpu_instance": None, "compute_instance": None},
        {"gpu": 1, "op": "xid", "event_type": 8, "event_data": 31, "gpu_instance": 2, "compute_instance": 0},
        {"gpu": 0, "op": "ecc_single_bit", "event_type": 1, "event_data": None, "gpu_instance": None,
         "compute_instance": None},
        {"gpu": 0, "op": "recovery_action", "event_type": 0x8000, "event_data": None, "gpu_instance": None,
         "compute_instance": None},
    ]  # fmt: skip
    assert len(events) == len(expected)
    assert all(event in events for event in expected)
    assert {t for t, _ in out["critical"]} == {"nvml_events"}
    starts = [r["start_ns"] for _, r in out["critical"]]
    assert starts == sorted(starts)
    assert all(r["duration_ns"] == 0 for _, r in out["critical"])


def test_ecc_errors_grow(nvml_library: Path) -> None:
    out = watch(nvml_library, named("ecc_growth"), until={"nvml_samples": 12})
    rows, health = out["rows"]["nvml_samples"], out["rows"]["nvml_health"]
    counts = [r["ecc_corrected"] for r in rows]
    assert counts[0] == 10
    assert counts == sorted(counts)
    assert counts[-1] >= 20
    assert rows[-1]["ecc_uncorrected"] == 2
    assert [health[0][c] for c in ("ecc_uncorrected_volatile", "remapped_rows_pending")] == [0, 0]
    assert [health[-1][c] for c in ("ecc_uncorrected_volatile", "remapped_rows_pending")] == [2, 1]
    assert health[-1]["ecc_corrected_aggregate"] - health[0]["ecc_corrected_aggregate"] >= 10


def test_throttling_begins_and_ends(nvml_library: Path) -> None:
    rows = watch(nvml_library, named("throttling"), until={"nvml_samples": 10})["rows"]["nvml_samples"]
    met = [k for k, _ in itertools.groupby((r["event_reasons"], r["clock_sm_mhz"]) for r in rows)]
    assert [m for m in met if m in ((4, 1500), (64, 900), (0, 1980))] == [(4, 1500), (64, 900), (0, 1980)]


def test_what_a_gpu_does_not_have_is_null_with_its_code(nvml_library: Path) -> None:
    out = watch(nvml_library, named("unsupported"), until={"nvml_samples": 4})
    sample, health = out["rows"]["nvml_samples"][0], out["rows"]["nvml_health"][0]
    assert set(sample["unavailable"].split(",")) == {
        "energy_mj=3", "temperature_memory_c=3", "ecc_corrected=3", "ecc_uncorrected=3", "performance_state=-1",
        "process_utilization=3",
    }  # fmt: skip
    assert not {"energy_mj", "temperature_memory_c", "ecc_corrected", "performance_state"} & set(sample)
    assert set(health["unavailable"].split(",")) == {
        "ecc_enabled=3", "ecc_corrected_volatile=3", "ecc_uncorrected_volatile=3", "ecc_corrected_aggregate=3",
        "ecc_uncorrected_aggregate=3", "retired_pages_single_bit=3", "retired_pages_double_bit=3",
        "retired_pages_pending=3", "remapped_rows_corrected=3", "remapped_rows_uncorrected=3",
        "remapped_rows_pending=3", "remapped_rows_failed=3", "mig_mode=3", "accounting_mode=3",
    }  # fmt: skip
    assert {t for t, rows in out["rows"].items() if rows} == {"nvml_samples", "nvml_processes", "nvml_health"}
    facts = out["artefacts"]["gpus"]["gpus"][0]["facts"]
    assert facts["gpm"] == facts["event_types"] == facts["numa_node"] == {"not_supported": True}
    assert facts["serial"] == {"error": 4}
    assert out["gaps"] == []


def test_not_available_is_null_and_never_a_large_number(nvml_library: Path) -> None:
    out = watch(nvml_library, named("not_available"), until={"nvml_samples": 2})
    sample = out["rows"]["nvml_samples"][0]
    assert set(sample["unavailable"].split(",")) == {"memory_used_bytes=-1", "power_mw=-1", "energy_mj=-1"}
    assert not {"memory_used_bytes", "power_mw", "energy_mj"} & set(sample)
    assert sample["memory_total_bytes"] == 80 << 30
    assert out["rows"]["nvml_processes"][0]["memory_used_bytes"] is None
    accounting = out["rows"]["nvml_accounting"][0]
    assert {accounting[c] for c in ("gpu_utilization_percent", "memory_max_bytes", "run_time_ms")} == {None}
    assert set(accounting["unavailable"].split(",")) == {
        "gpu_utilization_percent=-1", "memory_utilization_percent=-1", "memory_max_bytes=-1", "run_time_ms=-1",
    }  # fmt: skip


def test_garbage_costs_the_value_and_neither_its_row_nor_the_capture(nvml_library: Path) -> None:
    """Text that is not UTF-8, numbers that no column holds, a memory that canonical JSON cannot hold."""
    garbage = {"serial": -255, "vbios": -255, "memory_total": -1, "ecc_mode": 300, "gpm_sm": -1000}
    script = "gpus 2\n" + "".join(f"0 0 {name} {value}\n" for name, value in garbage.items())
    out = watch(nvml_library, script, until={"nvml_samples": 4, "nvml_health": 2, "gpm_samples": 2})
    assert out["gaps"] == []
    sample = of(out["rows"]["nvml_samples"], 0)[0]
    assert sample["unavailable"] == "memory_total_bytes=-1"
    gpm = of(out["rows"]["gpm_samples"], 0)[0]
    assert gpm["unavailable"] == "sm_activity_percent=-1"
    assert of(out["rows"]["nvml_health"], 0)[0]["unavailable"] == "ecc_enabled=-1"
    assert of(out["rows"]["nvml_health"], 1)[0]["ecc_enabled"] == 1
    facts = out["artefacts"]["gpus"]["gpus"][0]["facts"]
    assert [facts[n] for n in ("serial", "vbios_version", "memory_total_bytes")] == [{"error": -1}] * 3
    assert dumps(out["artefacts"]["gpus"])


def test_a_gpu_whose_identity_is_no_text_is_told_and_the_other_goes_on(nvml_library: Path) -> None:
    out = watch(nvml_library, "gpus 2\n0 0 identity -255\n", until={"nvml_samples": 2})
    assert [g["index"] for g in out["gpus"]] == [1]
    assert [g["reason"] for g in out["gaps"]] == ["GPU 0 cannot be asked: NVML code -1"]


def test_links_numbered_with_a_hole_are_all_there(nvml_library: Path) -> None:
    script = "gpus 1\n0 0 links 4\n0 0 link 1 link_active -3\n"
    out = watch(nvml_library, script, until={"nvml_links": 3})
    assert {r["link"] for r in out["rows"]["nvml_links"]} == {0, 2, 3}


def test_what_is_refused_for_want_of_permission_is_told(nvml_library: Path) -> None:
    refused = ["utilization", "memory_reserved", "memory_used", "pcie_tx", "processes", "accounting_mode", "gpm"]
    refused.append("events")
    script = "gpus 1\n" + "".join(f"0 0 refuse {name} 4\n" for name in refused)
    out = watch(nvml_library, script, until={"nvml_samples": 2, "gaps": 2})
    sample = out["rows"]["nvml_samples"][0]
    assert set(sample["unavailable"].split(",")) == {
        "gpu_utilization_percent=4", "memory_utilization_percent=4", "memory_reserved_bytes=4", "memory_total_bytes=4",
        "memory_used_bytes=4", "pcie_tx_kib_per_s=4", "compute_processes=4",
    }  # fmt: skip
    assert sample["pcie_rx_kib_per_s"] == 200
    assert {"accounting_mode=4", "accounting=4"} <= set(out["rows"]["nvml_health"][0]["unavailable"].split(","))
    assert {(g["table"], g["reason"]) for g in out["gaps"]} == {
        ("gpm_samples", "GPM of GPU 0: NVML refused with code 4"),
        ("nvml_events", "events of GPU 0 are not heard: NVML code 4"),
    }


def test_an_old_driver_without_memory_version_2(nvml_library: Path) -> None:
    out = watch(nvml_library, "gpus 1\n0 0 refuse memory_reserved 25\n", until={"nvml_samples": 1})
    row = out["rows"]["nvml_samples"][0]
    assert row["memory_used_bytes"] == 1 << 30
    assert row["unavailable"] == "memory_reserved_bytes=25"


def test_a_call_that_hangs_5_s_delays_nobody_and_is_told(nvml_library: Path) -> None:
    out = watch(nvml_library, named("hang_5s"), until={"gaps": 3, "gpm_samples": 50})
    gaps = sorted(out["gaps"], key=lambda g: (g["table"], g["start_ns"]))
    late = [g for g in gaps if g["table"] == "nvml_samples"]
    assert {g["reason"] for g in late} == {"NVML answered late for GPU 1 (nvml_samples)"}
    assert len(late) == 2, "once when the deadline had passed, and the rest when the call returned"
    assert late[0]["end_ns"] == late[1]["start_ns"]
    assert late[1]["end_ns"] - late[0]["start_ns"] >= 5_000_000_000
    assert {g["reason"] for g in gaps if g not in late} == {"NVML answered late for GPU 0 (nvml_health)"}
    began, ended = late[0]["start_ns"], late[1]["end_ns"]

    def during(table: str, index: int) -> int:
        return len([r for r in of(out["rows"][table], index) if began <= r["start_ns"] <= ended])

    assert during("nvml_samples", 0) >= 3, "neither the other GPU's hang nor its own slow health read holds it up"
    assert during("gpm_samples", 1) >= 3
    (hung,) = [r for r in of(out["rows"]["nvml_samples"]) if r["start_ns"] == began]
    assert hung["duration_ns"] == 0, "values read at no one moment stand for no time"


def test_a_gpu_that_never_answers_again_does_not_hold_up_the_end(nvml_library: Path) -> None:
    out = watch(nvml_library, named("hang_for_ever"), until={"nvml_samples": 2})
    told = {(g["table"], g["reason"]) for g in out["gaps"]}
    until_end = "NVML did not answer for GPU 1 until the end"
    assert {(t, f"{until_end} ({t})") for t in ("nvml_samples", "nvml_health", "gpm_samples")} <= told
    assert {r["gpu_index"] for r in out["rows"]["nvml_samples"]} == {0}
    entries = {g["index"]: g["answered"] for g in out["artefacts"]["gpus"]["gpus"]}
    assert entries == {0: True, 1: False}


def test_no_driver_is_a_reason_not_an_error() -> None:
    capability = watch(None, until={"nvml_samples": 1}, limit_s=1)["capability"]
    if capability["available"]:
        pytest.skip("this host has an NVIDIA driver")
    assert "libnvidia-ml.so.1 was not found" in capability["reason"]


@pytest.mark.parametrize(("text", "says"), [("", "code 13"), (None, "libnvidia-ml.so.1 was not found")])
def test_a_library_that_is_none_is_a_reason(tmp_path: Path, text: str | None, says: str) -> None:
    """A file of that name without NVML's functions, or that is no library at all."""
    library = tmp_path / "libnvidia-ml.so.1"
    if text is None:
        library.write_bytes(b"not an ELF file")
    else:
        gcc = compiler()
        if gcc is None:
            pytest.skip("gcc is not installed")
        subprocess.run([gcc, "-shared", "-x", "c", "-", "-o", str(library)], input=text, text=True, check=True)
    capability = watch(library, until={})["capability"]
    assert not capability["available"]
    assert says in capability["reason"]


def test_driver_and_library_of_different_versions(nvml_library: Path) -> None:
    capability = watch(nvml_library, named("driver_mismatch"), until={})["capability"]
    assert not capability["available"]
    assert "different versions (NVML code 18)" in capability["reason"]
    assert "reboot" in capability["hint"]


def test_a_driver_that_refuses(nvml_library: Path) -> None:
    assert "code 9" in watch(nvml_library, "init 9\n", until={})["capability"]["reason"]
    assert watch(nvml_library, "gpus 0\n", until={})["capability"]["reason"] == "NVML lists no GPU"
    lost = watch(nvml_library, "gpus 1\n0 0 lost\n", until={})["capability"]
    assert lost["reason"] == "NVML gives access to no GPU (GPU 0: NVML code 15)"


def test_a_gpu_that_was_lost_before_the_capture_leaves_the_others(nvml_library: Path) -> None:
    out = watch(nvml_library, "gpus 2\n0 0 lost\n", until={"nvml_samples": 2})
    assert [g["index"] for g in out["gpus"]] == [1]
    assert [(g["reason"], g["end_ns"]) for g in out["gaps"]] == [("GPU 0 cannot be asked: NVML code 15", None)]
    assert {r["gpu_index"] for r in out["rows"]["nvml_samples"]} == {1}


def test_every_reading_names_a_column() -> None:
    from gpuaudit.capture import nvml_gpm, nvml_health, nvml_samples

    def named_by(readings: Any) -> set[str]:
        return {c for r in readings for c in r.columns}

    assert named_by(nvml_samples.READINGS) <= {c.name for c in NVML_SAMPLES.columns}
    assert named_by(nvml_health.READINGS) == columns(NVML_HEALTH, "gpu_index", "gpu_uuid", "unavailable", *TIMES)
    gpm = {c.name for c in TABLES["gpm_samples"].columns if c.type == "f64"}
    assert {column for column, _ in nvml_gpm.METRICS} == gpm
