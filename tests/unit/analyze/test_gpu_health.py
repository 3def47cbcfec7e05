"""The section on the health of the GPUs: every value or why there is none; and the NVML double through all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuaudit.analyze.context import Context, Found
from gpuaudit.analyze.evidence import EvidenceBook
from gpuaudit.analyze.finding import Finding, Quantity, SectionTable
from gpuaudit.analyze.gpu_facts import read_facts
from gpuaudit.analyze.load import parse_document
from gpuaudit.analyze.quality import read_quality
from gpuaudit.analyze.registry import plugins
from gpuaudit.analyze.run import document_bytes
from gpuaudit.analyze.sections import gpu_health
from gpuaudit.analyze.store import Store
from gpuaudit.analyze.window import read_window
from gpuaudit.bundle import canonical
from gpuaudit.bundle.columns import from_records
from gpuaudit.bundle.tables import TABLES
from tests.doubles.build import build, compiler
from tests.nvml_double import watch
from tests.rule_scenes import memory_errors, nvlink, pcie_link
from tests.rule_scenes import xid as xid_scenes
from tests.rule_scenes.power_cap import health
from tests.scenes import T0, S, Scene

RULES = {p.declaration.id: p.evaluate for p in plugins()}


def rows(table: SectionTable) -> dict[str, tuple[Quantity | str | None, ...]]:
    return {str(r[0]): r[1:] for r in table.rows}


def number(cell: Quantity | str | None) -> object:
    assert isinstance(cell, Quantity)
    return cell.value


def test_without_nvml_it_says_why() -> None:
    scene = Scene().clock()
    scene.open_body["sources"] = [{"source": "nvml", "state": "not available", "reason": "no libnvidia-ml.so.1"}]
    section = gpu_health.evaluate(scene.context())
    assert (section.state, section.reason) == ("not evaluated", "no libnvidia-ml.so.1")


def test_each_gpu_has_what_was_read_of_it() -> None:
    (scene,) = memory_errors.scenes()
    section = gpu_health.evaluate(scene.context())
    first, second, third = (rows(t) for t in section.tables)
    assert (number(first["uncorrected ECC errors"][0]), number(first["uncorrected ECC errors"][1])) == (3, 3)
    assert first["ECC"][0] == "on"
    assert second["row remapping failed"][0] == "yes"
    assert number(second["rows remapped for corrected errors"][0]) == 3
    assert third["page retirement pending"][0] == "yes, when the driver is loaded again"
    assert number(third["pages retired for single-bit errors"][0]) == 4


def test_what_nvml_refused_is_said_with_its_code() -> None:
    scene = health(Scene().clock(), unavailable="ecc_enabled=3,mig_mode=4,ecc_corrected_aggregate=15")
    scene.samples(T0, T0 + 10 * S, unavailable="power_mw=999")
    told = rows(gpu_health.evaluate(scene.context()).tables[0])
    assert told["ECC"][0] == "not supported (NVML code 3)"
    assert told["MIG mode"][0] == "no permission (NVML code 4)"
    for what, reason in (
        ("corrected ECC errors in the board's life", "GPU is lost (NVML code 15)"),
        ("power, highest", "unknown error (NVML code 999)"),
        ("BAR1 aperture", "not read by this recorder"),
    ):
        cell = told[what][0]
        assert isinstance(cell, Quantity)
        assert (cell.value, cell.reason) == (None, reason)
    assert told["NVLinks up"][0] == "NVML listed no link"


def test_links_power_and_clocks() -> None:
    scene = pcie_link.link(4, 8, power_limit_mw=500_000, power_mw=480_000, clock_sm_cap_mhz=1500, clock_sm_max_mhz=1980)
    scene = nvlink.links(scene, 0, special={1: {"active": 0}})
    told = rows(gpu_health.evaluate(scene.context()).tables[0])
    wanted = {
        "PCIe generation, at most": 5, "PCIe lanes, at most": 16, "PCIe generation, lowest in use": 4,
        "PCIe lanes, fewest in use": 8, "power limit, enforced": 500_000, "power, highest": 480_000,
        "SM clock that the applications clock allows": 1500, "highest SM clock": 1980, "NVLinks up, of 4": 3,
    }  # fmt: skip
    assert {k: number(told[k][0]) for k in wanted} == wanted


def test_xids_stand_before_the_gpus_with_meaning_and_action() -> None:
    (scene,) = xid_scenes.scenes()
    table = gpu_health.evaluate(scene.context()).tables[0]
    assert table.id == "xids"
    by_number = {r[1]: r for r in table.rows}
    assert by_number["79"][4] == "reboot the node"
    assert number(by_number["94"][2]) == 3
    assert by_number["4242"][3] == "not explained in the catalogue"


def test_the_section_is_part_of_a_document_that_can_be_read_again() -> None:
    (scene,) = memory_errors.scenes()
    scene.rows["nvml_health"][0]["gpu_uuid"] = "GPU-\n'; DROP TABLE x; --" + "x" * 300
    document = parse_document(document_bytes(scene.document()))
    section = next(s for s in document.sections if s.id == "gpu_health")
    assert len(section.tables) == 4
    assert all(len(t.title) <= 256 for t in section.tables)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b'{"gpus":1}', b'{"gpus":[1,{"uuid":1}]}', b'{"gpus":[{"uuid":"GPU-0","facts":[]}]}', b"\xff",
        b'{"gpus":[{"uuid":"GPU-0","facts":{"name":7,"serial":{"value":[]},"gpm":{"error":"x"}}}]}',
    ],
)  # fmt: skip
def test_facts_of_a_hostile_recorder_are_as_if_they_were_not_there(body: bytes) -> None:
    store = Store.from_tables({}, artefacts=[("gpus", body)])
    assert all(f.value is None for facts in read_facts(store).values() for f in facts.values())


def test_facts_are_values_or_reasons() -> None:
    facts = {"name": {"value": "NVIDIA H100"}, "gpm": {"not_supported": True}, "serial": {"error": 4}}
    body = canonical.dumps({"gpus": [{"uuid": "GPU-0", "facts": facts}], "system": {}})
    told = read_facts(Store.from_tables({}, artefacts=[("gpus", body)]))["GPU-0"]
    assert {k: (f.value, f.reason) for k, f in told.items()} == {
        "name": ("NVIDIA H100", ""), "gpm": (None, "not supported"), "serial": (None, "no permission (NVML code 4)"),
    }  # fmt: skip


def test_a_gpu_without_xid_events_is_never_clear() -> None:
    scene = health(Scene().clock())
    for fact in ({"not_supported": True}, {"error": 4}, {"value": 0x4}):
        body = canonical.dumps({"gpus": [{"uuid": "GPU-0", "facts": {"event_types": fact}}]})
        assert not isinstance(RULES["xid"](of(scene.rows, [("gpus", body)])), Found)
    body = canonical.dumps({"gpus": [{"uuid": "GPU-0", "facts": {"event_types": {"value": 0xC}}}]})
    assert isinstance(RULES["xid"](of(scene.rows, [("gpus", body)])), Found)


def of(tables: dict[str, list[dict[str, Any]]], artefacts: list[tuple[str, bytes]]) -> Context:
    """A context of rows as the recorder would write them."""
    store = Store.from_tables({t: from_records(TABLES[t], r) for t, r in tables.items() if r}, artefacts=artefacts)
    window = read_window(store)
    return Context(store, window, read_quality(store, window, "SEALED"), EvidenceBook(store))


SCRIPT = """gpus 2
0 * utilization 90
0 1 clock_sm 990
0 1 clock_sm_cap 990
0 1 event_reasons 2
0 * pcie_rx 14000000
0 1 pcie_width 4
0 1 remapped_pending 1
0 1 links 4
0 1 link 2 link_active 0
0 1 grow ecc_uncorrected 2
300 1 event 8 79
300 0 refuse ecc_mode 3
"""


def test_through_the_nvml_double(tmp_path: Path) -> None:
    """Scripted GPUs through the real NVML binding and recorder: the healthy one is clear, the other is not."""
    if compiler() is None:
        pytest.skip("gcc is not installed")
    out = watch(build("nvml", tmp_path), SCRIPT, until={"nvml_samples": 24, "nvml_events": 1})
    artefacts = [(n, json.dumps(b).encode()) for n, b in out["artefacts"].items()]
    context = of({t: r for t, r in out["rows"].items() if t in TABLES}, artefacts)
    found: dict[str, set[tuple[str, str]]] = {}
    for rule in ("clock_caps", "pcie_link", "memory_errors", "nvlink", "xid"):
        outcome = RULES[rule](context)
        assert isinstance(outcome, Found), outcome
        found[rule] = {(f.text, f.subject["gpu_index"]) for f in outcome.items if isinstance(f, Finding)}
    assert found == {
        "clock_caps": {("clock_caps", "1")}, "pcie_link": {("degraded", "1")}, "nvlink": {("inactive", "1")},
        "memory_errors": {("uncorrected", "1"), ("remap_pending", "1")}, "xid": {("xid", "1")},
    }  # fmt: skip
    section = gpu_health.evaluate(context)
    assert [t.id for t in section.tables] == ["xids", "gpu_0", "gpu_1"]
    assert rows(section.tables[1])["name"][0] == "NVIDIA H100 80GB HBM3"
    assert rows(section.tables[2])["row remapping pending"][0] == "yes, at the next reset of the GPU"
