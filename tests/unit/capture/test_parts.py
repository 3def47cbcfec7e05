"""Every part's rows and its object agree: also on the programs that only other kernels get."""

from __future__ import annotations

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from gpuaudit.bundle.tables import RING_TABLES
from gpuaudit.capture.loading import OBJECTS
from gpuaudit.capture.parts import PARTS, Part
from gpuaudit.capture.source import BPF_SOURCES, TABLES_OF_SOURCE


def symbols(part: Part) -> dict[str, str]:
    """Global names of the object, and the section each lies in."""
    with (OBJECTS / part.file_name).open("rb") as f:
        elf = ELFFile(f)
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return {
            s.name: elf.get_section(s["st_shndx"]).name
            for s in table.iter_symbols()
            if s.name and isinstance(s["st_shndx"], int)
        }


@pytest.mark.parametrize("part", PARTS, ids=lambda p: p.name)
def test_every_program_is_in_the_object_under_its_tracepoint(part: Part) -> None:
    found = symbols(part)
    for variant in part.variants:
        assert len(set(variant)) == len(variant)
        for program in variant:
            tracepoint = part.tracepoints[program]
            section = tracepoint if tracepoint.startswith("raw_tp/") else f"tp_btf/{tracepoint}"
            assert found[program] == section
    for program in filter(None, (part.flush, *part.tick)):
        assert found[program].startswith("raw_tp/")
    assert {name for name in part.maps if name not in found} == set()


@pytest.mark.parametrize("part", PARTS, ids=lambda p: p.name)
def test_every_ring_is_a_table_s_and_has_a_size_the_kernel_takes(part: Part) -> None:
    for table, size in part.ring_bytes.items():
        assert table in RING_TABLES
        assert size >= 4096
        assert size & (size - 1) == 0
        assert symbols(part)[f"ring_{table}"] == ".maps"


def test_every_ring_table_of_a_source_has_one_part() -> None:
    filled = [table for part in PARTS for table in part.ring_bytes]
    assert len(set(filled)) == len(filled)
    wanted = {t for s in BPF_SOURCES for t in TABLES_OF_SOURCE.get(s, ()) if t in RING_TABLES}
    assert wanted <= set(filled)
