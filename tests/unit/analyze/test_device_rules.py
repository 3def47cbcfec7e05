"""Rules on what NVML says of a device: clock and power caps, memory errors, XIDs, PCIe and NVLink."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gpuaudit.analyze.context import Found, NotEvaluated
from gpuaudit.analyze.finding import Finding
from gpuaudit.analyze.nvml_values import growth
from gpuaudit.analyze.rules import memory_errors as memory_errors_rule
from gpuaudit.analyze.rules import nvlink as nvlink_rule
from gpuaudit.analyze.rules import xid as xid_rule
from gpuaudit.analyze.sections import gpu_health
from gpuaudit.analyze.words import sentence
from gpuaudit.analyze.xid import XIDS, xid
from gpuaudit.bundle.tables import TABLES
from tests.rule_scenes import clock_caps, memory_errors, nvlink, pcie_link, power_cap
from tests.rule_scenes import xid as xid_scenes
from tests.rule_scenes.power_cap import health
from tests.scenes import T0, S, Scene
from tests.unit.analyze.test_rules import RULES, found, refused, value

DEVICE_RULES = ("clock_caps", "power_cap", "memory_errors", "xid", "pcie_link", "nvlink")


def by_text(scene: Scene, rule: str) -> dict[str, Finding]:
    items = found(scene, rule)
    assert len({(f.text, f.subject["gpu"]) for f in items}) == len(items)
    return {f.text: f for f in items}


@pytest.mark.parametrize("rule", DEVICE_RULES)
def test_without_nvml_they_say_why(rule: str) -> None:
    scene = Scene().clock().process(7)
    scene.open_body["sources"] = [{"source": "nvml", "state": "not available", "reason": "no libnvidia-ml.so.1"}]
    assert "no libnvidia-ml.so.1" in refused(scene, rule)


@pytest.mark.parametrize("rule", [r for r in DEVICE_RULES if r not in ("xid", "nvlink")])
def test_what_nvml_does_not_support_is_not_clear(rule: str) -> None:
    names = ("clock_sm_cap_mhz", "power_limit_default_mw", "ecc_uncorrected_volatile", "pcie_width_max")
    scene = Scene().clock().samples(T0, T0 + 60 * S, unavailable=",".join(f"{n}=3" for n in names))
    health(scene, unavailable=",".join(f"{n}=3" for n in names))
    assert "not supported (NVML code 3)" in refused(scene, rule)


@pytest.mark.parametrize("rule", DEVICE_RULES)
def test_a_recording_from_before_these_columns_is_not_clear(rule: str) -> None:
    scene = Scene().clock().samples(T0, T0 + 60 * S, pids=[7])
    assert refused(scene, rule)


def test_a_clock_cap_costs_the_share_of_the_clock_it_takes() -> None:
    (finding,) = found(clock_caps.capped(), "clock_caps")
    assert value(finding, "capped") == value(finding, "busy") == value(finding, "named") == 60 * S
    assert value(finding, "clock_deficit") == finding.impact.value == 30 * S
    assert (value(finding, "clock_cap"), value(finding, "clock_max")) == (990, 1980)
    assert finding.severity == "critical"
    assert finding.fixes[0].new == "1980 MHz"


@pytest.mark.parametrize(
    "more",
    [
        {"clock_sm_mhz": 991},  # above what the setting allows: it did not bind
        {"clock_sm_mhz": 210, "event_reasons": 0x0},  # far below it, and NVML does not name the setting
        {"clock_sm_mhz": 210, "event_reasons": 0x1},  # hardly any work
        {"event_reasons": 0x4},  # a power cap: the rule throttling tells it
        {"gpu_utilization_percent": 0},  # nothing ran
        {"clock_sm_cap_mhz": 1980, "event_reasons": 0x0},
        {"clock_sm_cap_mhz": 1961, "clock_sm_mhz": 1961},  # within a hundredth of 1,980 (1,960.2)
    ],
)
def test_a_cap_that_did_not_bind_is_no_finding(more: dict[str, int]) -> None:
    assert found(clock_caps.capped(**more), "clock_caps") == []


def test_just_below_a_hundredth_is_a_cap() -> None:
    (finding,) = found(clock_caps.capped(clock_sm_cap_mhz=1960, clock_sm_mhz=1960), "clock_caps")
    assert value(finding, "clock_deficit") == 60 * S * 20 // 1980
    assert finding.severity == "notice"


def test_a_cap_without_reasons_told_still_counts() -> None:
    (finding,) = found(clock_caps.capped(event_reasons=None), "clock_caps")
    assert value(finding, "named") == 0


@pytest.mark.parametrize("cap", [None, 1980])
def test_locked_clocks_are_told_where_nvml_names_them(cap: int | None) -> None:
    """nvidia-smi -lgc leaves the applications clock as it was, and newer GPUs have none."""
    (finding,) = found(clock_caps.capped(clock_sm_cap_mhz=cap), "clock_caps")
    assert (finding.text, finding.impact.value, value(finding, "clock")) == ("named", 30 * S, 990)
    unnamed = clock_caps.capped(clock_sm_cap_mhz=None, event_reasons=0x0)
    assert "no applications clock" in refused(unnamed, "clock_caps")


def test_below_the_cap_nvml_has_to_name_it() -> None:
    (finding,) = found(clock_caps.capped(clock_sm_mhz=975), "clock_caps")
    assert value(finding, "named") == value(finding, "capped") == 60 * S


def test_a_lowered_power_limit_costs_the_missing_clock() -> None:
    (finding,) = found(power_cap.limited(), "power_cap")
    assert (value(finding, "limit"), value(finding, "limit_default")) == (400_000, 700_000)
    assert (value(finding, "bound"), value(finding, "observed")) == (30 * S, 60 * S)
    assert value(finding, "clock_deficit") == finding.impact.value == 30 * S * 495 // 1980
    assert value(finding, "power") == 399_000
    assert finding.severity == "warning"  # an eighth of the observed time
    assert (finding.fixes[0].current, finding.fixes[0].new) == ("400 W", "700 W")


@pytest.mark.parametrize(("limit", "reasons"), [(700_000, 0x4), (800_000, 0x4), (400_000, 0x0), (400_000, 0x40)])
def test_a_limit_at_its_default_or_that_never_bound_is_no_finding(limit: int, reasons: int) -> None:
    assert found(power_cap.limited(limit, reasons), "power_cap") == []


def test_each_kind_of_memory_trouble_has_its_action() -> None:
    (scene,) = memory_errors.scenes()
    told = by_text(scene, "memory_errors")
    assert {t: (f.severity, f.subject["gpu_index"]) for t, f in told.items()} == {
        "uncorrected": ("critical", "0"), "corrected": ("notice", "0"), "history": ("notice", "1"),
        "remap_failed": ("critical", "1"), "remap_pending": ("warning", "1"), "retirement_pending": ("warning", "2"),
    }  # fmt: skip
    assert value(told["uncorrected"], "errors") == value(told["corrected"], "errors") == 3
    assert (value(told["uncorrected"], "life"), value(told["corrected"], "life")) == (2, 7)
    assert value(told["remap_failed"], "rows") == 3
    assert value(told["retirement_pending"], "pages") == 5
    assert "Reset the GPU" in told["remap_pending"].fixes[0].action
    assert "out of use" in told["remap_failed"].fixes[0].action


def test_ecc_that_does_not_grow_is_clear() -> None:
    assert found(health(Scene().clock(), ecc_uncorrected_volatile=9, ecc_corrected_volatile=9), "memory_errors") == []


def test_one_reading_does_not_say_when_errors_came() -> None:
    scene = health(Scene().clock(), ecc_uncorrected_volatile=9, ecc_uncorrected_aggregate=9)
    scene.rows["nvml_health"] = scene.rows["nvml_health"][:1]
    finding = by_text(scene, "memory_errors")["history"]
    assert (value(finding, "life"), value(finding, "errors")) == (9, None)
    assert "fewer than two readings" in sentence(finding, memory_errors_rule.DECLARATION)


def test_counters_of_samples_do_where_health_has_none() -> None:
    scene = Scene().clock().samples(T0, T0 + 30 * S, ecc_uncorrected=1, ecc_corrected=0)
    scene.samples(T0 + 30 * S, T0 + 60 * S, ecc_uncorrected=2, ecc_corrected=0)
    finding = by_text(scene, "memory_errors")["uncorrected"]
    assert value(finding, "errors") == 1
    assert value(finding, "life") is None


def test_pages_pending_are_told_without_any_counter() -> None:
    scene = health(Scene().clock(), retired_pages_pending=1)
    finding = by_text(scene, "memory_errors")["retirement_pending"]
    assert value(finding, "pages") is None


@pytest.mark.parametrize(
    ("values", "grew"),
    [([], None), ([5], None), ([5, 5], 0), ([5, 8, 8], 3), ([5, 8, 2, 4], 7), ([5, -1, 6], 1), ([9, 0], 0)],
)
def test_growth_of_a_counter_that_may_begin_anew(values: list[int], grew: int | None) -> None:
    import numpy as np

    assert growth(np.array(values, dtype=np.int64)) == grew


def test_xids_are_told_with_the_vendors_action() -> None:
    (scene,) = xid_scenes.scenes()
    told = {f.values["number"]: f for f in found(scene, "xid")}
    assert {n: f.severity for n, f in told.items()} == {"94": "warning", "79": "critical", "4242": "warning"}
    assert value(told["94"], "events") == 3
    assert told["79"].values["action"] == "reboot the node"
    assert "fallen off the bus" in str(told["79"].values["meaning"])
    assert told["4242"].text == "unknown"
    assert "XID Errors" in told["94"].fixes[0].action


def test_one_of_a_kind_is_not_told_as_many() -> None:
    """Counts stand after a colon, so that one event, error or link reads as well as many."""
    told = {f.values["number"]: sentence(f, xid_rule.DECLARATION) for f in found(xid_scenes.scenes()[0], "xid")}
    assert told["79"].startswith("GPU 1 (GPU-1) reported XID 79: the GPU has fallen off the bus. Events: 1. The")
    assert told["4242"].endswith("does not explain. Events: 1.")
    (scene,) = nvlink.scenes()
    gone = sentence(by_text(scene, "nvlink")["went_down"], nvlink_rule.DECLARATION)
    assert gone == "NVLinks of GPU 1 (GPU-1) that went down within the capture: 1 (link 3)."


def test_no_xid_is_clear_only_where_the_recorder_listened() -> None:
    scene = health(Scene().clock())
    assert found(scene, "xid") == []
    gap = {"start_ns": T0, "duration_ns": None, "source": "nvml", "table_name": "nvml_events"}
    assert "event set: not supported" in refused(scene.add("gaps", **gap, reason="event set: not supported"), "xid")
    assert "does not listen to events" in refused(Scene().clock().samples(T0, T0 + 60 * S), "xid")


def test_other_events_and_events_without_a_number_are_no_xid() -> None:
    scene = health(Scene().clock())
    xid_scenes.event(scene, 3, op="performance_state")
    xid_scenes.event(scene, None)
    assert found(scene, "xid") == []


def test_thousands_of_hostile_numbers_make_a_hundred_findings() -> None:
    scene = health(Scene().clock())
    for n in range(2_000):
        xid_scenes.event(scene, (1 << 64) - 1 - n)
    assert len(found(scene, "xid")) == 100


def test_the_catalogue_of_xids() -> None:
    assert all(n == x.number and x.meaning and x.action for n, x in XIDS.items())
    assert (xid(48).severity, xid(63).severity, xid(13).severity) == ("critical", "notice", "warning")
    assert xid(10**9).meaning == "not explained in the catalogue"


def test_a_narrow_link_under_load() -> None:
    told = by_text(pcie_link.scenes()[0], "pcie_link")
    finding = told["degraded"]
    assert (value(finding, "width"), value(finding, "width_max")) == (4, 16)
    assert value(finding, "degraded") == value(finding, "loaded") == 60 * S
    assert finding.impact.value == 45 * S  # three quarters of the bandwidth
    lane = Fraction(32_000_000_000 * 128, 130 * 8)
    assert value(finding, "busiest") == 12_000_000 * 1024 / (4 * lane)
    assert finding.severity == "critical"  # the link was used: 12.3 of 15.8 GB/s


@pytest.mark.parametrize(("throughput", "severity"), [(None, "notice"), (7_000_000, "notice"), (8_000_000, "critical")])
def test_a_link_that_was_hardly_used_is_a_notice(throughput: int | None, severity: str) -> None:
    scene = pcie_link.link(pcie_rx_kib_per_s=throughput)
    assert by_text(scene, "pcie_link")["degraded"].severity == severity


@pytest.mark.parametrize(
    "more",
    [
        {"gpu_utilization_percent": 0}, {"gpu_utilization_percent": 49}, {"performance_state": 8},
        {"performance_state": 3},
    ],
)  # fmt: skip
def test_a_link_that_sleeps_when_idle_is_no_finding(more: dict[str, int]) -> None:
    """Generation 1 at idle or in a power-saving state is how GPUs save power: nothing is known of the link then."""
    assert "under load" in refused(pcie_link.link(1, 16, **more), "pcie_link")


def test_a_lower_generation_at_the_edge_of_load() -> None:
    told = by_text(pcie_link.link(1, 16, gpu_utilization_percent=50, performance_state=2), "pcie_link")
    assert value(told["degraded"], "generation") == 1
    assert by_text(pcie_link.link(1, 16, performance_state=None), "pcie_link")["degraded"]


def test_the_full_link_is_clear_and_an_unknown_generation_is_not_judged() -> None:
    assert found(pcie_link.link(5, 16), "pcie_link") == []
    assert "not" in refused(pcie_link.link(99, 16), "pcie_link")
    assert "not" in refused(pcie_link.link(5, 0), "pcie_link")


def test_replays_are_told_from_one_a_second() -> None:
    finding = by_text(pcie_link.replaying(1), "pcie_link")["replays"]
    assert value(finding, "replays") == 239
    assert value(finding, "rate") == 4
    slow = pcie_link.replaying(0)
    slow.rows["nvml_samples"][-1]["pcie_replays"] = 5 + 59
    assert found(slow, "pcie_link") == []


def test_nvlinks_down_gone_fewer_and_with_errors() -> None:
    (scene,) = nvlink.scenes()
    told = by_text(scene, "nvlink")
    assert {t: (f.severity, f.subject["gpu_index"]) for t, f in told.items()} == {
        "went_down": ("critical", "1"), "inactive": ("warning", "1"), "uneven": ("notice", "2"),
        "errors": ("warning", "3"),
    }  # fmt: skip
    assert told["went_down"].values["which"] == "link 3"
    assert told["inactive"].values["which"] == "link 1"
    assert (value(told["uneven"], "active"), value(told["uneven"], "most")) == (2, 4)
    assert (value(told["errors"], "recoveries"), value(told["errors"], "replays")) == (3, 0)


def test_a_gpu_without_nvlink_is_no_finding() -> None:
    scene = nvlink.links(Scene().clock(), 0, special={n: {"active": 0} for n in range(4)})
    assert found(scene, "nvlink") == []


@pytest.mark.parametrize(("errors", "count"), [(99, 0), (100, 1)])
def test_crc_errors_are_told_from_a_hundred(errors: int, count: int) -> None:
    scene = nvlink.links(
        Scene().clock(), 0, special={0: {"crc_flit_errors": lambda at: errors if at == T0 + 60 * S else 0}}
    )
    assert len(found(scene, "nvlink")) == count


NVLINK_5 = dict.fromkeys(("crc_flit_errors", "crc_data_errors", "replay_errors", "recovery_errors"))


def newer_links(**counters: nvlink.Value) -> Scene:
    """Two links of version 5, which lack the older counters."""
    return nvlink.links(Scene().clock(), 0, 2, {n: {**NVLINK_5, **counters} for n in range(2)})


def test_the_counters_of_nvlink_5_are_looked_at() -> None:
    sound = newer_links(receive_errors=7, link_recoveries=2)
    assert found(sound, "nvlink") == []
    packets = by_text(newer_links(receive_errors=lambda at: (at - T0) // S, link_recoveries=0), "nvlink")["errors"]
    assert (packets.severity, value(packets, "packets"), value(packets, "crc")) == ("notice", 120, 0)
    trained = by_text(newer_links(receive_errors=0, link_recoveries=lambda at: int(at > T0)), "nvlink")["errors"]
    assert (trained.severity, value(trained, "recoveries")) == ("warning", 2)


def test_links_that_are_up_and_tell_no_errors_are_not_clear() -> None:
    scene = newer_links()
    for row in scene.rows["nvml_links"]:
        row["unavailable"] = "crc_flit_errors=3"
    assert "errors: not supported (NVML code 3)" in refused(scene, "nvlink")


def test_links_whose_state_nvml_refused_are_not_clear() -> None:
    special: dict[int, dict[str, nvlink.Value]] = {n: {"active": None} for n in range(4)}
    scene = nvlink.links(Scene().clock(), 0, special=special)
    for row in scene.rows["nvml_links"]:
        row["unavailable"] = "active=999"
    assert "unknown error (NVML code 999)" in refused(scene, "nvlink")


def test_the_largest_values_of_every_column_break_nothing() -> None:
    """A hostile recorder fills every column to the end of its type; what is told stays finite and has evidence."""
    largest = {"u8": 2**8 - 1, "u16": 2**16 - 1, "u32": 2**32 - 1, "u64": 2**64 - 1}
    scene = Scene().clock()
    for table in ("nvml_samples", "nvml_processes", "nvml_health", "nvml_links", "nvml_events"):
        full = {c.name: largest[c.type] for c in TABLES[table].columns if c.type in largest}
        texts = {c.name: "xid" for c in TABLES[table].columns if c.type == "text"}
        for i in range(3):
            place = {
                "start_ns": T0 + i * S,
                "duration_ns": S,
                "gpu_uuid": "GPU-0",
                "unavailable": "",
                "parent_uuid": None,
            }
            row = {**full, **texts, **place, "gpu_index": 0, "pid": 7}
            zero = {c.name: 0 for c in TABLES[table].columns if i == 1 and c.nullable and c.type in largest}
            row |= {k: v for k, v in zero.items() if k != "duration_ns"}
            scene.add(table, **{k: v for k, v in row.items() if k in {c.name for c in TABLES[table].columns}})
    context = scene.context()
    for rule in (*DEVICE_RULES, "zombie_allocation", "idle_allocation", "throttling"):
        outcome = RULES[rule](context)
        assert isinstance(outcome, Found | NotEvaluated), rule
    assert gpu_health.evaluate(context).state == "evaluated"
