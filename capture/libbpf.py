"""The part of libbpf that the capture needs, through ctypes: no compiler and no C extension on the audited host.

libbpf 1.x is loaded when it is first needed. What it would print is kept, and ends up in the error message.
"""

from __future__ import annotations

import ctypes as C
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

from gpuaudit.bundle.errors import HostUnfit

NR_BPF = {"x86_64": 321, "aarch64": 280}
"""System call number of bpf(2)."""

BPF_MAP_CREATE = 0
BPF_MAP_UPDATE_ELEM = 2
BPF_PROG_LOAD = 5
BPF_LINK_CREATE = 28
BPF_ITER_CREATE = 33
BPF_OBJ_GET_INFO_BY_FD = 15
"""Commands of bpf(2), include/uapi/linux/bpf.h."""

BPF_PROG_TYPE_KPROBE = 2
BPF_MAP_TYPE_ARRAY = 2
BPF_MAP_TYPE_ARRAY_OF_MAPS = 12

_P, _S, _I, _U32, _U64, _N = C.c_void_p, C.c_char_p, C.c_int, C.c_uint32, C.c_uint64, C.c_size_t
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_version_string": (_S, ()),
    "libbpf_num_possible_cpus": (_I, ()),
    "libbpf_set_print": (_P, (_P,)),
    "bpf_object__open_mem": (_P, (_P, _N, _P)),
    "bpf_object__load": (_I, (_P,)),
    "bpf_object__close": (None, (_P,)),
    "bpf_object__next_program": (_P, (_P, _P)),
    "bpf_object__find_map_by_name": (_P, (_P, _S)),
    "bpf_program__name": (_S, (_P,)),
    "bpf_program__fd": (_I, (_P,)),
    "bpf_program__set_autoload": (_I, (_P, C.c_bool)),
    "bpf_program__set_type": (_I, (_P, _I)),
    "bpf_program__set_expected_attach_type": (_I, (_P, _I)),
    "bpf_program__attach": (_P, (_P,)),
    "bpf_link__destroy": (_I, (_P,)),
    "bpf_link__fd": (_I, (_P,)),
    "bpf_map__fd": (_I, (_P,)),
    "bpf_map__set_max_entries": (_I, (_P, _U32)),
    "bpf_map__reuse_fd": (_I, (_P, _I)),
    "bpf_map_lookup_elem": (_I, (_I, _P, _P)),
    "bpf_map_update_elem": (_I, (_I, _P, _P, _U64)),
    "bpf_map_delete_elem": (_I, (_I, _P)),
    "bpf_map_get_next_key": (_I, (_I, _P, _P)),
    "bpf_prog_test_run_opts": (_I, (_I, _P)),
}
_LOG: list[str] = []
_PRINT = C.CFUNCTYPE(_I, _I, _S, _P)


class _OpenOptions(C.Structure):
    _fields_ = (
        ("sz", _N), ("object_name", _S), ("relaxed_maps", C.c_bool), ("pin_root_path", _S), ("reserved", _U32),
        ("kconfig", _S), ("btf_custom_path", _S), ("kernel_log_buf", _P), ("kernel_log_size", _N),
        ("kernel_log_level", _U32),
    )  # fmt: skip


class _TestRunOptions(C.Structure):
    _fields_ = (
        ("sz", _N), ("data_in", _P), ("data_out", _P), ("data_size_in", _U32), ("data_size_out", _U32),
        ("ctx_in", _P), ("ctx_out", _P), ("ctx_size_in", _U32), ("ctx_size_out", _U32), ("retval", _U32),
        ("repeat", _I), ("duration", _U32), ("flags", _U32), ("cpu", _U32), ("batch_size", _U32),
    )  # fmt: skip


@cache
def _library() -> Any:
    name = os.environ.get("GPU_AUDIT_LIBBPF", "libbpf.so.1")
    try:
        lib = C.CDLL(name, use_errno=True)
    except OSError as e:
        raise HostUnfit(
            f"{name} cannot be loaded: {e}", hint="install libbpf 1.x (Debian: apt-get install libbpf1; Fedora: libbpf)"
        ) from None
    for function, (result, arguments) in _SIGNATURES.items():
        try:
            f = getattr(lib, function)
        except AttributeError:
            raise HostUnfit(f"{name} lacks {function}", hint="libbpf 1.0 or newer is needed") from None
        f.restype, f.argtypes = result, arguments
    lib.libbpf_set_print(C.cast(_PRINT_CALLBACK, _P))
    return lib


