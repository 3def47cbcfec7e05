"""Where each version of CPython keeps what the capture reads: offsets in bytes, on x86-64.

For 3.10 to 3.12 they come from the interpreters' own headers (cpython_offsets.json, written with
``scripts/cpython-offsets``). From 3.13 on the interpreter tells them itself, at the start of ``_PyRuntime``
(``_Py_DebugOffsets``); what it tells is memory of the audited workload, so it is checked before it is used.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

COOKIE = b"xdebugpy"
"""``_Py_Debug_Cookie``: the first bytes of ``_PyRuntime`` from 3.13 on."""

DATA = Path(__file__).resolve().with_name("cpython_offsets.json")

_HEAD = "cookie version free_threaded"
_GROUPS_3_13 = (
    ("runtime_state", "size finalizing interpreters_head"),
    ("interpreter_state", "size id next threads_head gc imports_modules sysdict builtins ceval_gil gil_runtime_state "
     "gil_runtime_state_enabled gil_runtime_state_locked gil_runtime_state_holder"),
    ("thread_state", "size prev next interp current_frame thread_id native_thread_id datastack_chunk status"),
    ("interpreter_frame", "size previous executable instr_ptr localsplus owner"),
    ("code_object", "size filename name qualname linetable firstlineno argcount localsplusnames localspluskinds "
     "co_code_adaptive"),
    ("pyobject", "size ob_type"), ("type_object", "size tp_name tp_repr tp_flags"),
    ("tuple_object", "size ob_item ob_size"), ("list_object", "size ob_item ob_size"),
    ("dict_object", "size ma_keys ma_values"), ("float_object", "size ob_fval"),
    ("long_object", "size lv_tag ob_digit"), ("bytes_object", "size ob_size ob_sval"),
    ("unicode_object", "size state length asciiobject_size"),
)  # fmt: skip
_GROUPS_3_14 = (
    _GROUPS_3_13[0],
    ("interpreter_state", "size id next threads_head threads_main gc imports_modules sysdict builtins ceval_gil "
     "gil_runtime_state gil_runtime_state_enabled gil_runtime_state_locked gil_runtime_state_holder "
     "code_object_generation tlbc_generation"),
    _GROUPS_3_13[2],
    ("interpreter_frame", "size previous executable instr_ptr localsplus owner stackpointer tlbc_index"),
    ("code_object", "size filename name qualname linetable firstlineno argcount localsplusnames localspluskinds "
     "co_code_adaptive co_tlbc"),
    *_GROUPS_3_13[5:9], ("set_object", "size used table mask"), *_GROUPS_3_13[9:],
)  # fmt: skip
DEBUG_OFFSETS: dict[int, tuple[tuple[str, str], ...]] = {13: _GROUPS_3_13, 14: _GROUPS_3_14}
"""Minor version → groups of 8-byte words of ``_Py_DebugOffsets``, after the three of its head, as far as they are read
(Include/internal/pycore_runtime.h of 3.13, pycore_debug_offsets.h of 3.14)."""

NEWEST = 14
OLDEST = 10

MAX_OFFSET = 1 << 20
"""No structure of CPython is as long (PyInterpreterState of 3.13: 0.3 MB). ours"""
MAX_FRAME_OFFSET = 128 - 8
"""PYTHON_FRAME_BYTES of capture/bpf/raw_stacks.h: what is read of a frame at once."""
RELEASE_CANDIDATE = 0xC
"""Release level in PY_VERSION_HEX: below it are alpha and beta, whose structures still move."""


class Unsupported(Exception):
    """The interpreter cannot be read; the message says why."""


@dataclass(frozen=True)
class Layout:
    """Offsets in bytes. None: this version has no such field."""

    minor: int
    runtime_interpreters: int
    interpreter_next: int
    interpreter_threads: int
    thread_next: int
    thread_id: int
    thread_frame: int
    """The current frame, or the C frame that has it at ``cframe_frame``."""
    cframe_frame: int | None
    frame_previous: int
    frame_code: int
    frame_instruction: int
    frame_owner: int | None
    code_filename: int
    code_name: int
    code_qualname: int | None
    code_first_line: int
    code_line_table: int
    code_bytecode: int | None
    """Where the instructions begin in the code object; None where frames count instructions instead (3.10)."""
    object_type: int
    type_name: int
    bytes_size: int
    bytes_data: int
    text_length: int
    text_state: int
    text_ascii_data: int
    text_compact_data: int

    @property
    def kind_shifts(self) -> tuple[int, ...]:
        """Where ``kind`` may begin in the state of a str: 3.14 moved it behind 16 bits of ``interned``."""
        return (16, 2) if self.minor >= 14 else (2,)


@cache
def recorded() -> dict[int, Layout]:
    """Minor version → layout, from the data file."""
    return {entry["minor"]: Layout(**entry) for entry in json.loads(DATA.read_text("ascii"))["layouts"]}


def layout_of(minor: int) -> Layout:
    """The recorded layout of 3.``minor``; Unsupported for another version."""
    found = recorded().get(minor)
    if found is None:
        raise Unsupported(f"CPython 3.{minor} is not supported: 3.{OLDEST} to 3.{NEWEST} are")
    return found


def debug_offsets_bytes() -> int:
    """How much of ``_Py_DebugOffsets`` is read: enough for every version that is known."""
    return 8 * max(len(_names(groups)) for groups in DEBUG_OFFSETS.values())


def _names(groups: tuple[tuple[str, str], ...]) -> list[str]:
    return [*_HEAD.split(), *(f"{group}.{field}" for group, fields in groups for field in fields.split())]


def layout_from(raw: bytes) -> Layout:
    """The layout that ``_Py_DebugOffsets`` tells; Unsupported when it is not to be believed, or not known."""
    if raw[:8] != COOKIE or len(raw) < 24:
        raise Unsupported("_PyRuntime does not begin with _Py_DebugOffsets")
    version, free_threaded = struct.unpack_from("<QQ", raw, 8)
    major, minor, level = version >> 24, version >> 16 & 0xFF, version >> 4 & 0xF
    groups = DEBUG_OFFSETS.get(minor)
    if major != 3 or groups is None:
        raise Unsupported(f"CPython {major}.{minor} is not supported: 3.{OLDEST} to 3.{NEWEST} are")
    if level < RELEASE_CANDIDATE:
        raise Unsupported(f"CPython 3.{minor} before its release candidate is not supported")
    if free_threaded:
        raise Unsupported(
            f"the free-threaded build of CPython 3.{minor} is not supported: its frames are kept otherwise"
        )
    names = _names(groups)
    if len(raw) < 8 * len(names):
        raise Unsupported("_Py_DebugOffsets is cut short")
    layout = _told(minor, dict(zip(names, struct.unpack_from(f"<{len(names)}Q", raw), strict=True)))
    _check(layout)
    return layout


def _told(minor: int, at: dict[str, int]) -> Layout:
    ascii_bytes = at["unicode_object.asciiobject_size"]
    return Layout(
        minor=minor, runtime_interpreters=at["runtime_state.interpreters_head"],
        interpreter_next=at["interpreter_state.next"], interpreter_threads=at["interpreter_state.threads_head"],
        thread_next=at["thread_state.next"], thread_id=at["thread_state.thread_id"],
        thread_frame=at["thread_state.current_frame"], cframe_frame=None,
        frame_previous=at["interpreter_frame.previous"], frame_code=at["interpreter_frame.executable"],
        frame_instruction=at["interpreter_frame.instr_ptr"], frame_owner=at["interpreter_frame.owner"],
        code_filename=at["code_object.filename"], code_name=at["code_object.name"],
        code_qualname=at["code_object.qualname"], code_first_line=at["code_object.firstlineno"],
        code_line_table=at["code_object.linetable"], code_bytecode=at["code_object.co_code_adaptive"],
        object_type=at["pyobject.ob_type"], type_name=at["type_object.tp_name"],
        bytes_size=at["bytes_object.ob_size"], bytes_data=at["bytes_object.ob_sval"],
        text_length=at["unicode_object.length"], text_state=at["unicode_object.state"], text_ascii_data=ascii_bytes,
        text_compact_data=ascii_bytes + 16,  # PyCompactUnicodeObject adds utf8_length and utf8
    )  # fmt: skip


def _check(layout: Layout) -> None:
    for name, value in vars(layout).items():
        limit = MAX_FRAME_OFFSET if name.startswith("frame_") else MAX_OFFSET
        if value is not None and not 0 <= value <= limit:
            raise Unsupported(f"_Py_DebugOffsets says {name} lies at {value}, more than {limit}")