def _keep_message(level: int, form: bytes, arguments: int) -> int:
    if level <= 0:  # LIBBPF_WARN
        text = C.create_string_buffer(2048)
        C.CDLL(None).vsnprintf(text, C.c_size_t(2048), form, C.c_void_p(arguments))
        _LOG.append(text.value.decode("utf-8", "replace").strip())
        del _LOG[:-40]
    return 0


_PRINT_CALLBACK = _PRINT(_keep_message)
"""Kept alive here: libbpf calls it for as long as it is loaded."""


def version() -> str:
    """Version of the libbpf in use, as "v1.1"."""
    text: bytes = _library().libbpf_version_string()
    return text.decode()


def possible_cpus() -> int:
    """CPUs the kernel may ever bring up: the length of every per-CPU array."""
    count: int = _library().libbpf_num_possible_cpus()
    if count <= 0:
        raise HostUnfit(f"libbpf cannot tell the number of CPUs: {os.strerror(-count)}")
    return count


def _failed(what: str, code: int) -> OSError:
    number = abs(code) or C.get_errno() or errno.EINVAL
    return OSError(number, f"{what}: {os.strerror(number)}")


def last_message() -> str:
    """The last thing libbpf or the verifier complained about, on one line; empty if nothing was said."""
    lines = [x.strip() for x in "\n".join(_LOG).splitlines() if x.strip()]
    telling = [x for x in lines if "-- " not in x and not x.startswith(("processed ", "libbpf: failed to load object"))]
    return telling[-1][:200] if telling else ""


class Link:
    """An attachment that lasts until :meth:`close`. ``fd``: a link made by the raw system call."""

    def __init__(self, handle: int | None = None, fd: int | None = None) -> None:
        self._handle, self._fd = handle, fd

    def iterate(self) -> None:
        """Of an iterator program: run it on everything that it iterates over."""
        link_fd = self._fd if self._handle is None else _library().bpf_link__fd(self._handle)
        fd, _ = bpf(BPF_ITER_CREATE, struct.pack("<II", link_fd or 0, 0))
        try:
            done = False
            while not done:  # what the program prints: nothing, so one read goes to the end
                with suppress(BlockingIOError):  # or through a million, and the next one goes on
                    done = not os.read(fd, 4096)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Detach. Twice does no harm."""
        if self._handle is not None:
            _library().bpf_link__destroy(self._handle)
        if self._fd is not None:
            os.close(self._fd)
        self._handle = self._fd = None

    def leave(self) -> None:
        """Detach at the end of a capture, when it does not matter which program is told first."""
        self.close()


class BpfObject:
    """One object file: open, configure, load, attach. Errors are OSError; :func:`last_message` says more."""

    def __init__(self, data: bytes, name: str) -> None:
        lib = _library()
        _LOG.clear()
        self._data = data
        options = _OpenOptions(sz=C.sizeof(_OpenOptions), object_name=name.encode())
        C.set_errno(0)
        self._object = lib.bpf_object__open_mem(data, len(data), C.byref(options))
        if not self._object:
            raise _failed("open BPF object", 0)
        self._programs: dict[str, int] = {}
        program = lib.bpf_object__next_program(self._object, None)
        while program:
            self._programs[lib.bpf_program__name(program).decode()] = program
            program = lib.bpf_object__next_program(self._object, program)

    @property
    def programs(self) -> list[str]:
        """Names of the programs in the object."""
        return list(self._programs)

    def only(self, names: set[str]) -> None:
        """Load these programs and no others."""
        for name, program in self._programs.items():
            _library().bpf_program__set_autoload(program, name in names)

    def attach_type(self, name: str, program_type: int, attach_type: int) -> None:
        """Say before the load how a program will be attached, where its section's name does not."""
        _library().bpf_program__set_type(self._programs[name], program_type)
        _library().bpf_program__set_expected_attach_type(self._programs[name], attach_type)

    def max_entries(self, map_name: str, count: int) -> None:
        """Resize a map before the load; of a ring: bytes."""
        code = _library().bpf_map__set_max_entries(self._map(map_name), count)
        if code:
            raise _failed(f"resize map {map_name}", code)

    def reuse_map(self, map_name: str, fd: int) -> None:
        """Use the loaded map behind ``fd`` instead of making one."""
        code = _library().bpf_map__reuse_fd(self._map(map_name), fd)
        if code:
            raise _failed(f"reuse map {map_name}", code)

    def load(self) -> None:
        """Relocate against the running kernel and load."""
        code = _library().bpf_object__load(self._object)
        if code:
            raise _failed("load BPF programs", code)

    def _map(self, name: str) -> int:
        found: int | None = _library().bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise KeyError(f"no BPF map called {name}")
        return found

    def map_fd(self, name: str) -> int:
        """File descriptor of a loaded map."""
        fd: int = _library().bpf_map__fd(self._map(name))
        return fd

    def program_fd(self, name: str) -> int:
        """File descriptor of a loaded program."""
        fd: int = _library().bpf_program__fd(self._programs[name])
        return fd

    def attach(self, name: str) -> Link:
        """Attach a program to what its section names (tp_btf, raw_tp, iter)."""
        C.set_errno(0)
        link = _library().bpf_program__attach(self._programs[name])
        if not link:
            raise _failed(f"attach {name}", 0)
        return Link(handle=link)

    def close(self) -> None:
        """Free the object; attached links must be closed before."""
        if self._object:
            _library().bpf_object__close(self._object)
        self._object = None


def bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """bpf(2) itself: (result, attributes as the kernel left them); OSError when it fails."""
    size = max(len(attributes), 128)
    buffer = C.create_string_buffer(attributes.ljust(size, b"\0"), size)
    libc = C.CDLL(None, use_errno=True)
    result = libc.syscall(NR_BPF[os.uname().machine], command, buffer, size)
    if result < 0:
        number = C.get_errno()
        raise OSError(number, f"bpf({command}): {os.strerror(number)}")
    return result, buffer.raw


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of a key, None if there is none."""
    value = C.create_string_buffer(value_size)
    code = _library().bpf_map_lookup_elem(fd, key, value)
    if code == -errno.ENOENT or (code == -1 and C.get_errno() == errno.ENOENT):
        return None
    if code:
        raise _failed("look up in a BPF map", code)
    return value.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Set the value of a key."""
    code = _library().bpf_map_update_elem(fd, key, value, 0)
    if code:
        raise _failed("update a BPF map", code)


def map_delete(fd: int, key: bytes) -> None:
    """Remove a key; no error if it is not there."""
    code = _library().bpf_map_delete_elem(fd, key)
    if code and code != -errno.ENOENT:
        raise _failed("delete from a BPF map", code)


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Keys of a hash map, which may change meanwhile: a key that came or went during the walk may be missing."""
    key: bytes | None = None
    for _ in range(1 << 20):  # a map that changes under the walk can send it back to its start
        following = C.create_string_buffer(key_size)
        if _library().bpf_map_get_next_key(fd, key, following):
            return
        key = following.raw
        yield key


def run_program(fd: int) -> int:
    """Run a raw_tp program once, now, in this thread (BPF_PROG_TEST_RUN); what it returned."""
    options = _TestRunOptions(sz=C.sizeof(_TestRunOptions))
    code = _library().bpf_prog_test_run_opts(fd, C.byref(options))
    if code:
        raise _failed("run a BPF program", code)
    return int(options.retval)


def recursion_misses(fd: int) -> int:
    """How often the kernel skipped the program because it was running already on that CPU (bpf_prog_info)."""
    info = C.create_string_buffer(256)
    bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", fd, len(info), C.addressof(info)))
    return int(struct.unpack_from("<Q", info.raw, 208)[0])


class Barrier:
    """Waits until every BPF program that runs now has ended: what it was about to write is written then.

    The kernel promises that to whoever puts a map into a map of maps (bpf(2), BPF_MAP_UPDATE_ELEM, since Linux 4.20);
    tens of milliseconds.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []
        try:
            self._fds.append(self._make(BPF_MAP_TYPE_ARRAY, 0))
            self._fds.append(self._make(BPF_MAP_TYPE_ARRAY_OF_MAPS, self._fds[0]))
        except OSError:
            self.close()
            raise

    @staticmethod
    def _make(map_type: int, inner_fd: int) -> int:
        # type, sizes of key and value, entries, flags, inner map; the descriptor is close-on-exec
        fd, _ = bpf(BPF_MAP_CREATE, struct.pack("<IIIIII", map_type, 4, 4, 1, 0, inner_fd))
        return fd

    def wait(self) -> None:
        """Return when every program that was running has ended."""
        key, value = C.c_uint32(0), C.c_uint32(self._fds[0])
        # map, padding, addresses of key and value, flags
        attributes = struct.pack("<IIQQQ", self._fds[1], 0, C.addressof(key), C.addressof(value), 0)
        bpf(BPF_MAP_UPDATE_ELEM, attributes)

    def close(self) -> None:
        """Give the maps back. Twice does no harm."""
        while self._fds:
            os.close(self._fds.pop())
